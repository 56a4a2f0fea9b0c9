"""The loop of a search: agent, evaluator and journal. The journal is the state."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Entry:
    """One evaluated suggestion."""

    suggestion: Suggestion
    outcome: Outcome


@dataclass
class Study:
    """Evaluated suggestions of one search, in the order of their outcomes."""

    problem: Problem
    agent: Agent
    evaluator: Evaluator
    journal: Journal | None
    entries: list[Entry] = field(default_factory=list)
    known: list[Entry] = field(default_factory=list)
    exhausted: bool = False

    @property
    def outcomes(self) -> list[Outcome]:
        """Outcomes of the baselines that were known beforehand, then of all suggestions."""
        return [e.outcome for e in (*self.known, *self.entries)]

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
        waiting: dict[int, Suggestion] = {}
        for r in records:
            with making_sense_of(r):
                if r.kind == "suggested":
                    s = Suggestion.from_dict(r.data["suggestion"])
                    waiting[s.number] = s
                elif r.kind == "evaluated":
                    s = waiting.pop(int(r.data["number"]))
                    self.entries.append(Entry(s, Outcome.from_dict(r.data["outcome"])))
        history: list[tuple[Suggestion, Outcome | None]] = [(e.suggestion, e.outcome) for e in self.entries]
        self.agent.replay([*history, *((s, None) for s in waiting.values())])
        return len(self.entries)

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
        again = list(self.agent.outstanding)

        def over() -> bool:
            late = timeout is not None and time.monotonic() - start > timeout
            return late or (stop is not None and stop.is_set())

        while True:
            if not over():
                free = min(
                    self.evaluator.workers - len(running), evaluations - len(self.entries) - len(running)
                )
                chosen = self._next(free, again)
                running.update({s.number: s for s in chosen})
                self.evaluator.submit([Job(s.number, s.policy, self._bar(s)) for s in chosen])
            if not running:
                return
            for finished in self.evaluator.completed():
                self._take(running.pop(finished.job.number), finished, progress)

    def _next(self, free: int, again: list[Suggestion]) -> list[Suggestion]:
        chosen = [again.pop(0) for _ in range(min(max(free, 0), len(again)))]
        missing = free - len(chosen)
        if missing > 0:
            fresh = self.agent.suggest(missing)
            self.exhausted = len(fresh) < missing
            for s in fresh:
                if self.journal is not None:
                    self.journal.append("suggested", {"suggestion": s.to_dict()})
            chosen += fresh
        return chosen

    def _bar(self, suggestion: Suggestion) -> float | None:
        """The metric already reached at no more latency: below it a policy is not worth evaluating."""
        latency = float(self.problem.costs([suggestion.policy])["latency_ms"][0])
        reached = [
            o.accuracy
            for o in self.outcomes
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
        if self.journal is not None:
            self.journal.append("evaluated", {"number": suggestion.number, "outcome": outcome.to_dict()})
        self.entries.append(Entry(suggestion, outcome))
        self.agent.update(suggestion, outcome)
        if progress is not None:
            found = self.outcomes
            at = best(found, self.problem)
            feasible = sum(e.outcome.feasible for e in self.entries) / len(self.entries)
            progress.update(
                outcome, None if at is None else found[at], len(front(found, self.problem)), feasible
            )


def outcome_of(problem: Problem, finished: Finished) -> Outcome:
    """The outcome of an evaluation: its score with the policy's costs, and whether the budget holds."""
    policy = finished.job.policy
    costs = priced(problem.costs, [policy])[0]
    why = problem.budget.why_not(costs)
    score = finished.score
    if score is None:
        return Outcome(policy, None, costs, feasible=False, why=finished.error)
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
