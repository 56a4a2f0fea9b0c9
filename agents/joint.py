"""Joint search of all knobs: a surrogate over measured losses, moves along the budget. The default agent.

After Hutter et al. 2011 (SMAC: local search on expected improvement) and White et al. 2021 (BANANAS:
mutations of the best as candidates), on distances in the unit of measured losses.

| differences from the papers | |
|---|---|
| surrogate | Gaussian process on roots of measured losses (`embedding`), not a forest or an ensemble: it starts as the separable model and learns where additivity fails |
| candidates | exchange moves that stay at the budget; every candidate is repaired with exact costs |
| start | policies of least summed loss at the budget and below, not random points |
| turns | improvement at the budget; most hypervolume; an allocation by perturbed losses |
| least latency | improvement in log latency times the probability of holding the drop |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from .base import SequentialAgent, Told
from .contract import Budget, Problem
from .design import initial_design, settle
from .embedding import points
from .goals import Goal, staircase
from .loss_table import LossTable, separable_loss
from .moves import Mover
from .pareto import counts_from, reference_gain
from .pricing import Indices, Pricer
from .reference import losses_near
from .repair import anchors, random_feasible
from .solver import WIDEST, Known, Solution, at_most, ladder_of_solutions, reallocate
from .surrogate import Hyper, Surrogate, Warp, expected_improvement, recent_and_best
from .variants import Stream, around

Floats = NDArray[np.float64]

RAW, REPAIRED, ROUNDS, PARENTS = 48, 4, 2, 6
#: Levels of the ladder of starts; spreads of the perturbed losses of a suggestion's allocations.
LEVELS, SPREADS = 5, (0.0, 0.5)
#: Coordinates that a suggestion at the budget may change at first and at least, by how much that grows with a
#: success, and after how many failures in a row it shrinks.
REACH, LEAST_REACH, GROW, FAILURES = 8.0, 2.0, 1.5, 3
#: Share of the surrogate's standard deviation that counts: what was measured leaves little to explore.
CAUTION = 0.15
#: Candidates that are priced exactly for one suggestion, at most.
TRIES = 4
#: Parents that a suggestion stays near, and its summed loss at most, in units of the largest of theirs or of
#: the least that an allocation has within the goal's limits.
LEADERS, SLACK = 3, 1.15
#: After how many outcomes, in numbers of starts, losses are measured again, around the best policy at this
#: share of the latency; and how many levels are allocated then.
REFERENCES, RENEWED, FIRST = ((2, 1.0), (3, 0.7), (6, 1.0)), 3, -1
#: Outcomes between two choices of hyperparameters.
EPOCH = 8
#: Suggestions take turns: improvement at the budget, the whole front, allocation by perturbed losses.
TURNS, FRONT, ALLOCATE = 3, 1, 2
GOLDEN = 0.6180339887498949


class JointAgent(SequentialAgent):
    """Mutates members of the front, keeps to the budget, and lets a surrogate choose what to evaluate."""

    name = "joint"
    summary = "measured losses, a surrogate for where they do not add up, moves along the budget (default)"

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.losses = losses_near(self.pricer)
        self.loss = self.losses.loss[:, 0]
        self.repairs_by = self.loss
        # By the number of the reference that losses were measured around; FIRST are those of the start.
        self._tables: dict[int, LossTable] = {FIRST: self.losses}
        self._ladders: dict[int, list[Solution]] = {}
        self._streams: dict[int, Stream] = {}
        self._starts = max(4, min(10, problem.evaluations // 6))
        self._hypers: dict[int, Hyper] = {}
        # Costs of single changes: exact ones, and by the pricer of candidates.
        self._changed: tuple[Known, Known] = {}, {}

    @cached_property
    def design(self) -> list[tuple[Indices, str]]:
        """First suggestions: least summed loss at the budget and at tighter latencies, uniform in between."""
        levels = [(s.indices, s.origin) for s in self._solutions(FIRST)]
        plain = initial_design(self.pricer, self.problem, self._starts, self.loss)
        mixed = [d for pair in zip_longest(levels, plain) for d in pair if d is not None]
        return mixed[: self._starts]

    def _renewal(self, k: int) -> list[tuple[Indices, str]]:
        """Allocations by losses around the best policy of the first outcomes, at its latency and below."""
        count, share = REFERENCES[k]
        count *= self._starts
        if self.problem.losses_around is None or len(self.told) < count:
            return []
        if k not in self._ladders:
            budget = at_most(self.problem.budget, share * self._top)
            least = self._reference(self.told[:count]) if share < 1.0 else -np.inf  # a wreck teaches nothing
            known = [
                t
                for t in self.told[:count]
                if t.feasible and t.latency <= share * self._top and t.gain > least
            ]
            best = max(known, key=lambda t: t.gain, default=None)
            if best is not None:
                self._tables[k] = losses_near(self.pricer, best.indices)
            self._ladders[k] = [] if best is None else self._ladder(k, budget, RENEWED)
        return [(s.indices, f"{s.origin}, losses measured again") for s in self._ladders[k]]

    def _solutions(self, k: int) -> list[Solution]:
        """Allocations by the losses around reference ``k``, from the budget down."""
        if k == FIRST and k not in self._ladders:
            self._ladders[k] = self._ladder(k, self.problem.budget, LEVELS)
        return self._ladders[k]

    def _ladder(self, k: int, budget: Budget, levels: int) -> list[Solution]:
        return [*ladder_of_solutions(self.pricer, self._tables[k], budget, levels=levels, pairs=k == FIRST)]

    @cached_property
    def _top(self) -> float:
        """The latency at most, ms: the budget's, else that of the whole network."""
        base = float(self.pricer.latency(self.pricer.top[None])[0])
        return min(base, self.problem.budget.max_latency_ms or np.inf)

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if attempt == 0 and number < self._starts:
            start = next((d for d in self.design if not self.known(d[0])), None)
            if start is not None:
                return start
        for k in range(len(REFERENCES)) if attempt == 0 else ():
            fresh = next((d for d in self._renewal(k) if not self.known(d[0])), None)
            if fresh is not None:
                return fresh
        if len(self.told) < 3 or attempt > 2:
            drawn = random_feasible(self.pricer, rng)
            return None if drawn is None else (drawn, "random, repaired to the budget")
        return self._searched(number, rng)

    def _searched(self, number: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if number % TURNS == ALLOCATE and self.problem.objective == "accuracy":
            listed = self._listed() if number // TURNS % 2 else None
            found = listed or self._perturbed(rng, 1.0)
            if found is not None:
                return found
        gain = np.array([t.gain for t in self.told])
        surrogate = self._surrogate(recent_and_best(gain), gain)
        surrogate.believe(points(self.losses, self.waiting()))
        latency = np.array([t.latency for t in self.told])
        for turn in (number, number + 1):
            found = self._best_of(self._goal(turn, gain, latency), surrogate, rng)
            if found is not None:
                return found
        found = self._perturbed(rng, float(rng.uniform(0.6, 1.0)))
        if found is not None:
            return found
        drawn = random_feasible(self.pricer, rng)
        return None if drawn is None else (drawn, "random: every candidate was known")

    def _listed(self) -> tuple[Indices, str] | None:
        """What `exact` would suggest next at the budget, by the newest losses; None where none are."""
        k = self._newest()
        if not self._tables[k].measured.any():
            return None
        if k not in self._streams:
            first = self._solutions(k)[:1]
            source = around(first[0], self._tables[k], self.seed) if first else iter(())
            self._streams[k] = Stream(self.pricer, source, self._holds)
        return self._streams[k].pick(self._digests)

    def _perturbed(self, rng: np.random.Generator, share: float) -> tuple[Indices, str] | None:
        """An allocation at a share of the latency, by the newest losses, perturbed until it is new."""
        start = max((t for t in self.told if t.feasible), key=lambda t: t.gain, default=self.told[0]).indices
        budget = at_most(self.problem.budget, share * self._top)
        losses, pricer = self._tables[self._newest()], self._trusted()
        changed = self._changed[pricer is self.pricer]
        for spread in (0.2, 0.4, 0.8, 1.5):
            factors = np.exp(rng.normal(0.0, spread, size=len(self.loss)))
            point = reallocate(pricer, losses.scaled(factors), budget, start, changed)
            held = None if point is None else self._held(point)
            if held is not None and not self.known(held):
                return held, f"joint: allocation by losses perturbed by e^{spread:g}"
        return None

    def _trusted(self) -> Pricer:
        """What allocations are priced by: estimates, or exact costs where `settled` found those off."""
        return next((s.pricer for s in self._solutions(FIRST)), self.pricer)

    def _newest(self) -> int:
        """The reference at the budget that losses were last measured around."""
        for k in reversed(range(len(REFERENCES))):
            if REFERENCES[k][1] == 1.0 and self._renewal(k):
                return k
        return FIRST

    def _best_of(
        self, goal: Goal, surrogate: Surrogate, rng: np.random.Generator
    ) -> tuple[Indices, str] | None:
        """The most promising candidate that is new and holds the budget by exact costs; None of none."""
        parents = self._parents(goal)
        goal = self._by_estimates(goal, parents[0])
        loss = self._marginal(parents[0], surrogate)
        # Far from all that is good a surrogate is sure of nothing, which is no reason to go there.
        fresh = self._allocated(parents[0], goal, loss, rng)
        usual = float(separable_loss(self.losses, parents[:LEADERS]).max())
        if fresh:  # parents of more latency than the goal's may lose less than anything can there
            usual = max(usual, float(separable_loss(self.losses, np.stack(fresh)).min()))
        most = SLACK * usual
        found: dict[bytes, tuple[float, Indices]] = {}
        ranked: list[tuple[float, Indices]] = []
        for k in range(ROUNDS):
            for score, row in self._round(parents, goal, surrogate, loss, [] if k else fresh, most, rng):
                found[row.tobytes()] = (score, row)
            ranked = sorted(found.values(), key=lambda p: (-p[0], p[1].tobytes()))
            parents = np.stack([r for _, r in ranked[:3]] + list(parents[:2])) if ranked else parents
        for row in islice((r for _, r in ranked if not self.known(r)), TRIES):
            held = self._held(row)
            if held is None or self.known(held):
                continue
            if separable_loss(self.losses, held[None])[0] <= most:
                return held, goal.origin
        return None

    # -- what is believed

    def _surrogate(self, rows: NDArray[np.int64], gain: Floats) -> Surrogate:
        """The surrogate of these outcomes; hyperparameters are those of the last full epoch."""
        epoch = len(gain) // EPOCH * EPOCH
        if epoch not in self._hypers:
            early = gain[:epoch] if epoch else gain
            known = recent_and_best(early)
            fitted = Surrogate(self._points(known), Warp(early[known]).warp(early[known]))
            if not epoch:
                return fitted
            self._hypers[epoch] = fitted.hyper
        y = Warp(gain[rows]).warp(gain[rows])
        return Surrogate(self._points(rows), y, self._hypers[epoch])

    def _points(self, rows: NDArray[np.int64]) -> Floats:
        return points(self.losses, np.stack([self.told[k].indices for k in rows]))

    # -- what is wanted

    def _goal(self, number: int, gain: Floats, at: Floats) -> Goal:
        budget, problem = self.problem.budget, self.problem
        base = float(self.pricer.latency(self.pricer.top[None])[0])
        back = Warp(gain[recent_and_best(gain)])
        if problem.objective == "latency":
            floor = self._floor()
            held = at[gain >= floor - 1e-12]
            best = float(min(held.min(initial=np.inf), base))
            level = best * (0.97, 0.9, 0.8, 0.65)[number % 4]
            threshold = float(back.warp(np.array(floor)))
            return Goal(at_most(budget, level), threshold, back, f"joint: below {level:.4g} ms", best)
        feasible = np.array([t.feasible for t in self.told], dtype=bool)
        best = float(back.warp(gain[feasible].max())) if feasible.any() else float(back.warp(gain.min()))
        if number % TURNS != FRONT:
            return Goal(budget, best, back, "joint: expected improvement at the budget")
        top = self._top
        reference = self._reference(self.told)
        steps = staircase(at[feasible], gain[feasible], reference)
        counting = at[feasible & (gain > reference)]
        least = max(
            float(self.pricer.latency(anchors(self.pricer)[1][None])[0]), 0.85 * counting.min(initial=top)
        )
        level = top * (least / top) ** ((number * GOLDEN) % 1.0) if least < top else top
        origin, widest = (
            f"joint: more area, below {level:.4g} ms",
            budget.limits.get(budget.latency_key, level),
        )
        below = gain[feasible & (at <= level)]
        lowest = float(back.warp(below.max())) if len(below) else float(back.warp(gain.min()))
        return Goal(at_most(budget, level), lowest, back, origin, None, steps, widest)

    def _reference(self, told: Sequence[Told]) -> float:
        """The gain from which a front counts: the problem's, or below the best where nothing reaches that."""
        usual = reference_gain(self.problem)
        most = max((t.gain for t in told if t.feasible), default=-np.inf)
        return usual if most > usual or not np.isfinite(most) else counts_from(most)

    def _by_estimates(self, goal: Goal, at: Indices) -> Goal:
        """The goal with its limits moved by how far estimates are off around ``at``."""
        if self.problem.estimates is None:
            return goal
        key, exact = self.problem.budget.latency_key, self.pricer.exact(at)
        factor = exact[key] / max(float(self.pricer.latency(at[None])[0]), 1e-12)
        budget = self.pricer.tightened(at, exact, goal.budget, most=WIDEST)
        return replace(goal, budget=budget, factor=factor)

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

    # -- candidates

    def _round(
        self,
        parents: Indices,
        goal: Goal,
        surrogate: Surrogate,
        loss: Floats,
        fresh: list[Indices],
        most: float,
        rng: np.random.Generator,
    ) -> list[tuple[float, Indices]]:
        """One round of mutation, repair and scoring: (score, indices) of feasible candidates."""
        mover = Mover(self.pricer, goal.budget, loss)
        raw = np.unique(np.stack([mover.mutate(parents, rng) for _ in range(RAW)]), axis=0)
        mean, std = surrogate.predict(points(self.losses, raw))
        excess = self.pricer.excess(raw, goal.budget)
        # Over the budget a candidate will lose in the repair, under it it will gain by growing: at this rate.
        promise = expected_improvement(mean - mover.rate(parents[0]) * np.clip(excess, -1, 1), std, goal.best)
        chosen = np.argsort(-promise, kind="stable")[:REPAIRED]
        starts = [parents[0], *raw[chosen]]
        repaired = [r for s in starts if (r := self._settled(s, goal, loss, rng)) is not None]
        rows = np.concatenate([raw[excess <= 0], *(r[None] for r in (*repaired, *fresh))])
        rows = rows[separable_loss(self.losses, rows) <= most]
        if goal.steps is None:
            rows = self._near(rows, parents[:LEADERS])
        if not len(rows):
            return []
        return list(zip(self._score(rows, goal, surrogate).tolist(), rows, strict=True))

    def _near(self, rows: Indices, parents: Indices) -> Indices:
        """Rows that change few coordinates of a parent: far away the surrogate's best is its worst error.

        How many follows from the outcomes: more after a success, fewer after failures (a trust region, as in
        TuRBO, Eriksson et al. 2019, counted in coordinates).
        """
        changed = (rows[:, None] != parents[None]).sum(2).min(1, initial=len(self.loss))
        found: Indices = rows[changed <= self._reach()]
        return found

    def _reach(self) -> float:
        reach, failures, best = REACH, 0, -np.inf
        for t in self.told:
            if t.number >= self._starts and t.number % TURNS == 0:
                failures = 0 if t.gain > best else failures + 1
                reach *= GROW if t.gain > best else 1.0
                if failures == FAILURES:
                    reach, failures = reach / GROW, 0
                reach = float(np.clip(reach, LEAST_REACH, len(self.loss)))
            if t.feasible:
                best = max(best, t.gain)
        return reach

    def _allocated(self, at: Indices, goal: Goal, loss: Floats, rng: np.random.Generator) -> list[Indices]:
        """Allocations of least summed loss, the losses as the outcomes have it and somewhat perturbed."""
        found = []
        for spread in SPREADS:
            factors = loss / self.loss * np.exp(rng.normal(0.0, spread, size=len(loss)))
            point = reallocate(self.pricer, self.losses.scaled(factors), goal.budget, at, self._changed[True])
            if point is not None:
                found.append(point)
        return found

    def _settled(self, start: Indices, goal: Goal, loss: Floats, rng: np.random.Generator) -> Indices | None:
        return settle(self.pricer, start, goal.budget, loss * np.exp(rng.normal(0.0, 0.3, size=len(loss))))

    def _marginal(self, at: Indices, surrogate: Surrogate) -> Floats:
        """Predicted loss of each coordinate, top to bottom, around ``at``; at least a share of the prior."""
        d = len(at)
        high, low = np.repeat(at[None], d, axis=0), np.repeat(at[None], d, axis=0)
        np.fill_diagonal(high, self.pricer.top)
        np.fill_diagonal(low, 0)
        mean, _ = surrogate.predict(points(self.losses, np.concatenate([high, low])))
        predicted = mean[:d] - mean[d:]
        unit = max(float(np.mean(np.maximum(predicted, 0.0))), 1e-9) / float(np.mean(self.loss))
        return np.maximum(predicted, 0.05 * unit * self.loss)

    def _score(self, rows: Indices, goal: Goal, surrogate: Surrogate) -> Floats:
        mean, std = surrogate.predict(points(self.losses, rows))
        return goal.score(mean, CAUTION * std, goal.factor * self.pricer.latency(rows))


__all__ = ["JointAgent"]
