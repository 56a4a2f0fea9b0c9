"""AMC's and HAQ's controllers: DDPG over the episodes of `agents.episode`, as published.

He et al. 2018 (AMC, mit-han-lab/amc) and Wang et al. 2019 (HAQ, mit-han-lab/haq). As published: two hidden
layers of 300, Adam at 1e-4 (actor) and 1e-3 (critic), targets moved by 0.01, no discount, minibatches of 64,
a memory of 100 (AMC) or 128 (HAQ) episodes, the last reward copied to every step, a moving average (0.5) of
rewards subtracted, 100 (20) warm-up episodes of uniform actions, then noise from a normal truncated to [0, 1]
of deviation 0.5 * 0.95^k (0.99^k), one training update per step of an episode, 800 (600) episodes.

| differences from the papers | |
|---|---|
| actions | joint: keep ratio, rank, weight and activation bits, removal of a block, where a layer has them |
| HAQ's two steps | activation bits in the second; what HAQ does not have goes with the weight bits |
| state | both papers' states in one, over any cost; masks tell which parts of an action count |
| walls (AMC) | any limits, any predictor, after rounding: a feasible completion is carried along |
| walking bits down (HAQ) | by bisection along HAQ's order; if that does not do, the rest is repaired |
| accuracy-guaranteed (AMC) | latency in ns for FLOPs; a finished policy above a limit is repaired |
| least latency | `ddpg` then takes the accuracy-guaranteed reward, AMC's own for that goal |
| action learned | what was carried out, after walls, rounding, repair: a journal rebuilds every transition |
| fewer evaluations | by a factor f: f times the warm-up, decay to the power 1/f; updates as they are |
| several out at once | noise goes by the suggestion's number, training by the outcomes told |
| repetition | of a policy suggested before one layer is drawn anew; else all with deviation 0.1, 0.3, 0.9 |
| memory | next states are stored with their transition, not looked up in the entry that follows |
| lower bounds | the space's own (`min_keep`, ranks, bits), not 0.2 for every layer |

Replay is exact: networks, memory and baseline are a fold over the outcomes in the order in which they were
told (`DdpgAgent.learn`), and a suggestion depends on that fold and on (seed, number, attempt) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .base import SequentialAgent, Told
from .episode import MODES, Course, Mode
from .pricing import Indices
from .rewards import REWARDS
from .sites import Floats, K, Vector, chosen, taken

if TYPE_CHECKING:
    from .ddpg_network import Learner


@dataclass(frozen=True)
class Schedule:
    """Exploration over a run of ``episodes``: uniform up to ``warmup``, then noise that decays.

    ``memory`` is in episodes.
    """

    episodes: int
    warmup: int
    decay: float
    memory: int
    sigma: float = 0.5

    def scaled(self, evaluations: int) -> Schedule:
        """The schedule squeezed into fewer evaluations than published; more leave it as it is."""
        share = min(1.0, max(1, evaluations) / self.episodes)
        warmup = max(1, round(self.warmup * share))
        return replace(self, episodes=evaluations, warmup=warmup, decay=self.decay ** (1.0 / share))

    def noise(self, number: int, attempt: int) -> float:
        """Deviation of the noise for a suggestion after the warm-up; more for another attempt at it."""
        published = self.sigma * self.decay ** max(0, number - self.warmup)
        again = RETRY * 3.0 ** (attempt - 1) if attempt else 0.0
        return max(published, again, 1e-6)


#: How often one step of a repeated policy is drawn anew before the whole episode is, and the deviation of
#: the noise then, times 3 for each further attempt.
REDRAWN = 16
RETRY = 0.1
AMC = Schedule(episodes=800, warmup=100, decay=0.95, memory=100)
HAQ = Schedule(episodes=600, warmup=20, decay=0.99, memory=128)


class DdpgAgent(SequentialAgent):
    """AMC, resource-constrained: the reward is the metric, walls hold the budget."""

    name = "ddpg"
    summary = "deep deterministic policy gradient, layer by layer, walls at the budget (AMC)"
    mode: ClassVar[str] = "amc"
    published: ClassVar[Schedule] = AMC

    @cached_property
    def course(self) -> Course:
        """The rules of this problem's episodes. Walls go by estimates; suggestions are checked anyway."""
        mode: Mode = MODES[self.mode]
        if self.problem.objective == "latency" and mode.reward == "accuracy":
            mode = replace(mode, reward=MODES["amc-accuracy"].reward)
        return Course(self.pricer, mode, exact=False)

    @cached_property
    def schedule(self) -> Schedule:
        """The published schedule, squeezed into what is planned."""
        return self.published.scaled(self.problem.evaluations)

    @cached_property
    def learner(self) -> Learner:
        """Networks and memory as trained by the outcomes so far; torch is imported here."""
        from .ddpg_network import Hyper, Learner

        return Learner(len(self.course.sites), self.seed, Hyper(memory=self.schedule.memory))

    def learn(self, told: Told) -> None:
        """Remember an outcome's episode, and after the warm-up train once per step of it."""
        from .ddpg_network import TRAINING

        course, indices = self.course, told.indices
        states = course.observer.episode(indices)
        reward = REWARDS[course.mode.reward](self.problem, told.gain, told.latency)
        for step, site in enumerate(course.sites):
            action = taken(site, indices, self.space.cardinalities)
            more = float(step + 1 < len(course.sites))
            self.learner.memory.add(states[step], action, reward, states[step + 1], more)
        episode = len(self.told)
        if episode > self.schedule.warmup:
            self.learner.train(len(course.sites), np.random.default_rng((self.seed, TRAINING, episode)))

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        if self.course.witness is None:
            return None
        uniform = number < self.schedule.warmup or self.learner.updates == 0
        sigma = None if uniform else self.schedule.noise(number, attempt)
        at = self.course.start()
        while not self.course.done(at):
            at = self.course.decide(at, self._action(self.course.observe(at), sigma, rng))
        how = "warm-up, uniform actions" if sigma is None else f"actor with noise {sigma:.2g}"
        found, redrawn = self._varied(self.course.finish(at), rng)
        return found, f"{self.name}: {how}{', a layer drawn anew' if redrawn else ''}"

    def _varied(self, indices: Indices, rng: np.random.Generator) -> tuple[Indices, bool]:
        """A policy that was not suggested before: this one, or with one step's action drawn anew."""
        if not self.known(indices):
            return indices, False
        sizes = self.space.cardinalities
        for site in rng.choice(np.array(self.course.sites, dtype=object), size=REDRAWN):
            other = indices.copy()
            wanted = chosen(site, rng.random(K), sizes)
            other[list(wanted)] = list(wanted.values())
            if self.pricer.feasible(other[None])[0] and not self.known(other):
                return other, True
        return indices, False

    def _action(self, state: Vector, sigma: float | None, rng: np.random.Generator) -> Vector | Floats:
        if sigma is None:
            return rng.random(K)
        return truncated_normal(self.learner.act(state), sigma, rng)


