"""Pareto fronts, hypervolume, and the pick of the best outcome."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .contract import Outcome, Problem

Floats = NDArray[np.float64]


def front_mask(values: Floats, maximise: Sequence[bool]) -> NDArray[np.bool_]:
    """Which rows of ``values`` (P, M) no other row dominates; of equal rows the first. Shape (P,).

    Row a dominates b when it is at least as good everywhere and better somewhere. Rows with NaN are out.
    Sorting first makes it O(P F M) with F the size of the front.
    """
    table = np.where(np.asarray(maximise, dtype=bool), -np.asarray(values, dtype=float), values)
    mask = np.zeros(len(table), dtype=bool)
    valid = np.flatnonzero(~np.isnan(table).any(axis=1))
    # In lexicographic order a row can only be dominated by an earlier one; the index breaks ties.
    order = valid[np.lexsort((valid, *table[valid].T[::-1]))]
    front = np.empty((0, table.shape[1]))
    for i in order:
        if not (front <= table[i]).all(axis=1).any():
            front = np.vstack([front, table[i]])
            mask[i] = True
    return mask


def hypervolume(values: Floats, reference: Sequence[float], maximise: Sequence[bool]) -> float:
    """Volume dominated by ``values`` (P, M) up to ``reference`` (M,), larger is better (moocore)."""
    import moocore

    sign = np.where(np.asarray(maximise, dtype=bool), -1.0, 1.0)
    points = np.asarray(values, dtype=float) * sign
    ref = np.asarray(reference, dtype=float) * sign
    inside = points[(points < ref).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(moocore.hypervolume(np.ascontiguousarray(inside), ref=ref))


def reference_gain(problem: Problem) -> float:
    """Gain from which a front counts: a fifth of the uncompressed network's metric below it."""
    return counts_from(problem.gain(problem.base_accuracy))


def counts_from(gain: float) -> float:
    """Gain from which a front counts whose best is ``gain``: a fifth below it."""
    return gain - 0.2 * abs(gain)


def usable(outcome: Outcome) -> bool:
    """Whether an outcome can stand on a front: evaluated to the end, feasible, a finite metric."""
    return (
        outcome.feasible
        and not outcome.stopped_early
        and outcome.accuracy is not None
        and bool(np.isfinite(outcome.accuracy))
    )


def front(outcomes: Sequence[Outcome], problem: Problem, cost: str = "latency_ms") -> list[int]:
    """Positions of the outcomes on the front of metric against ``cost``, by falling metric.

    Outcomes over a cost limit, stopped early or not evaluated are left out; breaking ``max_drop`` alone
    does not keep an outcome off the front, which shows what the drop buys.
    """
    rows = [k for k, o in enumerate(outcomes) if usable(o) or _breaks_only_drop(o, problem)]
    if not rows:
        return []
    table = np.array([[_gain(outcomes[k], problem), outcomes[k].costs[cost]] for k in rows])
    mask = front_mask(table, (True, False))
    return sorted(
        (k for k, on in zip(rows, mask, strict=True) if on),
        key=lambda k: (-_gain(outcomes[k], problem), outcomes[k].costs[cost]),
    )


def best(outcomes: Sequence[Outcome], problem: Problem) -> int | None:
    """Position of the outcome to pick, None when none is feasible.

    Objective "accuracy": best metric, then least latency, then smallest size, then first come.
    Objective "latency": least latency among those that hold the drop, then best metric.
    """
    rows = [
        k
        for k, o in enumerate(outcomes)
        if usable(o) and o.accuracy is not None and problem.holds_drop(o.accuracy)
    ]
    key = problem.budget.latency_key

    def rank(k: int) -> tuple[float, ...]:
        o = outcomes[k]
        gain, latency = -_gain(o, problem), o.costs.get(key, np.inf)
        first = (latency, gain) if problem.objective == "latency" else (gain, latency)
        return (*first, o.costs.get("size_bytes", np.inf), float(k))

    return min(rows, key=rank, default=None)


def _gain(outcome: Outcome, problem: Problem) -> float:
    return problem.gain(outcome.accuracy) if outcome.accuracy is not None else -np.inf


def _breaks_only_drop(outcome: Outcome, problem: Problem) -> bool:
    if outcome.accuracy is None or outcome.stopped_early or problem.holds_drop(outcome.accuracy):
        return False
    return bool(np.isfinite(outcome.accuracy)) and not problem.budget.why_not(outcome.costs)
