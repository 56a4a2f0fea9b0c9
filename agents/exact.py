"""Exact allocation from sensitivities: the least summed loss that the budget allows, level by level.

As HAWQ-V3 (Yao et al., ICML 2021) and the knapsack view of mixed precision before it, over every kind of
choice at once and under a predictor's prices instead of a table of layers.

| differences from the paper | |
|---|---|
| losses are measured, not a Hessian's | KL, around a policy of the budget's size |
| costs interact | sequential allocation around priced policies, pairs by MILP, exchanges by real prices |
| blocks, channels, ranks and bits in one programme | instead of 4 or 8 bits a layer |
| more than one answer | tighter budgets draw the front; tempered and perturbed losses, next-best policies |
| least latency | bisection over the levels by the outcomes told |

It learns nothing else from outcomes: what it knows are the losses of single changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .base import SequentialAgent
from .contract import Problem
from .pricing import Indices
from .reference import losses_near
from .repair import random_feasible
from .solver import Solution, at_most, ladder_of_solutions
from .variants import Candidates, Stream, around

#: Levels of the front; of the ladder that least latency is found on.
LEVELS, LATENCY_LEVELS = 10, 16


class ExactAgent(SequentialAgent):
    """Suggests allocations of least summed loss, then what is next best."""

    name = "exact"
    summary = "least summed sensitivity within the budget, by exact allocation"

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.losses = losses_near(self.pricer)
        self._ladder: list[Solution] = []
        self._streams: dict[int, Stream] = {}

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        least = self.problem.objective == "latency"
        found = self._quicker(attempt) if least else self._pick(-1, attempt)
        if found is not None:
            return found
        drawn = random_feasible(self.pricer, rng)
        return None if drawn is None else (drawn, "random: every allocation was suggested")

    # -- best metric inside the budget

    def _candidates(self) -> Candidates:
        """The budget's solution; then by turns a tighter level, a variant, and next-best policies."""
        levels = ladder_of_solutions(self.pricer, self.losses, levels=LEVELS, pairs=True)
        first = next(levels, None)
        if first is None:
            return
        yield first.indices, first.origin
        more = around(first, self.losses, self.seed)
        for level in levels:
            yield level.indices, level.origin
            yield from _some(more, 2)
        yield from more

    # -- least latency

    def _quicker(self, attempt: int) -> tuple[Indices, str] | None:
        """Bisection over the ladder: below what held the drop, above what did not; then around the edge."""
        ladder = self._levels()
        if not ladder:
            return None
        latency = np.array([s.latency for s in ladder])
        held = min((t.latency for t in self.told if self._keeps(t.gain)), default=np.inf)
        lost = max(
            (t.latency for t in self.told if not self._keeps(t.gain) and t.latency < held), default=0.0
        )
        inside = np.flatnonzero((latency < held) & (latency > lost))
        order = [int(k) for k in inside[np.argsort(np.abs(np.arange(len(inside)) - (len(inside) - 1) / 2))]]
        left = [ladder[k] for k in order if not self.known(ladder[k].indices)]
        if attempt < len(left):
            return left[attempt].indices, left[attempt].origin
        below = np.flatnonzero(latency < held)
        edge = int(below[0]) if len(below) else len(ladder) - 1
        return self._pick(edge, attempt)

    def _levels(self) -> list[Solution]:
        if not self._ladder:
            self._ladder = list(ladder_of_solutions(self.pricer, self.losses, levels=LATENCY_LEVELS))
        return self._ladder

    def _keeps(self, gain: float) -> bool:
        floor = self.problem.gain(self.problem.base_accuracy) - (self.problem.budget.max_drop or 0.0) / 100.0
        return gain >= floor - 1e-12

    # -- streams

    def _pick(self, level: int, attempt: int) -> tuple[Indices, str] | None:
        """Candidate number ``attempt`` of those of a stream that were not suggested yet, None at its end."""
        if level not in self._streams:
            source = self._candidates() if level < 0 else self._at_level(self._levels()[level])
            self._streams[level] = Stream(self.pricer, source, self._holds)
        return self._streams[level].pick(self._digests, attempt)

    def _at_level(self, solution: Solution) -> Candidates:
        yield solution.indices, solution.origin
        budget = at_most(self.problem.budget, solution.latency)
        yield from around(replace(solution, budget=budget), self.losses, self.seed)


def _some(source: Iterator[tuple[Indices, str]], count: int) -> Iterator[tuple[Indices, str]]:
    for _ in range(count):
        found = next(source, None)
        if found is not None:
            yield found
