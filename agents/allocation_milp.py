"""Exact allocation with costs of pairs, as a mixed-integer linear programme solved by HiGHS.

What `agents.allocation.solve` does, plus terms that depend on the choices of two items: pruning one group
changes what the layers that read it cost. With a binary ``x[i, u]`` per choice, a product of two of them is
a ``y[i, j, u, v] >= 0`` whose sums over ``v`` and ``u`` are ``x[i, u]`` and ``x[j, v]``: exact for binary x,
and the tightest linear relaxation of one pair (Sherali & Adams 1990; the local polytope of MAP inference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .allocation import Allocation, Floats, Ints, Item, total
from .errors import AgentError

#: Feasibility tolerance asked of HiGHS, relative to a limit.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Pair:
    """What choices u of item ``first`` and v of ``second`` cost together, besides their own: (Cu, Cv, B).

    ``loss`` (Cu, Cv), where given, is added to the summed loss likewise.
    """

    first: int
    second: int
    cost: Floats
    loss: Floats | None = None


@dataclass(frozen=True)
class _Layout:
    """Where the variables stand: item i's from ``start[i]`` on, pair k's from ``pairs[k]`` on."""

    start: Ints
    pairs: Ints
    size: int


def pair_total(items: Sequence[Item], pairs: Sequence[Pair], choices: Ints) -> tuple[float, Floats]:
    """Summed loss and costs (B,) of the choices (n,), pairs included."""
    loss, cost = total(items, choices)
    for p in pairs:
        u, v = choices[p.first], choices[p.second]
        cost = cost + p.cost[u, v]
        loss += 0.0 if p.loss is None else float(p.loss[u, v])
    return loss, cost


def solve_milp(
    items: Sequence[Item],
    limits: Floats,
    pairs: Sequence[Pair] = (),
    *,
    ties: Sequence[Sequence[int]] = (),
    seconds: float | None = None,
    nodes: int | None = None,
    gap: float = 0.0,
) -> Allocation | None:
    """The allocation of least summed loss within ``limits`` (B,); None where none is, or none was found.

    ``ties``: groups of items that choose alike. ``seconds`` and ``nodes`` end the search early, ``gap`` once
    the loss is that close to the optimum, relatively; ``Allocation.gap`` says what was proven. Only a limit
    of ``seconds`` makes the answer depend on the machine. Raises AgentError where HiGHS gives up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not items:
        return Allocation(np.zeros(0, dtype=np.int64), 0.0, np.zeros(len(limits)))
    at = _layout(items, pairs)
    loss, cost = _objective(items, pairs, at, len(limits))
    integral = np.zeros(at.size)
    integral[: at.pairs[0] if len(pairs) else at.size] = 1
    rows = [LinearConstraint(*_equalities(items, pairs, ties, at))]
    if len(limits):
        # Rows scaled to limits of about 1, whatever the unit: the solver's tolerances are absolute.
        scale = np.maximum(np.abs(limits), 1e-300)
        rows.append(LinearConstraint(cost / scale[:, None], -np.inf, limits / scale))
    options: dict[str, Any] = {"mip_rel_gap": gap}
    options |= {"time_limit": seconds} if seconds is not None else {}
    options |= {"node_limit": nodes} if nodes is not None else {}
    unit = float(np.max(np.abs(loss), initial=0.0)) or 1.0
    found = milp(loss / unit, constraints=rows, integrality=integral, bounds=Bounds(0, 1), options=options)
    if found.x is None:
        if found.status in (1, 2):  # a limit of ours was reached, or infeasible
            return None
        raise AgentError(f"the integer programme was not solved: {found.message}")
    choices = np.array(
        [np.argmax(found.x[s : s + len(i.loss)]) for s, i in zip(at.start, items, strict=True)],
        dtype=np.int64,
    )
    value, spent = pair_total(items, pairs, choices)
    if (spent > limits + TOLERANCE * np.maximum(np.abs(limits), 1e-300) * 1e3).any():
        raise AgentError(f"the integer programme's answer costs {spent}, more than {limits}.")
    return Allocation(choices, value, spent, float(found.mip_gap) if found.mip_gap is not None else 0.0)


def _layout(items: Sequence[Item], pairs: Sequence[Pair]) -> _Layout:
    sizes = [len(i.loss) for i in items]
    products = [sizes[p.first] * sizes[p.second] for p in pairs]
    ends = np.cumsum([0, *sizes, *products])
    return _Layout(ends[: len(items)], ends[len(items) : -1], int(ends[-1]))


def _objective(
    items: Sequence[Item], pairs: Sequence[Pair], at: _Layout, width: int
) -> tuple[Floats, Floats]:
    """Loss (N,) and costs (B, N) of every variable."""
    loss, cost = np.zeros(at.size), np.zeros((width, at.size))
    for start, item in zip(at.start, items, strict=True):
        loss[start : start + len(item.loss)] = item.loss
        cost[:, start : start + len(item.loss)] = item.cost.T
    for start, p in zip(at.pairs, pairs, strict=True):
        flat = p.cost.reshape(-1, width)
        cost[:, start : start + len(flat)] = flat.T
        if p.loss is not None:
            loss[start : start + len(flat)] = p.loss.ravel()
    return loss, cost


def _equalities(
    items: Sequence[Item], pairs: Sequence[Pair], ties: Sequence[Sequence[int]], at: _Layout
) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """(matrix, right-hand side, the same again): one choice an item, products that add up, ties."""
    from scipy.sparse import csr_matrix

    rows: list[tuple[list[int], list[float], float]] = []
    for start, item in zip(at.start, items, strict=True):
        n = len(item.loss)
        rows.append((list(range(start, start + n)), [1.0] * n, 1.0))
    for start, p in zip(at.pairs, pairs, strict=True):
        table = start + np.arange(p.cost.shape[0] * p.cost.shape[1]).reshape(p.cost.shape[:2])
        for lines, i in ((table, p.first), (table.T, p.second)):
            for u, line in enumerate(lines):
                rows.append(([*line.tolist(), int(at.start[i]) + u], [1.0] * len(line) + [-1.0], 0.0))
    for group in ties:
        for a, b in pairwise(group):
            for u in range(len(items[a].loss)):
                rows.append(([int(at.start[a]) + u, int(at.start[b]) + u], [1.0, -1.0], 0.0))
    lengths = [len(columns) for columns, _, _ in rows]
    right = np.array([r for _, _, r in rows])
    matrix = csr_matrix(
        (
            np.concatenate([v for _, v, _ in rows]),
            (np.repeat(np.arange(len(rows)), lengths), np.concatenate([c for c, _, _ in rows])),
        ),
        shape=(len(rows), at.size),
    )
    return matrix, right, right
