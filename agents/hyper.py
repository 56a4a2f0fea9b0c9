"""Learning to learn: a network trained on past studies proposes half of `joint`'s starts.

The survey (Cheng et al. 2017, VIII.C) points to Andrychowicz et al. 2016 ([76], learning to learn by gradient
descent by gradient descent) and to Ha et al. 2016 ([77], HyperNetworks) for choosing a compression's settings.

| differences from the papers | |
|---|---|
| what is learned [76] | not the steps of an optimiser but where it should begin; `joint` is the optimiser, and keeps its own starts too |
| how [76] | past studies' best policies are imitated, no gradient through a whole search: an evaluation has none |
| shared over coordinates [76] | the same: one network for every coordinate, whatever their number; here they also see each other's mean (Deep Sets) instead of a memory of gradients |
| a network that makes a network [77] | it makes the policy, from which the compressed network follows, not the weights |
| embedding of layers [77] | not learned vectors, which a new network would not have, but measured features (`features`) |
| budget | neither has one: it is an input, and what comes out is tilted until it just holds |
| uncertainty | an ensemble; its members and samples from it are suggested beside its mean |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .contract import Budget, Problem
from .design import settle
from .features import KINDS, Features, budget_shares, features
from .goals import Goal
from .hypernet import BINS, HyperNet, trained
from .joint import JointAgent
from .past import PastStudy
from .pricing import Indices
from .repair import GROWABLE, anchors
from .solver import at_most

Floats = NDArray[np.float64]

#: Latency that the network is asked for, over the limit (or over the uncompressed network's for least
#: latency), start by start. At the limit joint's own starts are hard to beat, down the front it has none.
LEVELS = (0.6, 1.0, 0.4, 1.0, 0.75, 1.0, 0.5, 1.0, 0.3, 1.0)
LADDER = (0.8, 0.5, 0.65, 0.35, 0.9, 0.25, 0.58, 0.42, 0.72, 0.3)
#: The learned start that recalls an earlier study of the same network; samples drawn where all else is known.
RECALLED, SAMPLES = 1, 3
#: Kinds that are tilted to meet the budget, each time those before and more.
GIVING_WAY = (GROWABLE, (*GROWABLE, "rank"), KINDS)
#: Strengths of the tilt by which a distribution is brought to the budget, strongest down first.
TILTS = np.concatenate([-np.geomspace(40.0, 0.25, 20), [0.0], np.geomspace(0.25, 40.0, 20)])
#: Exponent that sharpens probabilities before a sample is drawn: d coordinates err together.
SHARP = 2.0


class HyperAgent(JointAgent):
    """`joint`, begun where a network trained on past studies says. Without past studies it is `joint`.

    Joint's own starts stay, the uniform ladder at the budget; what is learned takes the place of its random
    ones, and of half the random candidates among which it chooses later.

    ``others_only``: learn from other networks' studies alone, to judge what carries over.
    """

    name = "hyper"
    summary = "joint, begun where a network trained on past studies says; without any it is joint"

    def __init__(self, problem: Problem, seed: int = 0, *, others_only: bool = False) -> None:
        super().__init__(problem, seed)
        self.others_only = others_only
        _ = self.studies  # read now: what a run learns from is settled before its first suggestion

    @cached_property
    def studies(self) -> tuple[PastStudy, ...]:
        """What is learned from."""
        own = self.space.structure.graph.digest
        given = self.problem.past() if self.problem.past is not None else ()
        return tuple(s for s in given if s.elites and not (self.others_only and s.network == own))

    @cached_property
    def net(self) -> HyperNet:
        """The network, trained the first time it is asked."""
        return trained(self.studies)

    @cached_property
    def features(self) -> Features:
        """This problem's features, as past studies kept theirs."""
        return features(self.pricer)

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        starting = attempt == 0 and number < self._starts and number % 2 == 1
        if starting and len(self.pricer.top) and self.studies:
            for found, origin in self._begun(number // 2, rng):
                if found is not None and not self.known(found):
                    return found, origin
        return super().propose(number, attempt, rng)

    def _begun(self, k: int, rng: np.random.Generator) -> Iterator[tuple[Indices | None, str]]:
        """What may be the ``k``-th learned start: what this network had before, mean, member, samples."""
        budget, words = self._level(k), f"of {len(self.studies)} past studies"
        if k == RECALLED:
            yield self._recalled(budget), "recalled: the best of an earlier study at this budget"
        p = self._asked(budget)
        if k % 2 == 0:
            yield self._tilted(p.mean(0), budget, None), f"learned: mean {words}"
        member = k // 2 % len(p)
        yield self._tilted(p[member], budget, None), f"learned: member {member} {words}"
        for _ in range(SAMPLES):
            yield self._sampled(p, budget, rng), f"learned: a sample {words}"

    def _allocated(self, at: Indices, goal: Goal, loss: Floats, rng: np.random.Generator) -> list[Indices]:
        """As `joint`'s, and a sample of the network among them."""
        found = super()._allocated(at, goal, loss, rng)
        if len(self.pricer.top) and self.studies:
            drawn = self._sampled(self._asked(goal.budget), goal.budget, rng)
            found += [] if drawn is None else [drawn]
        return found

    # -- what the network is asked

    def _level(self, k: int) -> Budget:
        """The budget of the ``k``-th learned start, or one with a lower latency."""
        budget = self.problem.budget
        base = float(self.pricer.latency(self.pricer.top[None])[0])
        if self.problem.objective == "latency":
            least = float(self.pricer.latency(anchors(self.pricer)[1][None])[0])
            share = LADDER[k % len(LADDER)]
            return at_most(budget, max(share * base, 1.05 * least))
        if budget.max_latency_ms is None:
            return budget
        return at_most(budget, LEVELS[k % len(LEVELS)] * budget.max_latency_ms)

    def _asked(self, budget: Budget) -> Floats:
        """Probabilities of places, (members, d, BINS), for a budget."""
        base = {k: float(v[0]) for k, v in self.pricer.price(self.pricer.top[None]).items()}
        return self.net.distributions(self.features, budget_shares(budget, base))

    def _recalled(self, budget: Budget) -> Indices | None:
        """The best that a study of this very network and space found at the nearest budget, repaired."""
        own, names = self.space.structure.graph.digest, tuple(c.name for c in self.space.choices)
        same = [s for s in self.studies if s.network == own and s.coordinates == names]
        base = {k: float(v[0]) for k, v in self.pricer.price(self.pricer.top[None]).items()}
        wanted = budget_shares(budget, base)
        ranked = sorted(
            ((_apart(wanted, e.shares), -e.gain, s.digest, e) for s in same for e in s.elites),
            key=lambda r: r[:3],
        )
        if not ranked:
            return None
        fractions = [1.0 if f is None else f for f in ranked[0][3].fractions]
        start: Indices = np.rint(np.array(fractions) * self.pricer.top).astype(np.int64)
        return settle(self.pricer, start, budget, self.loss)

    # -- from probabilities to a policy that holds the budget

    def _sampled(self, p: Floats, budget: Budget, rng: np.random.Generator) -> Indices | None:
        """One member's distribution, sharpened, and a random quantile for every coordinate."""
        one = p[int(rng.integers(len(p)))] ** SHARP
        return self._tilted(one / one.sum(-1, keepdims=True), budget, rng.random(len(one)))

    def _tilted(self, p: Floats, budget: Budget, quantiles: Floats | None) -> Indices | None:
        """The policy of places ``p`` (d, BINS) that just holds the budget.

        Probabilities are multiplied by exp(tilt * place): a coordinate gives way the more, the less the
        network is sure of it. Channels and weight bits first, then ranks, then which kernels run: the next
        only where those before are all too much, or all too little. ``quantiles`` (d,): median by default.
        """
        top, kinds = self.pricer.top, self.pricer.kinds
        chances = _spread_over(p, top)
        along = _picked(chances, top, TILTS, quantiles)
        base, done = along[len(TILTS) // 2], np.zeros(len(top), dtype=bool)
        for kind in GIVING_WAY:
            path = np.where(np.isin(kinds, kind) & ~done, along, base)
            held = np.flatnonzero(self.pricer.feasible(path, budget))
            if len(held) and held[-1] + 1 < len(TILTS):
                base = path[held[-1]] if not done.any() or TILTS[held[-1]] > 0 else base
                break
            if len(held):
                base, done = path[-1], np.isin(kinds, kind)
            elif done.any():
                break
        return settle(self.pricer, base, budget, self.loss)


def _apart(wanted: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Distance of two budgets: the largest factor between the shares of one cost, as a logarithm."""
    both = [abs(np.log(max(wanted[c], 1e-9) / max(shares[c], 1e-9))) for c in wanted if c in shares]
    return float(max(both, default=0.0))


def _spread_over(p: Floats, top: Indices) -> Floats:
    """Places (d, BINS) as probabilities of each coordinate's values 0 to ``top`` (d,); (d, V)."""
    index = np.arange(int(top.max(initial=0)) + 1)[None]
    at = _places(index, top) * (BINS - 1)
    low = np.minimum(at.astype(np.int64), BINS - 2)
    rows = np.arange(len(p))[:, None]
    found: Floats = (1 - at + low) * p[rows, low] + (at - low) * p[rows, low + 1]
    found = np.where(index <= top[:, None], np.maximum(found, 1e-12), 0.0)
    normal: Floats = found / found.sum(1, keepdims=True)
    return normal


def _places(index: Indices, top: Indices) -> Floats:
    """Where in 0..1 value indices (1, V) are in ranges that end at ``top`` (d,); 1 beyond; (d, V)."""
    found: Floats = np.where(top[:, None] > 0, np.minimum(index / np.maximum(top, 1)[:, None], 1.0), 1.0)
    return found


def _picked(chances: Floats, top: Indices, tilts: Floats, quantiles: Floats | None) -> Indices:
    """Value indices (T, d) at ``quantiles`` (d,), default one half, of ``chances`` (d, V) under each tilt."""
    index = np.arange(chances.shape[1])[None]
    with np.errstate(divide="ignore"):
        logs = np.log(chances)[None] + tilts[:, None, None] * _places(index, top)[None]
    weights = np.exp(logs - logs.max(2, keepdims=True))
    below = np.cumsum(weights / weights.sum(2, keepdims=True), 2)
    at = 0.5 if quantiles is None else quantiles[None, :, None]
    found: Indices = np.minimum((below < at).sum(2), top[None])
    return found


__all__ = ["HyperAgent"]
