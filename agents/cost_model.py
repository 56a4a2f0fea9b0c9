"""Costs around a policy: what every single change costs, as a problem that can be allocated exactly.

Costs come from a black box (a predictor), so they are asked for: an ANOVA of the first order, anchored at a
reference. What is chosen inside a removed block costs nothing; such coordinates are priced with the block in
place, and block and contents become one item: removed, or the front of what can be done inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .allocation import Front, Item, front, nondominated
from .loss_table import LossTable
from .pricing import Indices, Pricer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Partial sums kept of what can be done inside a block, by the number of limits.
CELLS = {1: 128, 2: 16}
MANY_CELLS = 8
#: Stands for a cost that is not known or not finite, in units of the reference's.
UNKNOWN = 1e6


@dataclass(frozen=True)
class Singles:
    """Costs ``names`` at the reference ``at`` (d,), (B,), and what every single change adds, (d, V, B).

    A coordinate inside a removed block is changed, and compared, with that block in place.
    """

    at: Indices
    names: tuple[str, ...]
    base: Floats
    delta: Floats


@dataclass(frozen=True)
class Options:
    """One item of the allocation: coordinates (k,) that it sets, and the values of each choice, (C, k)."""

    columns: Ints
    values: Ints
    item: Item


def cost_table(pricer: Pricer, indices: Indices, names: Sequence[str]) -> Floats:
    """Costs of policies (P, d) by name, (P, B)."""
    if not names:
        return np.zeros((len(indices), 0))
    priced = pricer.price(indices)
    return np.stack([np.asarray(priced[n], dtype=float) for n in names], axis=1)


def singles(pricer: Pricer, losses: LossTable, at: Indices, names: Sequence[str]) -> Singles:
    """Price every single change around ``at``: sum of the cardinalities many policies, one batch."""
    d, cards = len(at), pricer.space.cardinalities
    refs = np.repeat(at[None], d, axis=0)
    for j in range(d):
        above = np.flatnonzero(losses.hides[:, j])
        refs[j, above] = pricer.top[above]
    coordinate = np.repeat(np.arange(d), cards)
    setting = np.concatenate([np.arange(c) for c in cards]) if d else coordinate
    rows = refs[coordinate]
    rows[np.arange(len(rows)), coordinate] = setting
    costs = cost_table(pricer, np.concatenate([at[None], refs, rows]), names)
    base = costs[0]
    costs = np.where(np.isfinite(costs), costs, UNKNOWN * np.maximum(np.abs(base), 1.0))
    delta = np.full((d, int(cards.max(initial=1)), len(names)), np.inf)
    delta[coordinate, setting] = costs[1 + d :] - costs[1 : 1 + d][coordinate]
    return Singles(at, tuple(names), base, delta)


def options(found: Singles, losses: LossTable, cards: Ints) -> list[Options]:
    """The allocation problem around a reference: costs relative to it, blocks with all that is in them."""
    children: dict[int, list[int]] = {}
    for j, p in enumerate(losses.parent):
        children.setdefault(int(p), []).append(j)
    return [_options(j, children, found, losses, cards) for j in children.get(-1, [])]


def _options(
    j: int, children: dict[int, list[int]], found: Singles, losses: LossTable, cards: Ints
) -> Options:
    n = int(cards[j])
    own = Item(losses.loss[j, :n], found.delta[j, :n])
    inside = [_options(k, children, found, losses, cards) for k in children.get(j, [])]
    if not inside:
        rows = np.sort(nondominated(own.loss, own.cost))
        return Options(np.array([j]), np.arange(n)[rows, None], Item(own.loss[rows], own.cost[rows]))
    kept = combined(inside)
    columns = np.concatenate([[j], kept.columns])
    gone = np.r_[0, found.at[kept.columns]]
    there = np.column_stack([np.full(len(kept.values), n - 1), kept.values])
    return Options(
        columns,
        np.concatenate([gone[None], there]),
        Item(
            np.r_[own.loss[0], own.loss[n - 1] + kept.item.loss],
            np.concatenate([own.cost[:1], own.cost[n - 1] + kept.item.cost]),
        ),
    )


def combined(inside: Sequence[Options]) -> Options:
    """Several items as one whose choices are their front, to the resolution of CELLS."""
    width = inside[0].item.cost.shape[1]
    every: Front = front([o.item for o in inside], cells=CELLS.get(width, MANY_CELLS) if width else None)
    values = [o.values[every.choices[:, k]] for k, o in enumerate(inside)]
    columns = np.concatenate([o.columns for o in inside])
    return Options(columns, np.concatenate(values, axis=1), Item(every.loss, every.cost))


def assigned(at: Indices, problem: Sequence[Options], choices: Ints) -> Indices:
    """Value indices (d,) of an allocation of ``problem``."""
    point = at.copy()
    for o, c in zip(problem, choices, strict=True):
        point[o.columns] = o.values[c]
    return point
