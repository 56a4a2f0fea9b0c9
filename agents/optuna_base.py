"""What the sampler agents share: the start, repair by exact costs, and a study that is only looked at.

An agent's state is its two records (see `agents.base`), so a sampler must not remember anything either: it
is made afresh for every suggestion, seeded by (seed, number, attempt), over a storage that shows it the
records. The trials are built once an outcome and handed out as they are; a suggestion costs what the
sampler costs, however long the history.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from .base import SequentialAgent, Told
from .contract import Problem
from .design import initial_design
from .pricing import Indices
from .repair import repair
from .surrogate import recent_and_best

Direction = Literal["minimize", "maximize"]

#: Trials told have numbers far below zero, so that the one asked for is the latest whatever its number.
FIRST_NUMBER = -(1 << 31)
#: Coordinates changed, on average, where a sampler repeats itself, times the number of the attempt.
MOVES = 2.0
#: Below any score of an outcome that holds the limits.
BROKEN = -1e6


class SamplerAgent(SequentialAgent):
    """The initial design, then points asked of a sampler and repaired with exact costs.

    What is learned is the repaired point. Outcomes known beforehand (negative numbers) are learned like any
    other, and each two of them spare one evaluation of the design.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.most = max(4, min(10, problem.evaluations // 6))
        self.design = [
            (indices, origin, self.pricer.policy(indices).digest)
            for indices, origin in initial_design(self.pricer, problem, self.most)
        ]

        self._asked: tuple[tuple[int, ...], Indices] | None = None

    @abstractmethod
    def ask(self, rng: np.random.Generator) -> Indices:
        """The sampler's next point as value indices (d,); it need not hold the budget."""

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        start = self._start() if attempt == 0 and number < 2 * self.most else None
        if start is not None:
            return start
        asked = self._point(number)
        if attempt:  # what was asked for is known: try its neighbours
            asked = self._moved(asked, rng, attempt)
        indices = repair(self.pricer, asked, rng=rng)
        if indices is None:
            return None
        changed = "" if (indices == asked).all() else ", repaired to the budget"
        return indices, f"{self.name}{changed}"

    def _start(self) -> tuple[Indices, str] | None:
        warm = sum(k < 0 for k in self._answered)
        for indices, origin, digest in self.design[: max(2, self.most - warm // 2)]:
            if digest not in self._digests:
                return indices, origin
        return None

    def _point(self, number: int) -> Indices:
        """What the sampler says to one number in one state; asked once, for asking takes most of the time."""
        state = (number, len(self._made), len(self._answered))
        if self._asked is None or self._asked[0] != state:
            self._asked = (state, self.ask(np.random.default_rng((self.seed, number))))
        return self._asked[1]

    def _moved(self, point: Indices, rng: np.random.Generator, attempt: int) -> Indices:
        """About two coordinates an attempt, each a step up or down."""
        d, top = len(point), self.pricer.top
        step = np.where(rng.random(d) < 0.5, -1, 1)
        step = np.where((point + step < 0) | (point + step > top), -step, step)
        moved = point + step * (rng.random(d) < MOVES * attempt / max(d, 1))
        found: Indices = np.clip(moved, 0, top)
        return found

    def broken(self, told: Told) -> float:
        """Relative excess over the limits of an outcome that broke them; 0 of one that did not.

        No suggestion breaks a limit by the prices of its time. Prices that measurements corrected since
        can make it so, as can an outcome known beforehand.
        """
        return 0.0 if told.feasible else max(0.0, float(self.pricer.excess(told.indices[None])[0]))

    def worth(self, told: Told) -> float:
        """`score`, and below every other one for outcomes that broke a limit."""
        excess = self.broken(told)
        return score(self.problem, told) if excess <= 0 else BROKEN - excess


def score(problem: Problem, told: Told) -> float:
    """One number, higher is better: the metric, or for least latency minus its log once the drop holds.

    A policy that breaks the drop scores below every one that holds it, by how much it breaks it.
    """
    if problem.objective == "accuracy":
        return told.gain
    over = problem.gain(problem.base_accuracy) - told.gain - (problem.budget.max_drop or 0.0) / 100.0
    speed = -float(np.log(max(told.latency, 1e-12)))
    return speed if over <= 1e-12 else -100.0 - over


class OptunaAgent(SamplerAgent):
    """A sampler of Optuna's. A subclass gives the sampler and, if need be, the values and the trials told."""

    #: "maximize" or "minimize" per value of `values`.
    directions: tuple[Direction, ...] = ("maximize",)
    #: Most outcomes the sampler sees: the latest half and the best of the rest.
    history: int = 80
    #: Whether outcomes that break a limit are shown, with by how much, or left out.
    shows_broken: bool = True

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.distributions = self._distributions()
        self._trials: list[FrozenTrial] = []
        self._scores: list[float] = []

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler."""

    def distribution(self, size: int) -> BaseDistribution:
        """How the sampler sees a coordinate of ``size`` values, 2 or more; it may answer between them."""
        return IntDistribution(0, size - 1)

    def values(self, told: Told) -> list[float]:
        """What the sampler optimises, one value per direction."""
        return [score(self.problem, told)]

    def attributes(self) -> dict[str, Any]:
        """The sampler's own attributes of a finished trial."""
        return {}

    def shown(self) -> list[FrozenTrial]:
        """Finished trials that the sampler sees, oldest first."""
        done = self.finished()
        rows = recent_and_best(np.array(self._scores), self.history)
        return [done[k] for k in rows if self.shows_broken or not done[k].constraints]

    def ask(self, rng: np.random.Generator) -> Indices:
        sampler = self.sampler(int(rng.integers(2**31)))
        with _quiet():
            study = records_of([*self.shown(), *self._running()], sampler, self.directions)
            study.ask()
            trial = study.get_trials(deepcopy=False)[-1]
            found = sampler.sample_relative(study, trial, self.distributions)
            for name, dist in self.distributions.items():
                if name not in found:
                    found[name] = sampler.sample_independent(study, trial, name, dist)
        return np.rint([found.get(c.name, 0) for c in self.space.choices]).astype(np.int64)

    def finished(self) -> list[FrozenTrial]:
        """One trial an outcome, in the order of the updates; built once each."""
        for told in self.told[len(self._trials) :]:
            excess = self.broken(told)
            trial = create_trial(
                params=self._params(told.indices),
                distributions=self.distributions,
                values=self.values(told),
                system_attrs=self.attributes(),
                constraints={"limits": excess} if excess > 0 else None,
            )
            trial.number = FIRST_NUMBER + len(self._trials)
            self._trials.append(trial)
            self._scores.append(self.worth(told))
        return self._trials

    def _running(self) -> list[FrozenTrial]:
        """Suggestions that are out."""
        found = []
        for k, indices in enumerate(self.waiting(), start=len(self._trials)):
            trial = create_trial(
                params=self._params(indices), distributions=self.distributions, state=TrialState.RUNNING
            )
            trial.number = FIRST_NUMBER + k
            found.append(trial)
        return found

    def _distributions(self) -> dict[str, BaseDistribution]:
        """A distribution per coordinate that has a choice; its values are value indices."""
        sizes = {c.name: len(c.values) for c in self.space.choices if len(c.values) > 1}
        return {name: self.distribution(n) for name, n in sizes.items()}

    def _params(self, indices: Indices) -> dict[str, Any]:
        named = zip(self.space.choices, indices.tolist(), strict=True)
        return {c.name: v for c, v in named if len(c.values) > 1}


class _Records(optuna.storages.InMemoryStorage):
    """Shows trials that are kept elsewhere before its own. Nothing is copied."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._shown = list(trials)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        own: list[FrozenTrial] = super().get_all_trials(study_id, deepcopy, states)
        return [*(t for t in self._shown if states is None or t.state in states), *own]


def records_of(
    trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler, directions: Sequence[Direction]
) -> optuna.Study:
    """A study of these very trials; one asked of it is its last."""
    with _quiet():
        return optuna.create_study(storage=_Records(trials), sampler=sampler, directions=list(directions))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna neither logs each study nor warns that a feature may change."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


__all__ = ["OptunaAgent", "SamplerAgent", "records_of", "score"]
