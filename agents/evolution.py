"""Evolutionary search over predictors: tens of thousands of predictions for every batch that is evaluated.

Cai et al. 2020, "Once-for-all"; Wang et al. 2020, "APQ: joint search for network architecture, pruning and
quantization policy". Population 100, a quarter of it parents, half of the children mutated with probability
0.1 a coordinate and half crossed over, 500 generations, children over the budget thrown away: as published.

| differences from the papers | |
|---|---|
| accuracy predictor | Bayesian linear regression (`agents.predictors`), not an MLP on one-hot codes |
| training data | dozens of outcomes of this very search, not 16,000 (OFA) or 5,000 (APQ) beforehand |
| latency table | fitted near the budget, and half-way again to prices of the best found |
| repair | what is suggested is repaired with real prices: layers do not add up on our targets |
| batch | the best by as many draws of the predictor's posterior; the papers evaluate the best one |
| budgets | every fourth suggestion at a tighter latency, for the front |
| least latency | the drop is the constraint and latency the fitness |

Dozens of outcomes cannot train the papers' networks. The predictor is fitted anew for every batch, and
Thompson sampling has it learn where it errs. Losses measured layer by layer, where given, are a feature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .base import SequentialAgent
from .contract import Budget, Problem
from .design import diverse, initial_design, settle
from .evolve import Judge, Visited, evolve, mutated
from .predictors import AccuracyPredictor, CostTables, Features
from .pricing import Indices
from .repair import anchors, expected_losses
from .surrogate import Warp

Floats = NDArray[np.float64]

GENERATIONS, FRONT_GENERATIONS = 500, 150
#: Policies that the tables are fitted to at first, and how many of the best found are priced half-way.
TABLED, PRICED = 400, 48
#: A run serves this share of the outcomes it knows, at least `LEAST`: its time is then spread over them.
SHARE, LEAST = 0.1, 6
POOL = 600
FRONT_EVERY = 4
GOLDEN = 0.6180339887498949


@dataclass
class _Run:
    """What one run of the search proposes, best draw first; repaired when it is its turn."""

    boundary: int
    main: Indices
    front: Indices
    level: Budget
    loss: Floats
    settled: dict[tuple[bool, int], tuple[Indices | None, str]]


class EvolutionAgent(SequentialAgent):
    """Evolves a population over predicted accuracy and tabled costs; a run proposes a whole batch."""

    name = "evolution"
    summary = "evolutionary search over a learned predictor (OFA, APQ)"

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.loss = expected_losses(problem)
        self.first = max(6, min(24, problem.evaluations // 5))
        self.design = initial_design(self.pricer, problem, most=(self.first + 1) // 2)
        self.features = Features(self.pricer, self.seed)
        #: How many policies were predicted; for reports and benchmarks.
        self.predictions = 0
        self._run: _Run | None = None
        self._tabled: Indices | None = None

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if len(self.told) < self.first:
            return self._start(number, attempt, rng)
        run = self._current()
        front = number % FRONT_EVERY == FRONT_EVERY - 1
        for k in range(attempt, len(run.front if front else run.main)):
            found, digest = self._settled(run, front, k)
            if found is not None and digest not in self._digests:
                where = f"front at {run.level.max_latency_ms:.4g} ms" if front else "at the budget"
                return found, f"evolution: {where}, predicted from {run.boundary} outcomes"
        return self._drawn(rng)

    def _start(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if attempt == 0 and number % 2 == 0:
            start = next((d for d in self.design if not self.known(d[0])), None)
            if start is not None:
                return start
        return self._drawn(rng)

    def _drawn(self, rng: np.random.Generator) -> tuple[Indices, str] | None:
        found = diverse(self.pricer, rng, self.problem.budget, self.loss)
        return None if found is None else (found, "random kernels, channels grown to the budget")

    def _settled(self, run: _Run, front: bool, k: int) -> tuple[Indices | None, str]:
        """The k-th policy of a run repaired with real prices, and its digest; losses vary a little.

        Without that much of a batch would be repaired to the same few policies.
        """
        key = (front, k)
        if key not in run.settled:
            rng = np.random.default_rng((self.seed, 0x5E7, run.boundary, *map(int, key)))
            loss = run.loss * np.exp(rng.normal(0.0, 0.3, len(run.loss)))
            row = (run.front if front else run.main)[k]
            found = settle(self.pricer, row, run.level if front else self.problem.budget, loss)
            run.settled[key] = (found, "" if found is None else self.pricer.policy(found).digest)
        return run.settled[key]

    # -- runs

    def _current(self) -> _Run:
        """The run that serves now: a function of the outcomes up to its boundary."""
        boundary = self.first
        while (after := boundary + max(LEAST, int(SHARE * boundary))) <= len(self.told):
            boundary = after
        if self._run is None or self._run.boundary != boundary:
            self._run = self._searched(boundary)
        return self._run

    def _searched(self, boundary: int) -> _Run:
        rng = np.random.default_rng((self.seed, 0xE701, boundary))
        told = self.told[:boundary]
        rows, gain = np.stack([t.indices for t in told]), np.array([t.gain for t in told])
        y = Warp(gain).warp(gain)
        predictor = AccuracyPredictor(self.features, rows, y)
        goal = _Goal(self.problem, gain, y)
        level = self._level(boundary)
        batch = 2 * max(LEAST, int(SHARE * boundary)) + 8
        known = np.concatenate([self._design_points(), rows])
        main, tables = self._twice(predictor, goal, known, rows[np.argsort(-gain, kind="stable")], rng)
        best = main.indices[0] if len(main.indices) else rows[int(np.argmax(gain))]
        judge = self._judge(predictor, tables, goal, level)
        front = evolve(
            _population(main.indices, best), judge, self.space.cardinalities, rng, FRONT_GENERATIONS, POOL
        )
        self.predictions += main.predictions + front.predictions
        chosen = [self._batch(predictor, tables, goal, v, rng, batch) for v in (main, front)]
        predicted = predictor.marginal(best)
        unit = max(float(np.mean(np.maximum(predicted, 0.0))), 1e-9) / float(np.mean(self.loss))
        loss = np.maximum(predicted, 0.05 * unit * self.loss)
        return _Run(boundary, chosen[0], chosen[1], level, loss, {})

    def _twice(
        self,
        predictor: AccuracyPredictor,
        goal: _Goal,
        known: Indices,
        best: Indices,
        rng: np.random.Generator,
    ) -> tuple[Visited, CostTables]:
        """Half of the generations, prices of the best found into the tables, and the other half."""
        population, judged = _population(best, best[0]), 0
        cardinalities = self.space.cardinalities
        for half in range(2):
            tables = self._tables(known)
            judge = self._judge(predictor, tables, goal, self.problem.budget)
            found = evolve(population, judge, cardinalities, rng, GENERATIONS // 2, POOL)
            judged += found.predictions
            if half == 0 and len(found.indices):
                known = np.concatenate([known, found.indices[:PRICED]])
                population = _population(found.indices, best[0])
        return replace(found, predictions=judged), tables

    def _design_points(self) -> Indices:
        """Policies near the budget for the tables: mutants of the initial design; fixed."""
        if self._tabled is None:
            rng = np.random.default_rng((self.seed, 0x7AB1))
            seeds = [d for d, _ in self.design] + list(anchors(self.pricer))
            seeds += [
                p
                for _ in range(6)
                if (p := diverse(self.pricer, rng, self.problem.budget, self.loss)) is not None
            ]
            mutants = mutated(np.stack(seeds), self.space.cardinalities, rng, TABLED)
            self._tabled = np.concatenate([np.stack(seeds), mutants])
        return self._tabled

    def _tables(self, known: Indices) -> CostTables:
        key = self.problem.budget.latency_key
        names = dict.fromkeys((*self.problem.budget.limits, key))
        prices = self.pricer.price(known)
        return CostTables(self.features, known, {n: prices[n] for n in names})

    def _level(self, boundary: int) -> Budget:
        """A tighter latency, spread evenly over the range of logarithms as boundaries go on."""
        budget, top = self.problem.budget, float(self.pricer.latency(self.pricer.top[None])[0])
        high = min(top, budget.max_latency_ms or np.inf)
        low = max(float(self.pricer.latency(anchors(self.pricer)[1][None])[0]), high / 4)
        level = high * (low / high) ** ((boundary * GOLDEN) % 1.0) if low < high else high
        return replace(budget, max_latency_ms=float(level))

    def _judge(self, predictor: AccuracyPredictor, tables: CostTables, goal: _Goal, budget: Budget) -> Judge:
        limits, key = budget.limits, budget.latency_key

        def judge(rows: Indices) -> tuple[Floats, Floats]:
            f = self.features(rows)
            costs, mean = tables(f), predictor(f)
            over = [costs[n] / v - 1.0 for n, v in limits.items()]
            excess = np.max(over, axis=0) if over else np.full(len(rows), -1.0)
            if goal.floor is None:
                return mean, excess
            return -np.log(costs[key]), np.maximum(excess, goal.floor - mean)

        return judge

    def _batch(
        self,
        predictor: AccuracyPredictor,
        tables: CostTables,
        goal: _Goal,
        visited: Visited,
        rng: np.random.Generator,
        count: int,
    ) -> Indices:
        """For each of ``count`` draws of the posterior the best policy visited that is not chosen yet."""
        rows = visited.indices
        if not len(rows):
            return rows
        count = min(count, len(rows))
        f = self.features(rows)
        value = predictor.sampled(f, rng, count)
        if goal.floor is not None:
            speed = -np.log(tables(f)[self.problem.budget.latency_key])
            value = np.where(value >= goal.floor, speed[:, None], value - goal.floor - 1e3)
        chosen: list[int] = []
        for column in value.T:
            column[chosen] = -np.inf
            chosen.append(int(np.argmax(column)))
        return rows[chosen]


class _Goal:
    """What a run is after: the best metric (``floor`` None), or least latency at ``floor`` (warped)."""

    def __init__(self, problem: Problem, gain: Floats, y: Floats) -> None:
        self.floor: float | None = None
        if problem.objective == "latency":
            at = problem.gain(problem.base_accuracy) - (problem.budget.max_drop or 0.0) / 100.0
            order = np.argsort(gain, kind="stable")
            self.floor = float(np.interp(at, gain[order], y[order]))


def _population(rows: Indices, best: Indices) -> Indices:
    """Where a search starts: the first hundred of some policies."""
    return rows[:100] if len(rows) else best[None]
