"""Which values of a coordinate are measured, and what the others are taken to lose.

A small change dw loses a multiple of its square, and dw grows with the share of channels or ranks taken away
and halves with every bit. The root of the loss is therefore near to linear in the *distance* of a value from
the last one, and is interpolated there by monotone cubics (PCHIP, Fritsch & Carlson 1980), which do not
overshoot; at distance 0 nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..graph import Structure
from ..space import Choice


def distances(choice: Choice, structure: Structure) -> NDArray[np.float64]:
    """How far each value is from the last one, shape (values,): shares taken away, or 2^-bits."""
    return np.array([_distance(choice, v, structure) for v in choice.values])


def _distance(choice: Choice, value: object, structure: Structure) -> float:
    if choice.kind == "keep" and isinstance(value, int):
        return 1.0 - value / structure.group[choice.subject].size
    if choice.kind == "rank" and isinstance(value, tuple):
        return 1.0 - float(value[1])
    if choice.kind in ("weight_bits", "act_bits") and isinstance(value, int):
        return 2.0**-value
    return 1.0 if value is True else 0.0


def families(choice: Choice, open_: Sequence[int]) -> list[list[int]]:
    """Values that lie on one curve: those of one factorisation, else all; indices, as in ``open_``."""
    found: dict[str, list[int]] = {}
    for i in open_:
        value = choice.values[i]
        method = str(value[0]) if choice.kind == "rank" and isinstance(value, tuple) else ""
        found.setdefault(method, []).append(i)
    return list(found.values())


def sampled(choice: Choice, open_: Sequence[int], points: int) -> list[int]:
    """The values to measure, ascending: about ``points``, at least two a family, its ends among them.

    ``open_``: indices of the values that change something.
    """
    groups = families(choice, open_)
    each = max(2, points // max(1, len(groups)))
    chosen: set[int] = set()
    for group in groups:
        at = np.linspace(0, len(group) - 1, min(each, len(group))).round().astype(int)
        chosen.update(group[k] for k in at)
    return sorted(chosen)


def interpolated(
    choice: Choice, structure: Structure, open_: Sequence[int], measured: Mapping[int, float]
) -> NDArray[np.float64]:
    """Loss of every value, shape (values,): as measured, between measured ones by interpolation, else 0."""
    far = distances(choice, structure)
    losses = np.zeros(len(choice.values))
    for group in families(choice, open_):
        known = sorted((far[i], measured[i]) for i in group if i in measured)
        wanted = [i for i in group if i not in measured]
        losses[[i for i in group if i in measured]] = [measured[i] for i in group if i in measured]
        if wanted:
            losses[wanted] = _between(known, far[wanted])
    return losses


def _between(known: Sequence[tuple[float, float]], at: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.interpolate import PchipInterpolator

    start = [(0.0, 0.0)] if known[0][0] > 0 else []
    x, y = (np.array(column) for column in zip(*start, *known, strict=True))
    steps = np.flatnonzero(np.diff(x, prepend=-1.0) > 0)
    curve = PchipInterpolator(x[steps], np.sqrt(np.maximum(y[steps], 0.0)))
    found: NDArray[np.float64] = np.asarray(curve(np.clip(at, x[0], x[-1])), dtype=float) ** 2
    return found


__all__ = ["interpolated", "sampled"]
