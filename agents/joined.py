"""Several problems of one network searched together: what one target's study found helps the others.

An accuracy holds for a policy under one kind of numerics. Where two targets round alike, a policy that one of
them evaluated costs the other nothing, and it takes every one that its space and budget have. Where they
round differently the accuracy is not shared: the policy is, as a candidate for an evaluation of its own, if
it promises more front. The promise is the other target's accuracy, less what policies evaluated under both
numerics have lost on the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.policy import ResolvedPolicy
from compressors.translate import Translation, translated

from .contract import Agent, Outcome, Problem, Suggestion
from .pareto import front_mask, hypervolume, reference_gain, usable

#: Pairs of nought points that stand beside those seen, before a difference of numerics is believed.
DOUBT = 2.0
#: Share of a front's hypervolume that a candidate has to promise.
PROMISE = 1e-3
#: A point at the edge of the budget counts by its metric alone.
EDGE = 1.0 + 1e-6


class JoinedAgent(Agent):
    """An agent before which policies are put that others found: they are suggested as its own.

    ``offered`` gives the next one for the agent, or None; it may depend on what was evaluated only.
    """

    name = "joined"
    summary = "an agent of one of several targets that are searched together"

    def __init__(self, inner: Agent, offered: Callable[[JoinedAgent], Offer | None]) -> None:
        self.inner = inner
        self._offered = offered
        self._next = 0
        self._known: set[str] = set()

    def suggest(self, n: int = 1) -> list[Suggestion]:
        found: list[Suggestion] = []
        while len(found) < n:
            offer = self._offered(self)
            if offer is None:
                fresh = self.inner.suggest(1)
            else:
                fresh = [Suggestion(self._next, offer.point, offer.policy, offer.origin)]
                self.inner.replay([(fresh[0], None)])
            if not fresh:
                break
            self._note(fresh[0])
            found += fresh
        return found

    def knows(self, policy: ResolvedPolicy) -> bool:
        """Whether a policy was suggested or told before."""
        return policy.digest in self._known

    def update(self, suggestion: Suggestion, outcome: Outcome) -> None:
        self._note(suggestion)
        self.inner.update(suggestion, outcome)

    def replay(self, history: Iterable[tuple[Suggestion, Outcome | None]]) -> None:
        rows = list(history)
        for suggestion, _ in rows:
            self._note(suggestion)
        self.inner.replay(rows)

    @property
    def outstanding(self) -> tuple[Suggestion, ...]:
        return self.inner.outstanding

    def _note(self, suggestion: Suggestion) -> None:
        self._next = max(self._next, suggestion.number + 1)
        self._known.add(suggestion.policy.digest)


@dataclass(frozen=True)
class Offer:
    """A policy for an agent to suggest. ``free``: its accuracy is known under the same numerics."""

    point: tuple[float, ...]
    policy: ResolvedPolicy
    origin: str
    free: bool = False


@dataclass(frozen=True)
class Party:
    """One of the problems: its name, its kind of numerics, and what was evaluated for it so far, in order."""

    name: str
    problem: Problem
    numerics: str
    outcomes: Callable[[], Sequence[Outcome]]

    @property
    def complete(self) -> list[tuple[Outcome, float]]:
        """Outcomes of whole evaluations with their metric, whether or not they hold the budget."""
        return [
            (o, o.accuracy)
            for o in self.outcomes()
            if o.accuracy is not None and not o.stopped_early and np.isfinite(o.accuracy)
        ]


class Exchange:
    """What the parties' outcomes are worth to each other: a function of the outcomes, with caches."""

    def __init__(self, parties: Sequence[Party]) -> None:
        self.parties = tuple(parties)
        self._translated: dict[tuple[str, int], Translation] = {}
        self._prices: dict[tuple[str, int], dict[str, float]] = {}

    def free(self, at: int, knows: Callable[[ResolvedPolicy], bool]) -> Offer | None:
        """A policy that another party of the same numerics evaluated, of this one's space and budget."""
        own = self.parties[at]
        for i, other in enumerate(self.parties):
            if i == at or other.numerics != own.numerics:
                continue
            for outcome, _ in other.complete:
                t = self.translated(outcome.policy, at)
                if t.exact and not knows(t.policy) and self.holds(t.policy, at):
                    return Offer(t.point, t.policy, f"evaluated for {other.name}", free=True)
        return None

    def promising(self, at: int, knows: Callable[[ResolvedPolicy], bool]) -> Offer | None:
        """The others' policy that promises the most hypervolume beyond this party's front; None of little."""
        own = self.parties[at]
        front = self._front(at)
        whole = self._volume(front, at)
        best: tuple[float, Offer] | None = None
        seen: set[str] = set()
        for i, other in enumerate(self.parties):
            if i == at:
                continue
            lost = self.difference(i, at)
            for outcome, accuracy in other.complete:
                t = self.translated(outcome.policy, at)
                if t.policy.digest in seen or knows(t.policy) or not self.holds(t.policy, at):
                    continue
                seen.add(t.policy.digest)
                gain = own.problem.gain(accuracy) - lost
                latency = self.price(t.policy, at)[own.problem.budget.latency_key]
                more = self._volume(np.vstack([front, [[gain, latency]]]), at) - whole
                if more > PROMISE * whole and (best is None or more > best[0]):
                    best = (
                        more,
                        Offer(t.point, t.policy, f"as evaluated for {other.name}, its numerics aside"),
                    )
        return None if best is None else best[1]

    def common(self) -> ResolvedPolicy | None:
        """The policy that should serve the worst-off party best, of those not evaluated for every party.

        It is one of every space and holds every budget. None where none promises more than what is known.
        """
        known = self.best_common()
        floor = -np.inf if known is None else known[1]
        best: tuple[float, ResolvedPolicy] | None = None
        for policy in self._candidates():
            gains = [self._expected(policy, at) for at in range(len(self.parties))]
            if all(self._own(policy, at) is not None for at in range(len(self.parties))):
                continue
            worst = min(gains)
            if worst > floor and (best is None or worst > best[0]):
                best = worst, policy
        return None if best is None else best[1]

    def best_common(self) -> tuple[ResolvedPolicy, float] | None:
        """The policy evaluated for, and within the budget of, every party with the highest worst gain."""
        best: tuple[ResolvedPolicy, float] | None = None
        for outcome, _ in self.parties[0].complete:
            gains = [self._own(outcome.policy, at) for at in range(len(self.parties))]
            held = all(self.holds(outcome.policy, at) for at in range(len(self.parties)))
            worst = min((g if g is not None else -np.inf for g in gains), default=-np.inf)
            if held and worst > (-np.inf if best is None else best[1]):
                best = outcome.policy, worst
        return best

    def missing(self, policy: ResolvedPolicy) -> list[int]:
        """Positions of the parties that a policy was not evaluated for."""
        return [at for at in range(len(self.parties)) if self._own(policy, at) is None]

    def offer(self, policy: ResolvedPolicy, at: int, origin: str) -> Offer:
        """A policy of a party's space as an offer."""
        t = self.translated(policy, at)
        return Offer(t.point, t.policy, origin)

    # -- what the offers rest on

    def difference(self, source: int, at: int) -> float:
        """Mean gain lost from one party's numerics to another's, by policies evaluated for both."""
        if self.parties[source].numerics == self.parties[at].numerics:
            return 0.0
        problem = self.parties[at].problem
        own = {o.policy.digest: problem.gain(a) for o, a in self.parties[at].complete}
        pairs = []
        for outcome, accuracy in self.parties[source].complete:
            digest = self.translated(outcome.policy, at).policy.digest
            if digest in own:
                pairs.append(problem.gain(accuracy) - own[digest])
        return float(sum(pairs) / (len(pairs) + DOUBT))

    def translated(self, policy: ResolvedPolicy, at: int) -> Translation:
        """A policy as the space of a party has it."""
        key = (policy.digest, at)
        if key not in self._translated:
            self._translated[key] = translated(policy, self.parties[at].problem.space)
        return self._translated[key]

    def price(self, policy: ResolvedPolicy, at: int) -> dict[str, float]:
        """Exact costs for a party."""
        key = (policy.digest, at)
        if key not in self._prices:
            table = self.parties[at].problem.costs([policy])
            self._prices[key] = {k: float(v[0]) for k, v in table.items()}
        return self._prices[key]

    def holds(self, policy: ResolvedPolicy, at: int) -> bool:
        """Whether a policy holds the limits of a party."""
        return not self.parties[at].problem.budget.why_not(self.price(policy, at))

    def _own(self, policy: ResolvedPolicy, at: int) -> float | None:
        party = self.parties[at]
        found = (a for o, a in party.complete if o.policy.digest == policy.digest)
        accuracy = next(found, None)
        return None if accuracy is None else party.problem.gain(accuracy)

    def _expected(self, policy: ResolvedPolicy, at: int) -> float:
        """Its gain for a party: as evaluated, else as others' outcomes of nearly the same policy promise."""
        own = self._own(policy, at)
        if own is not None:
            return own
        promises = []
        for i, other in enumerate(self.parties):
            for outcome, accuracy in other.complete if i != at else ():
                if self._everywhere(outcome.policy) == policy:
                    promises.append(other.problem.gain(accuracy) - self.difference(i, at))
        return float(np.mean(promises)) if promises else -np.inf

    def _candidates(self) -> list[ResolvedPolicy]:
        found: dict[str, ResolvedPolicy] = {}
        for party in self.parties:
            for outcome, _ in party.complete:
                policy = self._everywhere(outcome.policy)
                if policy is not None and all(self.holds(policy, at) for at in range(len(self.parties))):
                    found.setdefault(policy.digest, policy)
        return list(found.values())

    def _everywhere(self, policy: ResolvedPolicy) -> ResolvedPolicy | None:
        """The nearest policy that is one of every space; None where rounding for one undoes another's."""
        for at in range(len(self.parties)):
            policy = self.translated(policy, at).policy
        exact = all(self.translated(policy, at).exact for at in range(len(self.parties)))
        return policy if exact else None

    def _front(self, at: int) -> NDArray[np.float64]:
        """(gain, latency) of a party's front, (F, 2)."""
        problem = self.parties[at].problem
        key = problem.budget.latency_key
        rows = [(problem.gain(a), o.costs[key]) for o, a in self.parties[at].complete if usable(o)]
        table = np.array(rows, dtype=float).reshape(len(rows), 2)
        return table[front_mask(table, (True, False))]

    def _volume(self, points: NDArray[np.float64], at: int) -> float:
        """Hypervolume of (gain, latency) down to `reference_gain` and up to the budget's latency."""
        problem = self.parties[at].problem
        edge = problem.budget.limits.get(problem.budget.latency_key, self._widest(at))
        return hypervolume(points, (reference_gain(problem), edge * EDGE), (True, False))

    def _widest(self, at: int) -> float:
        """Latency of the uncompressed network, which no policy worth offering exceeds by much."""
        problem = self.parties[at].problem
        whole = problem.space.resolve(problem.space.dense)
        return self.price(whole, at)[problem.budget.latency_key]


__all__ = ["Exchange", "JoinedAgent", "Offer", "Party"]
