"""Least summed loss within a budget whose costs are a black box: allocate exactly, price, correct, exchange.

Around a reference the costs of single changes are taken to add up; the allocation problem that results is
solved exactly, its solution priced, the limits moved by how far the sum was off, and the solution becomes the
next reference: sequential separable programming, each subproblem solved to the optimum over integers. Ends
with exchanges of pairs, judged by real prices, until none helps. Deterministic throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .allocation import Allocation, solve
from .contract import Budget
from .cost_model import Singles, assigned, cost_table, options, singles
from .ladder import ladder, nearest_first
from .loss_table import LossTable, separable_loss
from .pair_model import refine
from .pricing import Indices, Pricer
from .repair import repair

Floats = NDArray[np.float64]
#: Costs of single changes by the policy (its bytes) and the names of the costs.
Known = dict[tuple[bytes, tuple[str, ...]], Singles]

#: References tried from one start; from the best start; corrections of the limits around one reference.
ROUNDS, MORE_ROUNDS, CORRECTIONS = 2, 4, 3
#: A limit is used well from this share of it on; it is widened at most so far where estimates are too high.
USED, WIDEST = 0.985, 1.25
#: Partial sums kept where several limits are allocated at once.
CELLS = {2: 48}
MANY_CELLS = 12
#: Exchanges priced at once, and how far over a limit the sum of two changes may be for them to be priced.
EXCHANGES, DOUBT = 64, 0.02
#: Policies whose single changes' costs are kept.
REMEMBERED = 64
#: Each level of a ladder below the budget, relative to the one before.
LEVEL = 0.85
#: Relative error of estimates at a solution beyond which prices are exact from there on: an optimum finds the
#: policies that estimates are too low for.
TRUST = 0.06


@dataclass(frozen=True)
class Solution:
    """A policy of least summed loss within a budget: value indices (d,), that loss, latency, why.

    ``pricer``: whose prices it was found by, the estimates' or, where those are off, the exact ones.
    """

    indices: Indices
    loss: float
    latency: float
    origin: str
    budget: Budget
    pricer: Pricer


def allocate(
    pricer: Pricer,
    losses: LossTable,
    budget: Budget,
    starts: Sequence[Indices] = (),
    *,
    rounds: int = ROUNDS,
    more: int = MORE_ROUNDS,
) -> Indices | None:
    """Value indices (d,) of least `separable_loss` found within ``budget`` by the pricer's prices, or None.

    ``starts``: references to begin from, besides which none is tried; default: `references`. ``rounds``: how
    many references follow from each of them, ``more``: from the best end. One reference costs as many prices
    as there are single changes.
    """
    if not budget.limits:
        return pricer.top.copy()
    known: Known = {}
    ends = [_sequence(pricer, losses, budget, s, rounds, known) for s in starts or references(pricer, budget)]
    found = _best(pricer, losses, budget, [e for e in ends if e is not None])
    if found is None:
        start = repair(pricer, pricer.top, budget=budget, loss=losses.loss[:, 0])
        return None if start is None else improve(pricer, losses, budget, start)
    end = _sequence(pricer, losses, budget, found, more, known)
    found = _best(pricer, losses, budget, [found] if end is None else [end, found])
    return None if found is None else improve(pricer, losses, budget, found, rounds=min(more, 3))


def reallocate(
    pricer: Pricer, losses: LossTable, budget: Budget, at: Indices, known: Known | None = None
) -> Indices | None:
    """The best feasible allocation with costs taken from changes of ``at`` alone: quick, not improved.

    ``known``: costs around policies met before, of this pricer; what is found out is added.
    """
    if not budget.limits:
        return pricer.top.copy()
    return _sequence(pricer, losses, budget, at, 1, {} if known is None else known)


def references(pricer: Pricer, budget: Budget) -> list[Indices]:
    """Where allocation starts: nothing compressed, lowest bits, and per precision the largest uniform fit."""
    rungs = ladder(pricer)
    excess = pricer.excess(np.stack([r.indices for r in rungs]), budget)
    fitting = nearest_first([replace(r, excess=float(e)) for r, e in zip(rungs, excess, strict=True)])
    heads = {r.precision: r.indices for r in reversed(fitting)}
    rows = [pricer.top, pricer.quantised, *heads.values()]
    return list({r.tobytes(): r for r in rows}.values())


def improve(pricer: Pricer, losses: LossTable, budget: Budget, start: Indices, *, rounds: int = 3) -> Indices:
    """Lower the summed loss of a feasible policy by changes of one or two coordinates, by real prices.

    Every round prices the most promising exchanges, then those that help applied one after another.
    """
    point, best = start, float(separable_loss(losses, start[None])[0])
    for _ in range(rounds):
        around = singles(pricer, losses, point, tuple(budget.limits))
        rows = exchanges(losses, around, budget, better=True).rows(slice(0, EXCHANGES))
        rows = rows[pricer.feasible(rows, budget)]
        gains = best - separable_loss(losses, rows)
        rows = rows[np.argsort(-gains, kind="stable")][: int((gains > 0).sum())]
        if not len(rows):
            break
        path = _applied(point, rows)
        path = np.concatenate([rows[:1], path[pricer.feasible(path, budget)]])
        along = separable_loss(losses, path)
        point, best = path[int(np.argmin(along))], float(along.min())
    return point


def neighbours(pricer: Pricer, losses: LossTable, budget: Budget, at: Indices) -> Iterator[Indices]:
    """Feasible policies one or two changes away from ``at``, by rising summed loss; priced in batches."""
    around = singles(pricer, losses, at, tuple(budget.limits))
    every = exchanges(losses, around, budget, better=False)
    for start in range(0, len(every.coordinates), EXCHANGES):
        rows = every.rows(slice(start, start + EXCHANGES))
        yield from rows[pricer.feasible(rows, budget)]


@dataclass(frozen=True)
class Exchanges:
    """Changes of one coordinate (given twice) or two of ``at`` (d,): which, and to what values, (E, 2)."""

    at: Indices
    coordinates: NDArray[np.int64]
    values: NDArray[np.int64]

    def rows(self, which: slice) -> Indices:
        """Value indices after the exchanges, (E', d)."""
        coordinates, values = self.coordinates[which], self.values[which]
        found: Indices = np.repeat(self.at[None], len(coordinates), axis=0)
        for k in (0, 1):
            found[np.arange(len(found)), coordinates[:, k]] = values[:, k]
        return found


def exchanges(losses: LossTable, around: Singles, budget: Budget, *, better: bool) -> Exchanges:
    """Changes of one or two coordinates that may hold the budget, by rising summed loss.

    ``better``: only those that lower it. Costs of two changes are taken to add up, with some doubt.
    """
    at, counted = around.at, losses.counted(around.at[None])[0]
    i, v = np.nonzero(np.isfinite(losses.loss))
    live = (v != at[i]) & counted[i]
    i, v = i[live], v[live]
    rows = np.repeat(at[None], len(i), axis=0)
    rows[np.arange(len(i)), i] = v
    here = float(separable_loss(losses, at[None])[0])
    gain, extra = here - separable_loss(losses, rows), around.delta[i, v]
    limits = np.array([budget.limits[n] for n in around.names])
    room = limits - around.base + DOUBT * np.abs(limits)
    least = 1e-12 * max(abs(here), 1e-12) if better else -np.inf
    alone = np.flatnonzero((gain > least) & (extra <= room).all(axis=1))
    both = gain[:, None] + gain[None]
    good = (both > least) & (i[:, None] < i[None])
    for b in range(len(limits)):
        good &= extra[:, None, b] + extra[None, :, b] <= room[b]
    p, q = np.nonzero(good)
    first, second = np.r_[alone, p], np.r_[alone, q]
    order = np.argsort(-np.r_[gain[alone], both[p, q]], kind="stable")
    pair = np.stack([first, second], axis=1)[order]
    return Exchanges(at, i[pair], v[pair])


def variant(around: Singles, pricer: Pricer, losses: LossTable, budget: Budget) -> Indices | None:
    """The policy of least loss by another table of losses, from prices around a solution; None where none is.

    One allocation and a few prices: no reference of its own.
    """
    met = _around(pricer, losses, budget, around)
    return _best(pricer, losses, budget, met)


def ladder_of_solutions(
    pricer: Pricer,
    losses: LossTable,
    budget: Budget | None = None,
    *,
    levels: int = 8,
    step: float = LEVEL,
    pairs: bool = False,
) -> Iterator[Solution]:
    """Solutions at the budget and then at tighter and tighter latencies, each ``step`` of the one before.

    Lazy: a level is computed when asked for, from the level above. Feasible by exact costs, also where the
    pricer's are estimates. Ends when nothing is feasible, or after ``levels``. ``pairs``: allocate the first
    level once more with costs of pairs, where prices are quick (some tenths of a second; rarely better).
    """
    limit, own = budget or pricer.budget, pricer
    starts: list[Indices] = []
    for k in range(levels):
        point, own = settled(own, losses, limit, starts)
        if point is None:
            return
        if pairs and k == 0 and own is pricer:
            better = refine(own, losses, limit, point)
            point = better if not limit.why_not(own.exact(better)) else point
        latency = float(own.latency(point[None])[0])
        loss = float(separable_loss(losses, point[None])[0])
        where = "the budget" if k == 0 else f"{limit.max_latency_ms:.4g} ms"
        yield Solution(point, loss, latency, f"exact: least summed loss within {where}", limit, own)
        limit = at_most(limit, min(latency, limit.max_latency_ms or np.inf) * step)
        starts = [point] if k % 3 or own is not pricer else [point, *references(pricer, limit)]


def settled(
    pricer: Pricer, losses: LossTable, budget: Budget, starts: Sequence[Indices] = ()
) -> tuple[Indices | None, Pricer]:
    """`allocate`, so that the result holds ``budget`` by exact costs; and the pricer to go on with.

    Where prices are estimates and nearly right, limits are moved by what exact costs say. Where they are
    off by more than TRUST, the solution is the start of an allocation by exact prices.
    """
    if pricer.problem.estimates is None:
        few = 1 if starts else ROUNDS  # exact prices may take milliseconds each
        return allocate(pricer, losses, budget, starts, rounds=few, more=few), pricer
    limit, best, lowest, seen = budget, None, np.inf, set[bytes]()
    for _ in range(CORRECTIONS):
        point = allocate(pricer, losses, limit, starts)
        if point is None or point.tobytes() in seen:
            break
        seen.add(point.tobytes())
        exact = pricer.exact(point)
        if _error(pricer, point, exact) > TRUST:
            exactly = Pricer(replace(pricer.problem, estimates=None))
            return allocate(exactly, losses, budget, [point], rounds=1, more=ROUNDS), exactly
        holds, loss = not budget.why_not(exact), float(separable_loss(losses, point[None])[0])
        if holds and loss < lowest:
            best, lowest = point, loss
        if holds and max((exact[n] / v for n, v in budget.limits.items()), default=1.0) >= USED:
            break
        limit = pricer.tightened(point, exact, budget, most=WIDEST)
        starts = [point]
    return best, pricer


def _error(pricer: Pricer, point: Indices, exact: dict[str, float]) -> float:
    """Largest relative error of the estimates of what the budget limits."""
    estimated = cost_table(pricer, point[None], tuple(pricer.budget.limits))[0]
    return max(
        (
            abs(e / exact[n] - 1.0)
            for n, e in zip(pricer.budget.limits, estimated, strict=True)
            if exact[n] > 0
        ),
        default=0.0,
    )


def at_most(budget: Budget, latency_ms: float) -> Budget:
    """The budget with its latency limit lowered to ``latency_ms``."""
    return replace(budget, max_latency_ms=float(min(latency_ms, budget.max_latency_ms or np.inf)))


def _sequence(
    pricer: Pricer,
    losses: LossTable,
    budget: Budget,
    start: Indices,
    rounds: int,
    known: Known,
) -> Indices | None:
    """Feasible policy of least loss met on the way from reference to reference; None where none was."""
    at, held = start, [start] if pricer.feasible(start[None], budget)[0] else []
    for _ in range(rounds):
        met = _around(pricer, losses, budget, _changes(pricer, losses, budget, at, known))
        if not met:
            break
        held += [p for p, ok in zip(met, pricer.feasible(np.stack(met), budget), strict=True) if ok]
        best = _best(pricer, losses, budget, held)
        following = met[-1] if best is None else best
        if (following == at).all():
            break
        at = following
    return _best(pricer, losses, budget, held)


def _changes(pricer: Pricer, losses: LossTable, budget: Budget, at: Indices, known: Known) -> Singles:
    """Costs of single changes of ``at``, looked up or priced."""
    names = tuple(budget.limits)
    key = (at.tobytes(), names)
    if key not in known:
        if len(known) >= REMEMBERED:
            known.clear()
        known[key] = singles(pricer, losses, at, names)
    return known[key]


def _around(pricer: Pricer, losses: LossTable, budget: Budget, around: Singles) -> list[Indices]:
    """Allocations around one reference, the limits moved each time by what the last one was mispriced."""
    problem = options(around, losses, pricer.space.cardinalities)
    items = [o.item for o in problem]
    limits = np.array([budget.limits[n] for n in around.names])
    cells = None if len(limits) == 1 else CELLS.get(len(limits), MANY_CELLS)
    found: list[Indices] = []
    error = np.zeros(len(limits))
    for _ in range(CORRECTIONS):
        chosen: Allocation | None = solve(items, limits - around.base - error, cells=cells)
        if chosen is None:
            break
        point = assigned(around.at, problem, chosen.choices)
        costs = cost_table(pricer, point[None], around.names)[0]
        repeated = any((point == p).all() for p in found)
        found.append(point)
        used = costs / limits
        if repeated or ((used <= 1).all() and used.max(initial=1.0 if not len(limits) else 0.0) >= USED):
            break
        error = costs - around.base - chosen.cost
    return found


def _best(pricer: Pricer, losses: LossTable, budget: Budget, rows: Sequence[Indices]) -> Indices | None:
    """The feasible row of least loss, of equals the quickest; None of none."""
    if not rows:
        return None
    table = np.stack(rows)
    order = np.lexsort((pricer.latency(table), separable_loss(losses, table)))
    held = pricer.feasible(table, budget)
    return next((table[k] for k in order if held[k]), None)


def _applied(start: Indices, rows: Indices) -> Indices:
    """``start`` after one change after another, those that touch what an earlier one touched left out."""
    point, touched, path = start.copy(), np.zeros(len(start), dtype=bool), []
    for row in rows:
        changed = row != start
        if not (changed & touched).any():
            point = np.where(changed, row, point)
            touched |= changed
            path.append(point)
    return np.stack(path)
