"""First suggestions of the learning agents: the uniform ladder of every precision, filled to the budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contract import Budget, Problem
from .ladder import Rung, coarse_to_fine, ladder, nearest_first
from .pricing import Indices, Pricer
from .repair import grow, repair, shrink

Design = list[tuple[Indices, str]]
#: Rungs of each precision that are tried as they are, besides the largest one filled to the budget.
PLAIN = 2


def initial_design(
    pricer: Pricer, problem: Problem, most: int, loss: NDArray[np.float64] | None = None
) -> Design:
    """Up to ``most`` distinct feasible starts, most promising first; deterministic.

    Per precision the largest uniform rung, then the same grown to the edge of the budget (low precisions
    first), then the largest policy of each precision repaired channel by channel in order of expected
    loss (``loss`` as in `repair`). For least latency instead the ladder from coarse to fine.
    """
    rungs = ladder(pricer)
    found: Design = []
    if problem.objective == "latency":
        found += [(r.indices, f"start: {_words(r)}") for r in coarse_to_fine(rungs)]
    else:
        near = nearest_first(rungs)
        heads = list({r.precision: r for r in reversed(near)}.values())[::-1]
        found += _filled(pricer, rungs, heads, loss)
        found += [(r.indices, f"start: {_words(r)}") for r in near[: PLAIN * max(1, len(heads))]]
    return _distinct(pricer, found)[:most]


def diverse(
    pricer: Pricer, rng: np.random.Generator, budget: Budget, loss: NDArray[np.float64]
) -> Indices | None:
    """A feasible point with a random set of kernels and the largest channels that fit them.

    The shares of removed blocks, factorised layers and unquantised tensors are themselves random, so
    that a handful of such points shows what each kind of change is worth.
    """
    start = pricer.top.copy()
    removed, ranked = rng.choice([0.0, 0.15, 0.3, 0.5]), rng.choice([0.0, 0.15, 0.4])
    plain = rng.choice([0.0, 0.2])
    u, v = rng.random(len(start)), rng.integers(0, pricer.space.cardinalities)
    start[(pricer.kinds == "removed") & (u < removed)] = 0
    factorised = (pricer.kinds == "rank") & (u < ranked)
    start[factorised] = v[factorised]
    bits = np.isin(pricer.kinds, ("act_bits", "weight_bits")) & (u >= plain)
    start[bits] = 0
    return settle(pricer, start, budget, loss * np.exp(rng.normal(0.0, 0.5, size=len(start))))


def settle(pricer: Pricer, start: Indices, budget: Budget, loss: NDArray[np.float64]) -> Indices | None:
    """Repair by channels alone if that is enough (same kernels), else by everything; then grow back."""
    keep = pricer.kinds == "keep"
    point = shrink(pricer, start, budget, loss, keep)
    if point is None:
        return repair(pricer, start, budget=budget, loss=loss)
    return grow(pricer, point, budget, loss, keep | (pricer.kinds == "weight_bits"), rounds=1)


def _words(rung: Rung) -> str:
    return f"uniform, keep {rung.ratio:.3g}, {rung.precision}"


def _filled(pricer: Pricer, rungs: list[Rung], heads: list[Rung], loss: NDArray[np.float64] | None) -> Design:
    """Per precision: its largest rung grown, and its top shrunk where the expected loss is least."""
    structural = ~np.isin(pricer.kinds, ("keep",))
    found: Design = []
    for rung in heads:
        grown = repair(pricer, rung.indices, frozen=structural, loss=loss)
        if grown is not None:
            found.append((grown, f"start: {_words(rung)}, grown to the budget"))
    for words in dict.fromkeys(r.precision for r in reversed(rungs)):
        full = next(r for r in rungs if r.precision == words)
        shrunk = repair(pricer, full.indices, frozen=structural, loss=loss)
        if shrunk is not None:
            found.append((shrunk, f"start: {words}, pruned where the expected loss per saving is least"))
    return found


def _distinct(pricer: Pricer, design: Design) -> Design:
    seen: set[str] = set()
    kept: Design = []
    for indices, origin in design:
        digest = pricer.policy(indices).digest
        if digest not in seen and pricer.feasible(indices[None])[0]:
            seen.add(digest)
            kept.append((indices, origin))
    return kept
