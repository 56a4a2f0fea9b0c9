"""Exact allocation: one choice for every item, least summed loss within limits on summed costs.

The multiple-choice knapsack problem that mixed precision and pruning ratios come down to once losses and
costs are taken to add up. Solved by a dynamic programme over non-dominated partial sums (Nemhauser & Ullmann
1969), whose states are bounded by the linear relaxation (Sinha & Zoltners 1979): what cannot beat the greedy
solution any more is dropped. No grid and no rounding, unless ``cells`` asks for one.

Costs may be negative and need not be monotone in the choice. `agents.allocation_milp` solves the same with
costs of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import AgentError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Relative slack of a limit: sums of floats in another order differ by less.
ROUNDING = 1e-12
#: Non-dominated rows that are compared with others at once.
CHUNK = 256


@dataclass(frozen=True)
class Item:
    """One decision: the loss of each of its choices, (C,), and their costs, (C, B). Lower is better."""

    loss: Floats
    cost: Floats

    def __post_init__(self) -> None:
        if self.loss.ndim != 1 or self.cost.shape[:1] != self.loss.shape or self.cost.ndim != 2:
            raise AgentError(f"an item of {self.loss.shape} losses has costs of shape {self.cost.shape}.")
        if not (np.isfinite(self.loss).all() and np.isfinite(self.cost).all()):
            raise AgentError("an item has a loss or a cost that is not finite.")


@dataclass(frozen=True)
class Allocation:
    """The choice of every item, (n,), its summed loss and costs (B,).

    ``gap``: how far the loss may be from the optimum, relative to it; 0 when it is the optimum.
    """

    choices: Ints
    loss: float
    cost: Floats
    gap: float = 0.0


@dataclass(frozen=True)
class Front:
    """Every non-dominated allocation: loss (S,), cost (S, B), choices (S, n), by rising first cost."""

    loss: Floats
    cost: Floats
    choices: Ints

    def within(self, limits: Floats) -> int | None:
        """Row of the least loss that holds ``limits`` (B,), None where none does."""
        held = np.flatnonzero((self.cost <= slack(limits)).all(axis=1))
        return int(held[np.argmin(self.loss[held])]) if len(held) else None


@dataclass(frozen=True)
class _States:
    """Partial sums; ``parent`` and ``choice`` lead back through the stages."""

    loss: Floats
    cost: Floats
    parent: Ints
    choice: Ints


@dataclass(frozen=True)
class _Relaxation:
    """Linear relaxation of the last items under one limit: what is left of the limit to the least loss."""

    least: float
    spent: Floats
    saved: Floats

    def __call__(self, left: Floats) -> Floats:
        return self.least - np.interp(left, self.spent, self.saved)


def slack(limits: Floats) -> Floats:
    """Limits with the tolerance of summing in another order, shape as given."""
    return limits + ROUNDING * np.abs(limits)


def total(items: Sequence[Item], choices: Ints) -> tuple[float, Floats]:
    """Summed loss and costs (B,) of the choices (n,)."""
    loss = float(sum(item.loss[c] for item, c in zip(items, choices, strict=True)))
    cost = np.sum([item.cost[c] for item, c in zip(items, choices, strict=True)], axis=0)
    return loss, np.asarray(cost, dtype=float)


def tied(items: Sequence[Item], ties: Sequence[Sequence[int]]) -> tuple[list[Item], Ints]:
    """Items that must choose alike made one, and which of the new items each old one (n,) belongs to.

    Raises AgentError where tied items have different numbers of choices.
    """
    owner = np.arange(len(items))
    if not ties:
        return list(items), owner
    for group in ties:
        low = min(int(owner[i]) for i in group)
        for i in group:
            owner[owner == owner[i]] = low
    names, where = np.unique(owner, return_inverse=True)
    merged = []
    for name in names:
        members = [items[int(i)] for i in np.flatnonzero(owner == name)]
        if len({len(m.loss) for m in members}) > 1:
            raise AgentError("items that must choose alike have different numbers of choices.")
        merged.append(Item(sum(m.loss for m in members), sum(m.cost for m in members)))  # type: ignore[arg-type]
    return merged, np.asarray(where, dtype=np.int64)


def nondominated(loss: Floats, cost: Floats) -> Ints:
    """Rows that no other one equals or betters in loss (S,) and every cost (S, B); of equals the first.

    By rising cost where there is one, else by rising loss.
    """
    if cost.shape[1] == 0:
        return np.array([np.argmin(loss)], dtype=np.int64) if len(loss) else np.zeros(0, dtype=np.int64)
    if cost.shape[1] == 1:
        order = np.lexsort((loss, cost[:, 0]))
        ordered = loss[order]
        better = np.ones(len(order), dtype=bool)
        better[1:] = ordered[1:] < np.minimum.accumulate(ordered)[:-1]
        return np.asarray(order[better])
    order = np.lexsort((*cost.T[::-1], loss))
    kept = np.zeros((0, cost.shape[1]))
    rows: list[Ints] = []
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        dominated: Mask = np.asarray((kept[None] <= cost[chunk][:, None]).all(axis=2))
        chunk = chunk[~dominated.any(axis=1)]
        c = cost[chunk]
        earlier: Mask = np.tril(np.asarray((c[None] <= c[:, None]).all(axis=2)), k=-1)
        worse = earlier.any(axis=1)
        rows.append(chunk[~worse])
        kept = np.concatenate([kept, c[~worse]])
    return np.concatenate(rows) if rows else order


def solve(
    items: Sequence[Item], limits: Floats, *, ties: Sequence[Sequence[int]] = (), cells: int | None = None
) -> Allocation | None:
    """The allocation of least loss whose summed costs hold ``limits`` (B,); None where none does.

    Of equal losses the one of least first cost. ``ties``: groups of items that choose alike.
    ``cells``: keep the best partial sum in each of so many steps of every limit: quicker with several limits,
    feasible, but no longer surely the optimum.
    """
    own, where = tied(items, ties)
    least = np.array([item.cost.min(axis=0) for item in own]).reshape(len(own), len(limits))
    left = slack(np.asarray(limits, dtype=float)) - least.sum(axis=0)
    if (left < 0).any():
        return None
    rows = [nondominated(item.loss, item.cost) for item in own]
    # Large items first: what they leave open is decided while there are few states.
    order = sorted(range(len(own)), key=lambda i: (-_spread(own[i], left), i))
    shifted = [Item(own[i].loss[rows[i]], own[i].cost[rows[i]] - least[i]) for i in order]
    found = _programme(shifted, left, cells)
    if found is None:
        return None
    choices = np.zeros(len(own), dtype=np.int64)
    for at, i in enumerate(order):
        choices[i] = rows[i][found[at]]
    loss, cost = total(items, choices[where])
    return Allocation(choices[where], loss, cost)


def front(items: Sequence[Item], limits: Floats | None = None, *, cells: int | None = None) -> Front:
    """Every non-dominated allocation (within ``limits`` (B,), where given).

    The number of them can double with each item where costs have no common grid: give ``cells`` to keep the
    best in each of so many steps of every cost's range.
    """
    width = items[0].cost.shape[1] if items else 0
    least = np.array([item.cost.min(axis=0) for item in items]).reshape(len(items), width)
    most = np.array([item.cost.max(axis=0) for item in items]).reshape(len(items), width)
    top = (most.sum(axis=0) if limits is None else slack(np.asarray(limits, dtype=float))) - least.sum(axis=0)
    shifted = [Item(item.loss, item.cost - low) for item, low in zip(items, least, strict=True)]
    stages = [_start(width)]
    for item in shifted:
        stages.append(_thinned(_merged(stages[-1], item, top, None, np.inf), top, cells))
    last = stages[-1]
    choices = _choices(stages, np.arange(len(last.loss)))
    return Front(last.loss, last.cost + least.sum(axis=0), choices)


def _programme(items: Sequence[Item], limits: Floats, cells: int | None) -> Ints | None:
    """Choices (n,) of least loss; costs are 0 or more, every item has one of cost 0 for every limit."""
    hulls = [[_hull(item.loss, item.cost[:, b]) for item in items] for b in range(len(limits))]
    relaxed = _relaxations(items, hulls)
    best, greedy = _greedy(items, limits, hulls[0] if len(limits) == 1 else None)
    stages = [_start(len(limits))]
    for k, item in enumerate(items):
        bound = best + 1e-12 * max(abs(best), 1.0)
        stages.append(_thinned(_merged(stages[-1], item, limits, relaxed[k + 1], bound), limits, cells))
        if not len(stages[-1].loss):
            return greedy
    last = stages[-1]
    row = int(np.lexsort((last.cost[:, 0] if last.cost.shape[1] else last.loss, last.loss))[0])
    if greedy is not None and last.loss[row] > best:
        return greedy
    found: Ints = _choices(stages, np.array([row]))[0]
    return found


def _start(width: int) -> _States:
    none = np.zeros(1, dtype=np.int64)
    return _States(np.zeros(1), np.zeros((1, width)), none, none)


def _merged(
    states: _States, item: Item, limits: Floats, relaxed: Sequence[_Relaxation] | None, best: float
) -> _States:
    """Every state with every choice, without those that are over a limit, hopeless or dominated."""
    n = len(item.loss)
    loss = (states.loss[:, None] + item.loss[None]).ravel()
    cost = (states.cost[:, None] + item.cost[None]).reshape(len(loss), -1)
    rows = np.flatnonzero((cost <= limits).all(axis=1) if len(limits) != 1 else cost[:, 0] <= limits[0])
    for b, bound in enumerate(relaxed or ()):
        rows = rows[loss[rows] + bound(limits[b] - cost[rows, b]) <= best]
    rows = rows[nondominated(loss[rows], cost[rows])]
    return _States(loss[rows], cost[rows], rows // n, rows % n)


def _thinned(states: _States, limits: Floats, cells: int | None) -> _States:
    """The best state in each cell of a grid of ``cells`` steps a limit; all of them where there are fewer."""
    if cells is None or len(states.loss) <= cells:
        return states
    grid = np.floor(states.cost / np.maximum(limits, 1e-300) * cells).astype(np.int64)
    key = np.zeros(len(grid), dtype=np.int64)
    for column in grid.T:
        key = key * (cells + 2) + column
    order = np.lexsort((states.loss, key))
    rows = np.sort(order[np.r_[True, np.diff(key[order]) != 0]])
    return _States(states.loss[rows], states.cost[rows], states.parent[rows], states.choice[rows])


def _choices(stages: Sequence[_States], rows: Ints) -> Ints:
    """Choices (R, n) that led to ``rows`` of the last stage."""
    found = np.zeros((len(rows), len(stages) - 1), dtype=np.int64)
    for k in range(len(stages) - 1, 0, -1):
        found[:, k - 1] = stages[k].choice[rows]
        rows = stages[k].parent[rows]
    return found


def _spread(item: Item, limits: Floats) -> float:
    """Largest share of a limit that the item's choices differ by."""
    ranges = (item.cost.max(axis=0) - item.cost.min(axis=0)) / np.maximum(limits, 1e-300)
    return float(ranges.max(initial=0.0))


