"""Book-keeping that every agent shares: numbering, de-duplication, exact feasibility, replay.

Why a replay is exact: all state is two records, the suggestions made (by number) and the outcomes told
(in order). ``propose`` is a function of these two, of the problem and of ``(seed, number, attempt)``; it
keeps no random state and writes nothing but caches of functions of those. Replaying a journal restores
the two records, hence everything.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from .contract import Agent, Outcome, Problem, Suggestion
from .errors import HistoryError
from .pricing import Indices, Pricer
from .repair import hold_exactly, random_feasible

#: A space with at most this many points is searched to its last policy.
ENUMERABLE = 4096
ATTEMPTS = 4
FALLBACK_DRAWS = 24


@dataclass(frozen=True)
class Told:
    """What an agent knows of one evaluated policy; ``gain`` is the metric, higher is better."""

    number: int
    indices: Indices
    gain: float
    latency: float
    feasible: bool


class SequentialAgent(Agent):
    """An agent that proposes one policy at a time from what it was told so far."""

    #: Whether to go on with random feasible policies when ``propose`` has nothing new.
    falls_back: bool = True
    #: Expected loss of each coordinate, (d,), by which policies are repaired; None: as `repair` has it.
    repairs_by: NDArray[np.float64] | None = None

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self.seed = int(seed)
        self.space = problem.space
        self.pricer = Pricer(problem)
        self._made: dict[int, Suggestion] = {}
        self._digests: set[str] = set()
        self._answered: set[int] = set()
        self._told: list[Told] = []
        self._next = 0

    @abstractmethod
    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        """Value indices (d,) and the origin of suggestion ``number``; None when there is nothing to propose.

        Called again with a higher ``attempt`` when the policy was suggested before or is infeasible.
        Must depend on nothing but the problem, the seed, the arguments and ``made``/``told``.
        """

    def learn(self, told: Told) -> None:
        """Called with each outcome as it joins ``told``: for what is dear enough to be kept up to date.

        What is kept must be a function of the problem, the seed and ``told`` in its order, nothing else.
        """

    @property
    def told(self) -> list[Told]:
        """Evaluated policies (with a finite accuracy), in the order of the updates."""
        return self._told

    @property
    def outstanding(self) -> tuple[Suggestion, ...]:
        return tuple(self._made[k] for k in sorted(self._made) if k not in self._answered)

    def waiting(self) -> NDArray[np.int64]:
        """Value indices of the suggestions that are out, shape (W, d)."""
        rows = [self.space.indices(s.point) for s in self.outstanding]
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.space.dimension)

    def known(self, indices: Indices) -> bool:
        """Whether the policy these indices resolve to was suggested or told before."""
        return self.pricer.policy(indices).digest in self._digests

    @final
    def suggest(self, n: int = 1) -> list[Suggestion]:
        found: list[Suggestion] = []
        for _ in range(n):
            suggestion = self._one()
            if suggestion is None:
                break
            self._record(suggestion)
            found.append(suggestion)
        return found

    @final
    def update(self, suggestion: Suggestion, outcome: Outcome) -> None:
        number = suggestion.number
        if number in self._answered:
            raise HistoryError(f"suggestion {number} was answered before.")
        if number not in self._made:
            self._record(suggestion)
        elif self._made[number].policy != suggestion.policy:
            raise HistoryError(f"suggestion {number} is another policy than the one suggested.")
        self._answered.add(number)
        if outcome.accuracy is None or not np.isfinite(outcome.accuracy):
            return
        indices = self.space.indices(suggestion.point)
        key = self.problem.budget.latency_key
        latency = outcome.costs.get(key)
        if latency is None or not np.isfinite(latency):
            latency = float(self.pricer.price(indices[None])[key][0])
        gain = self.problem.gain(outcome.accuracy)
        self._told.append(Told(number, indices, gain, latency, outcome.feasible))
        self.learn(self._told[-1])

    @final
    def replay(self, history: Iterable[tuple[Suggestion, Outcome | None]]) -> None:
        for suggestion, outcome in history:
            if outcome is not None:
                self.update(suggestion, outcome)
            elif suggestion.number not in self._made:
                self._record(suggestion)

    def _record(self, suggestion: Suggestion) -> None:
        self._made[suggestion.number] = suggestion
        self._digests.add(suggestion.policy.digest)
        while self._next in self._made:
            self._next += 1

    def _one(self) -> Suggestion | None:
        number = self._next
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng((self.seed, number, attempt))
            proposed = self.propose(number, attempt, rng)
            if proposed is None:
                return None
            suggestion = self._checked(number, *proposed)
            if suggestion is not None:
                return suggestion
        return self._fallback(number) if self.falls_back else None

    def _checked(self, number: int, indices: Indices, origin: str) -> Suggestion | None:
        found = self._held(indices) if self.problem.estimates is not None else indices
        if found is None:
            return None
        policy = self.pricer.policy(found)
        if policy.digest in self._digests or not self._holds(found):
            return None
        return Suggestion(number, self.pricer.point(found), policy, origin)

    def _holds(self, indices: Indices) -> bool:
        """Whether a policy holds every limit by exact costs."""
        return not self.problem.budget.why_not(self.pricer.exact(indices))

    def _held(self, indices: Indices) -> Indices | None:
        """A point that was feasible by estimates, repaired until it is so by exact costs."""
        return hold_exactly(self.pricer, indices, ATTEMPTS, self.repairs_by)

    def _fallback(self, number: int) -> Suggestion | None:
        """Something new when an agent repeats itself: random feasible draws, then every point there is."""
        rng = np.random.default_rng((self.seed, number, ATTEMPTS))
        for _ in range(FALLBACK_DRAWS):
            indices = random_feasible(self.pricer, rng)
            if indices is None:
                return None
            suggestion = self._checked(number, indices, "random: the agent had nothing new")
            if suggestion is not None:
                return suggestion
        for row in self.pricer.feasible_points(ENUMERABLE):
            suggestion = self._checked(number, row, "what is left of a small space")
            if suggestion is not None:
                return suggestion
        return None
