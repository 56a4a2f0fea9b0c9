"""The loop of a search: agent, evaluator and journal. The journal is the state.

With several workers outcomes come in any order, and what the agent knows when it suggests depends on who was
quick. With a `Study.lookahead` it does not: suggestion k is made from the outcomes of the first
k + 1 - lookahead suggestions, told in the order of their numbers, however many more there are already.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.contract import Agent, Outcome, Problem, Suggestion
from agents.pareto import best, front

from .console import Progress
from .evaluate import Evaluator, Finished, Job
from .journal import Journal, Record, making_sense_of

#: Suggestions that are out at a time where trials must not depend on the number of workers. More keep more
#: workers busy, and let the agent know less.
LOOKAHEAD = 8


@dataclass(frozen=True)
class Entry:
    """One evaluated suggestion."""

    suggestion: Suggestion
    outcome: Outcome


@dataclass
class Study:
    """Evaluated suggestions of one search, in the order in which the agent was told of them.

    ``lookahead``: None tells the agent of each outcome as it comes; see above.
    """

    problem: Problem
    agent: Agent
    evaluator: Evaluator
    journal: Journal | None
    entries: list[Entry] = field(default_factory=list)
    known: list[Entry] = field(default_factory=list)
    exhausted: bool = False
    lookahead: int | None = None
    #: Suggestions that the agent was not told of yet, in order, and the outcomes that are there already.
    _untold: dict[int, Suggestion] = field(default_factory=dict)
    _held: dict[int, Outcome] = field(default_factory=dict)
    #: By suggestion's number, how many entries there were when it was made.
    _told_at: dict[int, int] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Outcome]:
        """Outcomes of the baselines that were known beforehand, then of all suggestions."""
        return [*(e.outcome for e in (*self.known, *self.entries)), *self._held.values()]

    def learn(self, suggestion: Suggestion, outcome: Outcome) -> None:
        """Tell the agent of a policy scored outside the search (a baseline, an earlier run)."""
        self.known.append(Entry(suggestion, outcome))
        self.agent.update(suggestion, outcome)

    def reprice(self, problem: Problem) -> None:
        """Take a problem whose prices were corrected; what holds its budget is judged anew."""
        self.problem = problem
        for rows in (self.known, self.entries):
            again = repriced(problem, [e.outcome for e in rows])
            rows[:] = [Entry(e.suggestion, o) for e, o in zip(rows, again, strict=True)]

    def renew(self, problem: Problem, agent: Agent) -> None:
        """Go on under corrected prices with a fresh agent, which learns all outcomes anew."""
        self.reprice(problem)
        self.agent = agent
        self.exhausted = False
        for e in (*self.known, *self.entries):
            agent.update(e.suggestion, e.outcome)

    def restore(self, records: Sequence[Record]) -> int:
        """Take up where a journal ends; returns how many outcomes it held."""
        done: dict[int, Outcome] = {}
        told = 0
        for r in records:
            with making_sense_of(r):
                if r.kind == "suggested":
                    s = Suggestion.from_dict(r.data["suggestion"])
                    self._untold[s.number] = s
                    told = self._told_at[s.number] = int(r.data.get("told", 0))
                elif r.kind == "evaluated":
                    number = int(r.data["number"])
                    if number not in self._untold or number in done:
                        raise KeyError(number)
                    done[number] = Outcome.from_dict(r.data["outcome"])
        order = list(done) if self.lookahead is None else sorted(done)[:told]
        self.entries += [Entry(self._untold.pop(k), done.pop(k)) for k in order]
        self._held = dict(sorted(done.items()))
        history: list[tuple[Suggestion, Outcome | None]] = [(e.suggestion, e.outcome) for e in self.entries]
        self.agent.replay([*history, *((s, None) for s in self._untold.values())])
        return len(self.entries) + len(self._held)

    def run(
        self,
        evaluations: int,
        timeout: float | None = None,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Evaluate until there are ``evaluations`` outcomes, time is up, or the agent has nothing new.

        Suggestions that an interrupted run left without an outcome are evaluated first.
        """
        start = time.monotonic()
        running: dict[int, Suggestion] = {}
        again = [s for s in self.agent.outstanding if s.number not in self._held]

        def over() -> bool:
            late = timeout is not None and time.monotonic() - start > timeout
            return late or (stop is not None and stop.is_set())

        while True:
            if over():
                for job in self.evaluator.withdraw():
                    del running[job.number]  # it stays outstanding
            else:
                missing = evaluations - len(self.entries) - len(self._held) - len(running)
                chosen = self._next(missing, len(running), again)
                running.update({s.number: s for s in chosen})
                self.evaluator.submit([Job(s.number, s.policy, self._bar(s)) for s in chosen])
            if not running:
                break
            for finished in self.evaluator.completed():
                self._take(running.pop(finished.job.number), finished, progress)
        for number in sorted(self._held):
            self._tell(number)

    def _next(self, missing: int, running: int, again: list[Suggestion]) -> list[Suggestion]:
        """What to evaluate next: what was left over, then fresh suggestions, ``missing`` at most."""
        if self.lookahead is None:
            missing = min(missing, self.evaluator.workers - running)
        chosen = [again.pop(0) for _ in range(min(max(missing, 0), len(again)))]
        for s in chosen:
            self._untold[s.number] = s
        while len(chosen) < missing:
            if self.lookahead is not None and len(self._untold) >= self.lookahead:
                if not self._tell_next():
                    break
                continue
            fresh = self.agent.suggest()
            self.exhausted = not fresh
            if fresh:
                chosen += [self._made(s) for s in fresh]
            elif self.lookahead is None or not self._tell_next():
                break
        return chosen

    def _made(self, suggestion: Suggestion) -> Suggestion:
        data: dict[str, Any] = {"suggestion": suggestion.to_dict()}
        if self.lookahead is not None:
            data["told"] = len(self.entries)
        if self.journal is not None:
            self.journal.append("suggested", data)
        self._untold[suggestion.number] = suggestion
        self._told_at[suggestion.number] = len(self.entries)
        return suggestion

    def _bar(self, suggestion: Suggestion) -> float | None:
        """The metric already reached at no more latency: below it a policy is not worth evaluating."""
        latency = float(self.problem.costs([suggestion.policy])["latency_ms"][0])
        told = len(self.entries) if self.lookahead is None else self._told_at.get(suggestion.number, 0)
        reached = [
            o.accuracy
            for o in (e.outcome for e in (*self.known, *self.entries[:told]))
            if o.accuracy is not None
            and not o.stopped_early
            and o.feasible
            and o.costs["latency_ms"] <= latency
        ]
        if not reached:
            return None
        return max(reached) if self.problem.higher_is_better else min(reached)

    def _take(self, suggestion: Suggestion, finished: Finished, progress: Progress | None) -> None:
        outcome = outcome_of(self.problem, finished)
        number = suggestion.number
        if self.journal is not None:
            self.journal.append("evaluated", {"number": number, "outcome": outcome.to_dict()})
        self._held[number] = outcome
        if self.lookahead is None:
            self._tell(number)
        if progress is not None:
            found = self.outcomes
            at = best(found, self.problem)
            done = [*(e.outcome for e in self.entries), *self._held.values()]
            feasible = sum(o.feasible for o in done) / len(done)
            progress.update(
                outcome, None if at is None else found[at], len(front(found, self.problem)), feasible
            )

    def _tell_next(self) -> bool:
        """Tell the agent of the first suggestion it was not told of; False where its outcome is not there."""
        number = min(self._untold, default=None)
        if number is None or number not in self._held:
            return False
        self._tell(number)
        return True

    def _tell(self, number: int) -> None:
        entry = Entry(self._untold.pop(number), self._held.pop(number))
        self.entries.append(entry)
        self.agent.update(entry.suggestion, entry.outcome)


