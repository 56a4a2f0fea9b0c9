"""Costs to the second order around a policy, and allocation with them: pairs that interact, solved by MILP.

Pruning one group makes the layers that read it cheaper as well, so costs of single changes do not add up. An
ANOVA of the second order, anchored at a policy, takes pairs of changes from the predictor for coordinates
that touch a common layer; three-way terms are left to the correction of the limits. To keep the programme
small every coordinate is offered its present value and the few that are best at the present price of cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from compressors.space import PolicySpace

from .allocation import Item
from .allocation_milp import Pair, solve_milp
from .contract import Budget
from .cost_model import Singles, cost_table, singles
from .loss_table import LossTable, separable_loss
from .pricing import Indices, Pricer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Values offered to each coordinate; branch-and-bound nodes and relative gap at which HiGHS stops.
OFFERED, NODES, GAP = 3, 200, 1e-3
#: References tried, and corrections of the limits around each.
ROUNDS, CORRECTIONS = 2, 3
#: A pair that changes no cost by this share of its limit does not interact.
NEGLIGIBLE = 1e-5
#: Prices of cost that are tried to find the present one.
PRICES = 96


def refine(
    pricer: Pricer, losses: LossTable, budget: Budget, start: Indices, *, nodes: int = NODES
) -> Indices:
    """A feasible policy (d,) of at most the summed loss of the feasible ``start``, by MILP over pairs.

    Blocks that are removed stay so, with all that is in them. Deterministic: HiGHS ends by nodes, not time.
    """
    point, best = start, float(separable_loss(losses, start[None])[0])
    for _ in range(ROUNDS if budget.limits else 0):
        better = _refined(pricer, losses, budget, point, nodes)
        if better is None or (loss := float(separable_loss(losses, better[None])[0])) >= best - 1e-12:
            break
        point, best = better, loss
    return point


def touching(space: PolicySpace) -> NDArray[np.bool_]:
    """Which coordinates touch a common layer, or a tensor that one reads or writes; (d, d)."""
    structure = space.structure
    around: dict[str, set[str]] = {}
    for layer in structure.layers:
        for name in layer.nodes:
            node = structure.graph.by_name[name]
            for t in (*node.inputs, *node.outputs):
                around.setdefault(structure.tensor_group_of.get(t, ""), set()).add(layer.name)
    layers = [_touched(space, c.kind, c.subject, around) for c in space.choices]
    return np.array([[bool(a & b) for b in layers] for a in layers], dtype=bool).reshape(len(layers), -1)


def _touched(space: PolicySpace, kind: str, subject: str, around: dict[str, set[str]]) -> set[str]:
    if kind == "keep":
        return set(space.structure.group[subject].layers)
    if kind == "removed":
        return set(space.structure.block[subject].layers)
    return around.get(subject, set()) if kind == "act_bits" else {subject}


def offered(around: Singles, losses: LossTable, budget: Budget, most: int = OFFERED) -> list[Ints]:
    """Values of each coordinate worth choosing from: the present one and the best at the price of cost."""
    limits = np.array([budget.limits[n] for n in around.names])
    share = (around.delta / limits).max(axis=2) if len(limits) else np.zeros(losses.loss.shape)
    price = _price(share, losses, float(((limits - around.base) / limits).min(initial=1.0)))
    merit = np.where(
        np.isfinite(losses.loss), losses.loss + price * np.where(np.isfinite(share), share, 0), np.inf
    )
    counted = losses.counted(around.at[None])[0]
    found = []
    for i, present in enumerate(around.at):
        fixed = not counted[i] or (around.at[i] == 0 and losses.hides[i].any())
        ranked = [int(v) for v in np.argsort(merit[i], kind="stable") if np.isfinite(merit[i, v])]
        values = [int(present)] if fixed else [int(present), *(v for v in ranked if v != present)][:most]
        found.append(np.array(sorted(values), dtype=np.int64))
    return found


def pair_terms(
    pricer: Pricer, losses: LossTable, around: Singles, values: Sequence[Ints], limits: Floats
) -> list[Pair]:
    """What pairs of offered values cost besides their single changes; one batch of predictions.

    A removed block takes back what its contents were priced at, and their loss.
    """
    at, near = around.at, touching(pricer.space)
    open_ = [i for i, v in enumerate(values) if len(v) > 1]
    pairs = [
        (i, j) for i, j in combinations(open_, 2) if near[i, j] or losses.hides[i, j] or losses.hides[j, i]
    ]
    rows, places = [], []
    for k, (i, j) in enumerate(pairs):
        for a, u in enumerate(values[i]):
            for b, v in enumerate(values[j]):
                if u != at[i] and v != at[j]:
                    row = at.copy()
                    row[i], row[j] = u, v
                    rows.append(row)
                    places.append((k, a, b))
    if not rows:
        return []
    costs = cost_table(pricer, np.stack(rows), around.names)
    tables = [np.zeros((len(values[i]), len(values[j]), len(around.names))) for i, j in pairs]
    for (k, a, b), cost in zip(places, costs, strict=True):
        i, j = pairs[k]
        tables[k][a, b] = cost - around.base - around.delta[i, values[i][a]] - around.delta[j, values[j][b]]
    found = []
    for (i, j), table in zip(pairs, tables, strict=True):
        loss = _taken_back(i, j, values, losses)
        if loss is not None or (np.abs(table) > NEGLIGIBLE * np.abs(limits)).any():
            found.append(Pair(i, j, table, loss))
    return found


def _taken_back(i: int, j: int, values: Sequence[Ints], losses: LossTable) -> Floats | None:
    """Minus the loss of what stands in a removed block, where one of i and j removes the other's block."""
    if losses.hides[i, j]:
        return np.asarray(-np.outer(values[i] == 0, losses.loss[j, values[j]]))
    if losses.hides[j, i]:
        return np.asarray(-np.outer(losses.loss[i, values[i]], values[j] == 0))
    return None


