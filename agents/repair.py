"""Exact repair: the nearest policy found that holds the budget after rounding, and grown back to its edge.

Costs may rise where a policy shrinks (staircases, a quantised tensor between float ones), so nothing here
assumes monotone costs: paths of unit steps are priced in batches and only points found feasible are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from compressors.policy import ResolvedPolicy

from .contract import Budget, Problem
from .errors import NothingFeasibleError
from .pricing import Indices, Pricer

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: What taking a coordinate from its last to its first value is expected to lose when nothing is known,
#: relative to pruning one group to its minimum. Only an order of preference: bits, channels, blocks.
PRIOR_LOSS = {"keep": 1.0, "rank": 1.0, "weight_bits": 0.3, "act_bits": 0.05, "removed": 2.0}
#: Kinds that growing back may raise: the others change which kernels run, which is a proposer's choice.
GROWABLE = ("keep", "weight_bits")
#: Points of a path priced at once: first this many over its length, then those between two of them.
COARSE = 8


def expected_losses(problem: Problem) -> Floats:
    """Expected loss of each coordinate from last to first value, (d,): as measured, else the prior."""
    prior = np.array([PRIOR_LOSS.get(c.kind, 1.0) for c in problem.space.choices])
    given = problem.losses() if problem.losses is not None else {}
    if not given:
        return prior
    found = np.array([given[c.name][0] if c.name in given else np.nan for c in problem.space.choices])
    known = np.isfinite(found) & (found > 0)
    if not known.any():
        return prior
    scale = float(np.median(found[known] / prior[known]))
    # A measured loss of nothing at all is noise: keep a floor so that no coordinate becomes free.
    return np.where(np.isfinite(found), np.maximum(found, 1e-2 * scale), prior * scale)


def step_keys(pricer: Pricer, loss: Floats, saving: Floats) -> list[Floats]:
    """Loss per saving of each unit step, per coordinate from the top step down.

    For a loss growing with the square of the distance from the top the marginal loss is linear in it;
    taking steps in this order is then the greedy optimum of the separable problem.
    """
    floor = 1e-3 * float(np.max(np.abs(saving), initial=1e-12))
    per = loss / np.maximum(saving, floor)
    return [per[i] * (np.arange(n) + 0.5) / max(n, 1) for i, n in enumerate(pricer.top)]


def shrink(pricer: Pricer, start: Indices, budget: Budget, loss: Floats, free: Mask) -> Indices | None:
    """First feasible point on the path of cheapest unit steps down from ``start``, else towards an anchor."""
    violated = np.maximum(budget.violations(pricer.price(start[None]))[0], 0.0)
    if not violated.any():
        return start
    saving = np.zeros(len(start))
    for excess, name in zip(violated, budget.limits, strict=True):
        saving += min(float(excess), 10.0) * pricer.savings[name]
    keys = step_keys(pricer, loss, saving)
    steps = [
        (float(keys[i][pricer.top[i] - v]), int(i))
        for i in np.flatnonzero(free)
        for v in range(start[i], 0, -1)
    ]
    found = _first_feasible(pricer, budget, _path(start, [i for _, i in sorted(steps)], -1))
    if found is not None:
        return found
    for anchor in anchors(pricer):
        if pricer.feasible(anchor[None], budget)[0]:
            differ = [int(i) for i in np.flatnonzero((anchor != start) & free)]
            per = loss / np.maximum(saving, 1e-9)
            order = [differ[k] for k in np.argsort(per[differ], kind="stable")]
            return _first_feasible(pricer, budget, _blend(start, anchor, order))
    return None


def grow(
    pricer: Pricer, start: Indices, budget: Budget, loss: Floats, free: Mask, rounds: int = 2
) -> Indices:
    """Spend what the budget leaves: raise coordinates of a feasible point while it stays feasible."""
    if not budget.limits:
        return start
    excess = budget.violations(pricer.price(start[None]))[0]
    keys = step_keys(pricer, loss, pricer.savings[list(budget.limits)[int(np.argmax(excess))]])
    free = free & np.isin(pricer.kinds, GROWABLE)
    steps = [
        (-float(keys[i][pricer.top[i] - v - 1]), int(i))
        for i in np.flatnonzero(free)
        for v in range(start[i], pricer.top[i])
    ]
    point = _last_feasible(pricer, budget, _path(start, [i for _, i in sorted(steps)], +1))
    for _ in range(rounds):
        open_ = [int(i) for i in np.flatnonzero(free & (point < pricer.top))]
        open_.sort(key=lambda i: -float(keys[i][pricer.top[i] - point[i] - 1]))
        if not open_:
            break
        singles = np.repeat(point[None], len(open_), axis=0)
        singles[np.arange(len(open_)), open_] += 1
        good = [i for i, ok in zip(open_, pricer.feasible(singles, budget), strict=True) if ok]
        if not good:
            break
        point = _last_feasible(pricer, budget, _path(point, good, +1), least=1)
    return point


def repair(
    pricer: Pricer,
    start: Indices,
    *,
    budget: Budget | None = None,
    loss: Floats | None = None,
    rng: np.random.Generator | None = None,
    frozen: Mask | None = None,
    refill: bool = True,
) -> Indices | None:
    """A feasible point near ``start``, grown back to the budget; None when none is found.

    ``loss`` (d,): expected loss of each coordinate (default: as the problem measured it, or a prior);
    ``rng`` perturbs it by a factor of about two, so that repairs of one point differ; ``frozen`` (d,)
    names coordinates to leave alone. All shapes in value indices.
    """
    limit = pricer.budget if budget is None else budget
    weights = expected_losses(pricer.problem) if loss is None else loss
    if rng is not None:
        weights = weights * np.exp(rng.normal(0.0, 0.5, size=len(weights)))
    free = np.ones(len(start), dtype=bool) if frozen is None else ~frozen
    point = shrink(pricer, start, limit, weights, free)
    if point is None or not refill:
        return point
    return grow(pricer, point, limit, weights, free)


def hold_exactly(
    pricer: Pricer, start: Indices, attempts: int = 4, loss: Floats | None = None
) -> Indices | None:
    """A point that was feasible by estimates, repaired until it is so by exact costs; None when it is not.

    ``loss`` as in `repair`.
    """
    found: Indices | None = start
    for _ in range(attempts):
        if found is None:
            return None
        exact = pricer.exact(found)
        if not pricer.budget.why_not(exact):
            return found
        found = repair(pricer, found, budget=pricer.tightened(found, exact), loss=loss, refill=False)
    return None


def random_feasible(pricer: Pricer, rng: np.random.Generator, budget: Budget | None = None) -> Indices | None:
    """A uniformly random point, repaired with random preferences and grown back to the budget."""
    start = rng.integers(0, pricer.space.cardinalities, dtype=np.int64)
    return repair(pricer, start, budget=budget, rng=rng)


def descend(pricer: Pricer, start: Indices, value: Callable[[Indices], Floats], rounds: int = 8) -> Indices:
    """Local minimum of ``value`` (indices (P, d) to (P,)) over changes of single coordinates.

    Each round prices every single change at once, then the improving ones applied one after another,
    best first, and moves to the best of all.
    """
    point, best = start, float(value(start[None])[0])
    coordinate = np.repeat(np.arange(len(start)), pricer.space.cardinalities)
    setting = np.concatenate([np.arange(c) for c in pricer.space.cardinalities]) if len(start) else coordinate
    for _ in range(rounds):
        singles = np.repeat(point[None], len(coordinate), axis=0)
        singles[np.arange(len(coordinate)), coordinate] = setting
        values = value(singles)
        order = [k for k in np.lexsort((np.arange(len(values)), values)) if values[k] < best]
        first: dict[int, int] = {}
        for k in order:
            first.setdefault(int(coordinate[k]), int(setting[k]))
        if not first:
            break
        path = np.repeat(point[None], len(first), axis=0)
        for row, (i, v) in enumerate(first.items()):
            path[row:, i] = v
        along = value(path)
        row = int(np.argmin(along))
        point, best = path[row], float(along[row])
    return point


def anchors(pricer: Pricer) -> tuple[Indices, Indices]:
    """The points of least excess and of least latency found by coordinate descent; computed once."""
    if pricer.anchors is None:
        starts = _corners(pricer)
        least = _best_descent(pricer, starts, pricer.latency)
        tight = least if pricer.excess(least[None])[0] <= 0 else _best_descent(pricer, starts, pricer.excess)
        pricer.anchors = (tight, least)
    return pricer.anchors


def smallest_reachable(
    problem: Problem, pricer: Pricer | None = None
) -> tuple[dict[str, float], ResolvedPolicy]:
    """Costs and policy of the least latency found (point or risk bound, as the budget judges it).

    Deterministic; some thousand predictions and no evaluation.
    """
    own = pricer or Pricer(problem)
    point = anchors(own)[1]
    return own.exact(point), own.policy(point)


def require_feasible(problem: Problem, pricer: Pricer | None = None) -> None:
    """Raise NothingFeasibleError (exit code 4) when no policy found holds the budget."""
    own = pricer or Pricer(problem)
    tight, least = anchors(own)
    costs = own.exact(tight)
    lowest = own.exact(least)
    if not problem.budget.why_not(costs) or not problem.budget.why_not(lowest):
        return
    key = problem.budget.latency_key
    smallest = lowest[key]
    raise NothingFeasibleError(
        f"nothing feasible: at best {problem.budget.why_not(costs)}. "
        f"Smallest reachable {key}: {smallest:.4g}.\n"
        "Raise the limit, or give the search more methods, fewer bits or a smaller --min-keep."
    )


def _corners(pricer: Pricer) -> list[Indices]:
    """Starts of the descent: every kind at its first or last value, plus fixed random points."""
    rng = np.random.default_rng(0)
    found = [np.zeros_like(pricer.top)]
    for kinds in (("rank",), ("act_bits", "weight_bits"), ("removed",), ("rank", "act_bits", "weight_bits")):
        corner = np.where(np.isin(pricer.kinds, kinds), pricer.top, 0)
        found.append(corner.astype(np.int64))
    found += [rng.integers(0, pricer.space.cardinalities, dtype=np.int64) for _ in range(2)]
    return found


def _best_descent(pricer: Pricer, starts: Sequence[Indices], value: Callable[[Indices], Floats]) -> Indices:
    first = value(np.stack(starts))
    chosen = np.lexsort((np.arange(len(first)), first))[:2]
    ends = np.stack([descend(pricer, starts[int(k)], value) for k in chosen])
    best: Indices = ends[int(np.argmin(value(ends)))]
    return best


def _path(start: Indices, order: Sequence[int], sign: int) -> Indices:
    """``start`` and the points after each unit step, shape (L + 1, d)."""
    moves = np.zeros((len(order) + 1, len(start)), dtype=np.int64)
    moves[np.arange(1, len(order) + 1), list(order)] = sign
    path: Indices = start[None] + np.cumsum(moves, axis=0)
    return path


def _blend(start: Indices, end: Indices, order: Sequence[int]) -> Indices:
    path = np.repeat(start[None], len(order) + 1, axis=0)
    for row, i in enumerate(order, start=1):
        path[row:, i] = end[i]
    return path


def _first_feasible(pricer: Pricer, budget: Budget, path: Indices) -> Indices | None:
    coarse = np.unique(np.linspace(0, len(path) - 1, COARSE + 1).round().astype(int))
    held = np.flatnonzero(pricer.feasible(path[coarse], budget))
    if not len(held):
        return None
    hit = int(held[0])
    between = np.arange(coarse[hit - 1] + 1, coarse[hit]) if hit else coarse[:0]
    finer = np.flatnonzero(pricer.feasible(path[between], budget)) if len(between) else between
    found: Indices = path[between[finer[0]]] if len(finer) else path[coarse[hit]]
    return found


def _last_feasible(pricer: Pricer, budget: Budget, path: Indices, least: int = 0) -> Indices:
    """The last feasible point of a path whose point ``least`` is known to be feasible."""
    coarse = np.unique(np.linspace(least, len(path) - 1, COARSE + 1).round().astype(int))
    held = np.flatnonzero(pricer.feasible(path[coarse], budget))
    hit = int(held[-1]) if len(held) else 0
    between = np.arange(coarse[hit] + 1, coarse[hit + 1]) if hit + 1 < len(coarse) else coarse[:0]
    finer = np.flatnonzero(pricer.feasible(path[between], budget)) if len(between) else between
    found: Indices = path[between[finer[-1]]] if len(finer) else path[coarse[hit]]
    return found