def _hull(loss: Floats, cost: Floats) -> Ints:
    """Choices on the lower convex hull of loss over cost, from the cheapest (C,) on."""
    rows: list[int] = []
    lost, spent = loss.tolist(), cost.tolist()
    for i in nondominated(loss, cost[:, None]).tolist():
        while len(rows) > 1:
            a, b = rows[-2], rows[-1]
            if (lost[a] - lost[b]) * (spent[i] - spent[b]) > (lost[b] - lost[i]) * (spent[b] - spent[a]):
                break
            rows.pop()
        rows.append(i)
    return np.array(rows, dtype=np.int64)


def _relaxations(items: Sequence[Item], every: Sequence[Sequence[Ints]]) -> list[list[_Relaxation]]:
    """For every k the relaxation of the items from k on, limit by limit: (n + 1) x B.

    ``every``: hulls of the items, (B, n), by one cost after another.
    """
    found: list[list[_Relaxation]] = [[] for _ in range(len(items) + 1)]
    for b, hulls in enumerate(every):
        owner = np.repeat(np.arange(len(items)), [len(h) - 1 for h in hulls])
        ends = np.cumsum([len(h) for h in hulls])[:-1] - 1  # differences across items are left out
        costs = [item.cost[h, b] for item, h in zip(items, hulls, strict=True)]
        losses = [item.loss[h] for item, h in zip(items, hulls, strict=True)]
        spent = np.delete(np.diff(np.concatenate([np.zeros(0), *costs])), ends)
        saved = np.delete(-np.diff(np.concatenate([np.zeros(0), *losses])), ends)
        order = np.argsort(-saved / np.maximum(spent, 1e-300), kind="stable")
        owner, spent, saved = owner[order], spent[order], saved[order]
        first = np.array([x[0] for x in losses])
        on = owner >= np.arange(len(items) + 1)[:, None]
        sums = np.zeros((2, len(items) + 1, len(owner) + 1))
        np.cumsum(np.where(on, np.stack([spent, saved])[:, None], 0.0), axis=2, out=sums[:, :, 1:])
        for k in range(len(items) + 1):
            found[k].append(_Relaxation(float(first[k:].sum()), sums[0, k], sums[1, k]))
    return found