def _refined(pricer: Pricer, losses: LossTable, budget: Budget, at: Indices, nodes: int) -> Indices | None:
    """Best feasible answer of the programme around ``at``, its limits moved by what it was mispriced."""
    around = singles(pricer, losses, at, tuple(budget.limits))
    limits = np.array([budget.limits[n] for n in around.names])
    values = offered(around, losses, budget)
    pairs = pair_terms(pricer, losses, around, values, limits)
    counted = losses.counted(at[None])[0]
    items = [
        Item(losses.loss[i, v] * counted[i], around.delta[i, v] * counted[i]) for i, v in enumerate(values)
    ]
    best, lowest, error = None, np.inf, np.zeros(len(limits))
    for _ in range(CORRECTIONS):
        chosen = solve_milp(items, limits - around.base - error, pairs, nodes=nodes, gap=GAP)
        if chosen is None:
            break
        point = np.array([v[c] for v, c in zip(values, chosen.choices, strict=True)], dtype=np.int64)
        costs = cost_table(pricer, point[None], around.names)[0]
        if (costs <= limits).all():
            loss = float(separable_loss(losses, point[None])[0])
            return point if loss < lowest else best
        error = costs - around.base - chosen.cost
    return best


def _price(share: Floats, losses: LossTable, left: float) -> float:
    """Loss per share of the budget at which coordinates, each choosing for itself, spend ``left`` of it."""
    finite = np.isfinite(losses.loss)
    loss, cost = np.where(finite, losses.loss, np.inf), np.where(finite & np.isfinite(share), share, 0.0)
    top = float(losses.loss[finite].max(initial=1.0))
    prices = np.geomspace(1e-4 * top, 1e4 * top, PRICES)
    for price in prices:
        picked = np.argmin(loss + price * cost, axis=1)
        if cost[np.arange(len(cost)), picked].sum() <= left:
            return float(price)
    return float(prices[-1])