class DdpgAccuracyAgent(DdpgAgent):
    """AMC, accuracy-guaranteed: the reward weighs error by the logarithm of latency; no walls."""

    name = "ddpg-accuracy"
    summary = "ddpg with AMC's accuracy-guaranteed reward, -error log(latency)"
    mode = "amc-accuracy"


class HaqAgent(DdpgAgent):
    """HAQ: two steps a layer, bits walked down to the budget."""

    name = "haq"
    summary = "ddpg as HAQ has it: weights, then activations of each layer, bits walked down to the budget"
    mode = "haq"
    published = HAQ


def truncated_normal(mean: Vector, sigma: float, rng: np.random.Generator) -> Floats:
    """Draws (K,) from normals around ``mean`` (K,), truncated to [0, 1], by inversion."""
    from scipy.special import ndtr, ndtri

    centre = np.asarray(mean, dtype=float)
    low, high = ndtr(-centre / sigma), ndtr((1.0 - centre) / sigma)
    drawn = np.clip(centre + sigma * ndtri(low + rng.random(len(centre)) * (high - low)), 0.0, 1.0)
    # A network that metrics of absurd size drove to NaN explores blindly instead of ending the search.
    return np.asarray(np.where(np.isnan(drawn), 0.5, drawn), dtype=float)