def _greedy(
    items: Sequence[Item], limits: Floats, hulls: Sequence[Ints] | None = None
) -> tuple[float, Ints | None]:
    """Loss and choices of the greedy solution: most loss saved per cost first, what does not fit passed over.

    Costs are summed as shares of their limits; ``hulls`` (n,) by that sum, where they are known.
    (inf, None) where the cheapest choices do not fit together.
    """
    unit = 1.0 / np.maximum(limits, 1e-300)
    shares = [item.cost @ unit for item in items]
    if hulls is None:
        hulls = [_hull(item.loss, share) for item, share in zip(items, shares, strict=True)]
    steps: list[tuple[float, int, int]] = []
    for i, (item, share, h) in enumerate(zip(items, shares, hulls, strict=True)):
        lost, cost = item.loss[h].tolist(), share[h].tolist()
        steps += [
            ((lost[j] - lost[j + 1]) / max(cost[j + 1] - cost[j], 1e-300), i, j) for j in range(len(h) - 1)
        ]
    at = [0] * len(items)
    start = np.sum([item.cost[h[0]] for item, h in zip(items, hulls, strict=True)], axis=0) + 0.0 * limits
    if (start > limits).any():
        return np.inf, None
    spent, most = start.tolist(), limits.tolist()
    costs = [item.cost[h].tolist() for item, h in zip(items, hulls, strict=True)]
    for _, i, j in sorted(steps, key=lambda s: (-s[0], s[1], s[2])):
        after = [s + c - b for s, c, b in zip(spent, costs[i][j + 1], costs[i][at[i]], strict=True)]
        if all(a <= m for a, m in zip(after, most, strict=True)):
            at[i], spent = j + 1, after
    choices = np.array([h[a] for h, a in zip(hulls, at, strict=True)], dtype=np.int64)
    return float(sum(item.loss[c] for item, c in zip(items, choices, strict=True))), choices
