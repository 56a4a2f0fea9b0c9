"""The uniform ladder: one keep ratio, one precision everywhere. The baseline, and what agents start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressors.policy import FLOAT

from .pricing import Indices, Pricer

RATIOS = 32


@dataclass(frozen=True)
class Rung:
    """One uniform policy: ``indices`` (d,), its ``ratio``, ``precision`` in words and latency in ms."""

    indices: Indices
    ratio: float
    precision: str
    latency: float
    excess: float


def precisions(pricer: Pricer) -> list[tuple[str, int | None, int | None]]:
    """(words, weight bits, activation bits) of plain float and of every pair the target executes."""
    abilities = pricer.space.abilities
    found: list[tuple[str, int | None, int | None]] = [("float", None, None)]
    if "quantize" in abilities.methods:
        for w, a in sorted(abilities.precisions, reverse=True):
            words = f"int{w}" if w == a else f"w{w}a{a}" if a != FLOAT else f"w{w}"
            found.append((words, w, None if a == FLOAT else a))
    return found


def ladder(pricer: Pricer) -> list[Rung]:
    """Every distinct rung, per precision from the largest ratio down; feasible or not. Computed once."""
    if pricer.rungs is None:
        pricer.rungs = _rungs(pricer)
    return list(pricer.rungs)


def _rungs(pricer: Pricer) -> list[Rung]:
    rows: list[tuple[Indices, float, str]] = []
    seen: set[bytes] = set()
    for words, w, a in precisions(pricer):
        for ratio in np.linspace(1.0, 0.0, RATIOS, endpoint=False):
            indices = pricer.space.indices(pricer.space.encode(pricer.space.uniform(float(ratio), a, w)))
            if indices.tobytes() not in seen:
                seen.add(indices.tobytes())
                rows.append((indices, float(ratio), words))
    table = np.stack([r[0] for r in rows])
    latency, excess = pricer.latency(table), pricer.excess(table)
    return [Rung(i, r, w, float(t), float(e)) for (i, r, w), t, e in zip(rows, latency, excess, strict=True)]


def nearest_first(rungs: list[Rung]) -> list[Rung]:
    """Feasible rungs, each precision's largest that fits first, precisions taking turns."""
    by: dict[str, list[Rung]] = {}
    for rung in rungs:
        if rung.excess <= 0:
            by.setdefault(rung.precision, []).append(rung)
    # Low precisions first: at the same budget they keep more channels.
    columns = list(by.values())[::-1]
    longest = max((len(c) for c in columns), default=0)
    return [c[k] for k in range(longest) for c in columns if k < len(c)]


def coarse_to_fine(rungs: list[Rung]) -> list[Rung]:
    """Feasible rungs in an order that covers the range of latencies evenly, however early it is cut off."""
    ordered = sorted((r for r in rungs if r.excess <= 0), key=lambda r: -r.latency)
    n = len(ordered)
    bits = max(1, (n - 1).bit_length())
    order = sorted(range(n), key=lambda k: (int(f"{k:0{bits}b}"[::-1], 2), k))
    return [ordered[k] for k in order]
