"""Costs of many policies at once, with a memo: what agents repair and choose with."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compressors.policy import ResolvedPolicy

from .contract import LIMITS, Budget, Costs, Problem

if TYPE_CHECKING:
    from .ladder import Rung

#: Value index of every coordinate, shape (d,), or of several policies, shape (P, d).
Indices = NDArray[np.int64]
#: Rows kept in the memo: about 200 bytes each.
MEMO = 60_000


class Pricer:
    """Prices value indices of a problem's space. The memo never changes an answer, only its time.

    Prices are the problem's estimates where it has any; ``exact`` are its costs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.space = problem.space
        self.budget = problem.budget
        self.top: Indices = self.space.cardinalities - 1
        #: How many policies were priced by ``problem.costs``; for reports and benchmarks.
        self.priced = 0
        #: Points of least excess and least latency; filled by `repair.anchors`.
        self.anchors: tuple[Indices, Indices] | None = None
        #: The uniform policies; filled by `ladder.ladder`.
        self.rungs: list[Rung] | None = None
        # Policies to rows of the table of costs, whose columns are named.
        self._memo: dict[bytes, int] = {}
        self._table: NDArray[np.float64] = np.zeros((0, 0))
        self._names: tuple[str, ...] = ()
        self._enumerated: Indices | None = None

    def policy(self, indices: Indices) -> ResolvedPolicy:
        """The resolved policy of value indices (d,)."""
        return self.space.resolve_at(indices)

    def point(self, indices: Indices) -> tuple[float, ...]:
        """The point in [0, 1]^d of value indices (d,)."""
        return tuple(float(v) for v in np.where(self.top > 0, indices / np.maximum(self.top, 1), 1.0))

    def price(self, indices: Indices) -> Costs:
        """Costs of policies given as value indices (P, d)."""
        keys = [row.tobytes() for row in np.ascontiguousarray(indices, dtype=np.int64)]
        unknown = {k: i for i, k in enumerate(keys) if k not in self._memo}
        if unknown:
            if len(self._memo) + len(unknown) > MEMO:
                self._memo.clear()
                unknown = {k: i for i, k in enumerate(keys)}
            self._learn(unknown, indices)
        if not keys:
            return {n: np.zeros(0) for n in (self._names or ("latency_ms",))}
        table = self._table[[self._memo[k] for k in keys]]
        return {n: table[:, j] for j, n in enumerate(self._names)}

    def _learn(self, unknown: dict[bytes, int], indices: Indices) -> None:
        """Price the rows of ``indices`` that are not known, given by their keys."""
        quick = self.problem.estimates or self.problem.costs
        priced = quick([self.policy(indices[i]) for i in unknown.values()])
        self.priced += len(unknown)
        self._names = tuple(sorted(priced))
        begin, end = len(self._memo), len(self._memo) + len(unknown)
        if end > len(self._table):
            grown = np.zeros((max(1024, 2 * end), len(self._names)))
            grown[:begin] = self._table[:begin] if begin else 0.0
            self._table = grown
        self._table[begin:end] = np.stack([np.asarray(priced[n], dtype=float) for n in self._names], axis=1)
        self._memo.update(zip(unknown, range(begin, end), strict=True))

    def exact(self, indices: Indices) -> dict[str, float]:
        """Exact costs of one policy (d,), by name."""
        return {k: float(v[0]) for k, v in self.problem.costs([self.policy(indices)]).items()}

    def tightened(
        self, indices: Indices, exact: dict[str, float], budget: Budget | None = None, *, most: float = 1.0
    ) -> Budget:
        """The budget by whose estimates this policy holds just when it holds ``budget`` by exact costs.

        ``most``: largest factor of a limit; above 1 limits are widened where estimates are too high.
        """
        own = self.budget if budget is None else budget
        estimated = self.price(indices[None])
        limits = {}
        for field, cost in LIMITS.items():
            limit = getattr(own, field)
            key = own.latency_key if cost == "latency_ms" else cost
            if limit is not None and exact[key] > 0:
                limits[field] = float(limit * min(most, estimated[key][0] / exact[key]) * 0.995)
        return replace(own, **limits)

    def latency(self, indices: Indices) -> NDArray[np.float64]:
        """The latency that the budget judges, ms, shape (P,)."""
        return self.price(indices)[self.budget.latency_key]

    def excess(self, indices: Indices, budget: Budget | None = None) -> NDArray[np.float64]:
        """Largest relative excess over any limit, shape (P,): feasible where 0 or less; -1 without limits."""
        if len(indices) == 0:
            return np.zeros(0)
        found = (budget or self.budget).violations(self.price(indices))
        return found.max(axis=1) if found.shape[1] else np.full(len(indices), -1.0)

    def feasible(self, indices: Indices, budget: Budget | None = None) -> NDArray[np.bool_]:
        """Which policies hold every limit, shape (P,)."""
        return self.excess(indices, budget) <= 0

    def feasible_points(self, limit: int) -> Indices:
        """Every feasible point, largest first; none when the space has more than ``limit`` points."""
        if self.space.log10_size > np.log10(limit):
            return np.zeros((0, self.space.dimension), dtype=np.int64)
        if self._enumerated is None:
            sizes = tuple(int(c) for c in self.space.cardinalities)
            grid = np.indices(sizes, dtype=np.int64).reshape(len(sizes), -1).T if sizes else self.top[None]
            self._enumerated = grid[::-1][self.feasible(grid[::-1])]
        return self._enumerated

    @cached_property
    def savings(self) -> dict[str, NDArray[np.float64]]:
        """Share of each cost that a coordinate governs: cost name to shape (d,).

        Mean over two references, nothing compressed and everything at its lowest bits, of the cost at
        the coordinate's last value minus that at its first. An order of preference only, never a promise.
        """
        d = self.space.dimension
        found: dict[str, NDArray[np.float64]] = {}
        for ref in (self.top, self.quantised):
            high, low = np.repeat(ref[None], d, axis=0), np.repeat(ref[None], d, axis=0)
            np.fill_diagonal(high, self.top)
            np.fill_diagonal(low, 0)
            costs = self.price(np.concatenate([ref[None], high, low]))
            for name, c in costs.items():
                share = np.nan_to_num((c[1 : d + 1] - c[d + 1 :]) / max(float(c[0]), 1e-300) / 2)
                found[name] = found.get(name, 0.0) + share
        return found

    @property
    def quantised(self) -> Indices:
        """Nothing pruned, every tensor and weight at its lowest bits; (d,)."""
        ref = self.top.copy()
        ref[np.isin(self.kinds, ("act_bits", "weight_bits"))] = 0
        return ref

    @cached_property
    def kinds(self) -> NDArray[np.str_]:
        """Kind of each coordinate, shape (d,)."""
        return np.array([c.kind for c in self.space.choices], dtype=np.str_)
