"""NSGA-II over accuracy and latency, by Optuna.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II". Its place here: a search
for the whole front at once, the baseline for hypervolume.

| differences from the paper | |
|---|---|
| first generation | the filled uniform ladder, then random points, all repaired |
| constraints | every child is repaired with exact costs; constrained domination is for broken limits |
| generations | by order of the outcomes, so that children may be asked for before a generation is full |
| crossover, mutation | Optuna's: uniform over value indices, a random value with probability 1/d |
| population | a sixth of the planned evaluations, 6 to 24 |
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from .base import Told
from .contract import Problem
from .optuna_base import OptunaAgent, records_of

#: Where Optuna looks for the generation of a trial; those it did not sample itself carry none.
GENERATION = "NSGAIISampler:generation"


class Nsga2Agent(OptunaAgent):
    """Elites of all full generations are the parents; Optuna selects them and makes the child."""

    name = "nsga2"
    summary = "NSGA-II over accuracy and latency (Optuna)"
    directions = ("maximize", "minimize")

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.population = max(6, min(24, problem.evaluations // 6))
        #: After each full generation what its elites are chosen from: the elites before it and itself.
        self._pools: list[list[FrozenTrial]] = []

    def sampler(self, seed: int) -> optuna.samplers.NSGAIISampler:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)

    def values(self, told: Told) -> list[float]:
        return [told.gain, told.latency]

    def attributes(self) -> dict[str, int]:
        # Of all that is shown a child is the next generation: Optuna chooses its parents from it.
        return {GENERATION: 0}

    def shown(self) -> list[FrozenTrial]:
        done, size = self.finished(), self.population
        while (len(self._pools) + 1) * size <= len(done):
            start = len(self._pools) * size
            self._pools.append([*self._elites(), *done[start : start + size]])
        return self._pools[-1] if self._pools else done

    def _elites(self) -> list[FrozenTrial]:
        if not self._pools:
            return []
        sampler = self.sampler(0)
        return sampler.select_parent(records_of(self._pools[-1], sampler, self.directions), 1)