def outcome_of(problem: Problem, finished: Finished) -> Outcome:
    """The outcome of an evaluation: its score with the policy's costs, and whether the budget holds."""
    policy = finished.job.policy
    costs = priced(problem.costs, [policy])[0]
    why = problem.budget.why_not(costs)
    score = finished.score
    if score is None:
        return Outcome(policy, None, costs, feasible=False, why=finished.error)
    if not math.isfinite(score.value):
        return Outcome(policy, None, costs, feasible=False, why=f"its metric is {score.value}")
    if not why and not score.stopped_early and not problem.holds_drop(score.value):
        why = f"drop {problem.drop(score.value):.2f} > {problem.budget.max_drop} points"
    return Outcome(
        policy,
        score.value,
        costs,
        score.std,
        score.low,
        score.high,
        not why,
        why,
        score.stopped_early,
        score.seconds,
        score.disagreed,
    )


def priced(
    costs: Callable[[Sequence[Any]], Mapping[str, Any]], policies: Sequence[Any]
) -> list[dict[str, float]]:
    """Costs of each policy by name."""
    table = costs(policies)
    return [{k: float(v[i]) for k, v in table.items()} for i in range(len(policies))]


def repriced(problem: Problem, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The same outcomes under a problem whose prices were corrected."""
    from dataclasses import replace

    found = []
    for o, costs in zip(outcomes, priced(problem.costs, [o.policy for o in outcomes]), strict=True):
        why = problem.budget.why_not(costs)
        if o.accuracy is None:
            why = o.why
        elif not why and not problem.holds_drop(o.accuracy):
            why = f"drop {problem.drop(o.accuracy):.2f} > {problem.budget.max_drop} points"
        found.append(replace(o, costs=costs, feasible=not why, why=why))
    return found
