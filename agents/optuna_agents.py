"""Optuna's samplers as agents: ask, repair with exact costs, and let the sampler learn the repaired point.

A study is rebuilt in memory from what was told for every suggestion, with a sampler seeded by (seed,
number, attempt): no state outside the agent's two records, so that a replay is exact. Rebuilding costs
about 0.1 ms a trial. Suggestions that are out are running trials, which TPE and GP take into account.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .base import SequentialAgent, Told
from .contract import Problem
from .design import initial_design
from .pricing import Indices
from .repair import repair
from .surrogate import recent_and_best

if TYPE_CHECKING:
    import optuna


class OptunaAgent(SequentialAgent):
    """Common part: the start, the study, repair. A subclass gives the sampler and the values told."""

    #: "maximize" or "minimize" per value of `values`.
    directions: tuple[Literal["minimize", "maximize"], ...] = ("maximize",)
    #: Most trials the sampler sees.
    history: int = 2000

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        most = max(4, min(10, problem.evaluations // 6))
        self.design = initial_design(self.pricer, problem, most)

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler."""

    def values(self, told: Told) -> list[float]:
        """What the sampler optimises, one value per direction."""
        return [score(self.problem, told)]

    def attributes(self, position: int) -> dict[str, Any]:
        """Sampler's own attributes of the trial at a position in the history."""
        return {}

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if attempt == 0:
            start = next((d for d in self.design if not self.known(d[0])), None)
            if start is not None:
                return start
        asked = self._ask(int(rng.integers(2**31)))
        indices = repair(self.pricer, asked, rng=rng)
        if indices is None:
            return None
        changed = "" if (indices == asked).all() else ", repaired to the budget"
        return indices, f"{self.name}{changed}"

    def _ask(self, seed: int) -> Indices:
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                warnings.simplefilter("ignore", FutureWarning)
                study = optuna.create_study(sampler=self.sampler(seed), directions=list(self.directions))
                dists = self._distributions()
                study.add_trials(self._trials(dists))
                params = study.ask(fixed_distributions=dict(dists)).params
        finally:
            optuna.logging.set_verbosity(verbosity)
        return np.array([params[name] for name in dists], dtype=np.int64)

    def _distributions(self) -> dict[str, optuna.distributions.IntDistribution]:
        import optuna

        ordinal = optuna.distributions.IntDistribution
        return {c.name: ordinal(0, len(c.values) - 1) for c in self.space.choices}

    def _trials(self, dists: dict[str, Any]) -> list[optuna.trial.FrozenTrial]:
        from optuna.trial import TrialState, create_trial

        rows = recent_and_best(np.array([t.gain for t in self.told]), self.history)
        done = [
            create_trial(
                params=self._params(self.told[k].indices),
                distributions=dists,
                values=self.values(self.told[k]),
                system_attrs=self.attributes(int(k)),
            )
            for k in rows
        ]
        out = [
            create_trial(params=self._params(w), distributions=dists, state=TrialState.RUNNING)
            for w in self.waiting()
        ]
        return done + out

    def _params(self, indices: Indices) -> dict[str, int]:
        return {c.name: int(v) for c, v in zip(self.space.choices, indices, strict=True)}


def score(problem: Problem, told: Told) -> float:
    """One number, higher is better: the metric, or for least latency minus its log once the drop holds.

    A policy that breaks the drop scores below every one that holds it, by how much it breaks it.
    """
    if problem.objective == "accuracy":
        return told.gain
    over = problem.gain(problem.base_accuracy) - told.gain - (problem.budget.max_drop or 0.0) / 100.0
    speed = -float(np.log(max(told.latency, 1e-12)))
    return speed if over <= 1e-12 else -100.0 - over


class TpeAgent(OptunaAgent):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023) by Optuna.

    | differences from the paper | |
    |---|---|
    | start | the filled uniform ladder, not random points |
    | constraints | every sample is repaired with exact costs; the repaired point is what is learned |
    | parallel | suggestions that are out count as bad (constant liar) |
    """

    name = "tpe"
    summary = "tree-structured Parzen estimator (Optuna)"

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=8, multivariate=True, constant_liar=True
        )


class GpAgent(OptunaAgent):
    """Gaussian process with log expected improvement (Ament et al. 2023) by Optuna.

    | differences from the paper | |
    |---|---|
    | start | the filled uniform ladder, not random points |
    | constraints | every sample is repaired with exact costs; the repaired point is what is learned |
    | history | the latest and the best 80 trials: fitting takes about 0.3 s and grows with the cube |
    """

    name = "gp"
    summary = "Gaussian process with log expected improvement (Optuna)"
    history = 80

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=6)


class Nsga2Agent(OptunaAgent):
    """NSGA-II (Deb et al. 2002) over accuracy and latency, by Optuna.

    | differences from the paper | |
    |---|---|
    | first generation | the filled uniform ladder, then random points |
    | constraints | every child is repaired with exact costs, so constrained domination has nothing to do |
    | generations | by order of the outcomes, so that children may be asked for before a generation is full |
    """

    name = "nsga2"
    summary = "NSGA-II over accuracy and latency (Optuna)"
    directions = ("maximize", "minimize")

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.population = max(6, min(24, problem.evaluations // 6))

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)

    def values(self, told: Told) -> list[float]:
        return [told.gain, told.latency]

    def attributes(self, position: int) -> dict[str, Any]:
        # Optuna notes the generation when it samples; these trials are added, so it is noted here.
        return {"NSGAIISampler:generation": position // self.population}
