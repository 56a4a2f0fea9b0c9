"""Surrogate-assisted local search along the budget: the default agent.

After Hutter et al. 2011 (SMAC: local search on expected improvement) and Ru et al./White et al.
(BANANAS: mutations of the best as candidates), with moves made for budgets.

| differences from the papers | |
|---|---|
| surrogate | additive-plus-residual Gaussian process on value indices instead of a forest or an ensemble |
| candidates | exchange moves that stay at the budget; every candidate is repaired with exact costs |
| start | the uniform ladder of every precision, filled to the budget, instead of random points |
| front | every fourth suggestion improves the front at a tighter latency, spread evenly over the range |
| least latency | improvement in log latency times the probability of holding the drop |
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .base import SequentialAgent
from .contract import Budget, Problem
from .design import diverse, initial_design, settle
from .moves import Mover
from .pricing import Indices
from .repair import anchors, expected_losses, random_feasible
from .surrogate import Surrogate, expected_improvement, probability_above, recent_and_best, warp

Floats = NDArray[np.float64]

RAW, REPAIRED, FRESH, ROUNDS, PARENTS = 48, 4, 2, 2, 6
FRONT_EVERY = 4
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Goal:
    """What one suggestion is after: inside ``budget``, more than ``best`` (warped), or below ``latency``."""

    budget: Budget
    best: float
    origin: str
    latency: float | None = None


class LocalSearchAgent(SequentialAgent):
    """Mutates members of the front, keeps to the budget, and lets a surrogate choose what to evaluate."""

    name = "local-search"
    summary = "surrogate-assisted local search along the budget (default)"

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.loss = expected_losses(problem)
        self.starts = max(3, min(10, problem.evaluations // 8))
        self.design = initial_design(self.pricer, problem, most=self.starts)

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if attempt == 0 and number < 2 * self.starts:
            start = next((d for d in self.design if not self.known(d[0])), None)
            if start is not None and number % 2 == 0:
                return start
            drawn = self._fresh(number // 2, rng)
            return None if drawn is None else (drawn, "start: random kernels, channels grown to the budget")
        if len(self.told) < 3 or attempt > 1:
            drawn = random_feasible(self.pricer, rng)
            return None if drawn is None else (drawn, "random, repaired to the budget")
        return self._searched(number, rng)

    def _searched(self, number: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        gain = np.array([t.gain for t in self.told])
        rows = recent_and_best(gain)
        y = warp(gain[rows])
        surrogate = Surrogate(self._far(np.stack([self.told[k].indices for k in rows])), y, self.loss)
        surrogate.believe(self._far(self.waiting()))
        goal = self._goal(number, gain[rows], y, [self.told[k].latency for k in rows])
        parents = self._parents(goal)
        found: dict[bytes, tuple[float, Indices]] = {}
        for _ in range(ROUNDS):
            for score, row in self._round(parents, goal, surrogate, rng):
                found[row.tobytes()] = (score, row)
            ranked = sorted(found.values(), key=lambda p: (-p[0], p[1].tobytes()))
            parents = np.stack([r for _, r in ranked[:3]] + list(parents[:2])) if ranked else parents
        for _, row in ranked:
            if not self.known(row):
                return row, goal.origin
        drawn = random_feasible(self.pricer, rng)
        return None if drawn is None else (drawn, "random: every candidate was known")

    def _far(self, indices: Indices) -> Floats:
        """Distance of each coordinate from its top, 0..1, (P, d)."""
        return 1.0 - indices / np.maximum(self.pricer.top, 1)

    def _goal(self, number: int, gain: Floats, y: Floats, latency: list[float]) -> Goal:
        budget, problem = self.problem.budget, self.problem
        at = np.array(latency)
        base = float(self.pricer.latency(self.pricer.top[None])[0])
        if problem.objective == "latency":
            floor = self._floor()
            held = at[gain >= floor - 1e-12]
            best = float(min(held.min(initial=np.inf), base))
            level = best * (0.97, 0.9, 0.8, 0.65)[number % 4]
            order = np.argsort(gain)
            threshold = float(np.interp(floor, gain[order], y[order]))
            origin = f"local search: below {level:.4g} ms"
            return Goal(_at_most(budget, level), threshold, origin, best)
        if number % FRONT_EVERY != FRONT_EVERY - 1:
            return Goal(budget, float(y.max()), "local search: expected improvement at the budget")
        top = min(base, budget.max_latency_ms or np.inf)
        least = max(float(self.pricer.latency(anchors(self.pricer)[1][None])[0]), top / 4)
        level = top * (least / top) ** ((number * GOLDEN) % 1.0) if least < top else top
        below = y[at <= level]
        best = float(below.max()) if len(below) else float(y.min())
        return Goal(_at_most(budget, level), best, f"local search: front at {level:.4g} ms")

    def _parents(self, goal: Goal) -> Indices:
        """Best policies near the goal's latency (those above it are repaired down), (K, d)."""
        level = goal.budget.limits.get(self.problem.budget.latency_key, np.inf)
        ranked = sorted(self.told, key=lambda t: (t.latency > 1.3 * level, -t.gain, t.number))
        if goal.latency is not None:
            floor = self._floor()
            ranked = sorted(self.told, key=lambda t: (-min(0.0, t.gain - floor), t.latency, t.number))
        return np.stack([t.indices for t in ranked[:PARENTS]])

    def _floor(self) -> float:
        return self.problem.gain(self.problem.base_accuracy) - (self.problem.budget.max_drop or 0.0) / 100.0

    def _round(
        self, parents: Indices, goal: Goal, surrogate: Surrogate, rng: np.random.Generator
    ) -> list[tuple[float, Indices]]:
        """One round of mutation, repair and scoring: (score, indices) of feasible candidates."""
        loss = self._marginal(parents[0], surrogate)
        mover = Mover(self.pricer, goal.budget, loss)
        raw = np.unique(np.stack([mover.mutate(parents, rng) for _ in range(RAW)]), axis=0)
        mean, std = surrogate.predict(self._far(raw))
        excess = self.pricer.excess(raw, goal.budget)
        # Over the budget a candidate will lose in the repair, under it it will gain by growing: at this rate.
        promise = expected_improvement(mean - mover.rate(parents[0]) * np.clip(excess, -1, 1), std, goal.best)
        chosen = np.argsort(-promise, kind="stable")[:REPAIRED]
        starts = [parents[0], *raw[chosen]]
        repaired = [r for s in starts if (r := self._settled(s, goal, loss, rng)) is not None]
        repaired += [r for k in range(FRESH) if (r := self._fresh(k, rng, goal.budget, loss)) is not None]
        rows = np.concatenate([raw[excess <= 0], *(r[None] for r in repaired)])
        if not len(rows):
            return []
        return list(zip(self._score(rows, goal, surrogate).tolist(), rows, strict=True))

    def _fresh(
        self, k: int, rng: np.random.Generator, budget: Budget | None = None, loss: Floats | None = None
    ) -> Indices | None:
        """A point that owes nothing to the parents: random kernels, or every third time random throughout."""
        limit = budget or self.problem.budget
        if k % 3 == 2:
            return random_feasible(self.pricer, rng, limit)
        return diverse(self.pricer, rng, limit, self.loss if loss is None else loss)

    def _settled(self, start: Indices, goal: Goal, loss: Floats, rng: np.random.Generator) -> Indices | None:
        return settle(self.pricer, start, goal.budget, loss * np.exp(rng.normal(0.0, 0.3, size=len(loss))))

    def _marginal(self, at: Indices, surrogate: Surrogate) -> Floats:
        """Predicted loss of each coordinate, top to bottom, around ``at``; at least a share of the prior."""
        d = len(at)
        high, low = np.repeat(at[None], d, axis=0), np.repeat(at[None], d, axis=0)
        np.fill_diagonal(high, self.pricer.top)
        np.fill_diagonal(low, 0)
        mean, _ = surrogate.predict(self._far(np.concatenate([high, low])))
        predicted = mean[:d] - mean[d:]
        unit = max(float(np.mean(np.maximum(predicted, 0.0))), 1e-9) / float(np.mean(self.loss))
        return np.maximum(predicted, 0.05 * unit * self.loss)

    def _score(self, rows: Indices, goal: Goal, surrogate: Surrogate) -> Floats:
        mean, std = surrogate.predict(self._far(rows))
        if goal.latency is None:
            return expected_improvement(mean, std, goal.best)
        saved = np.log(goal.latency / np.maximum(self.pricer.latency(rows), 1e-12))
        return np.maximum(saved, 0.0) * probability_above(mean, std, goal.best)


def _at_most(budget: Budget, latency_ms: float) -> Budget:
    limit = min(latency_ms, budget.max_latency_ms or np.inf)
    return replace(budget, max_latency_ms=float(limit))
