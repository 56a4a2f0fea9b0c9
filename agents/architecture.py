"""Architecture weights: one logit a value and coordinate, trained on a relaxation under a budget.

The network is differentiable in the gates (`agents.contract.Relaxation`); the expected cost of a random
policy is multilinear in its probabilities, so its derivative by the probability of value v of coordinate i is
the expected cost with v taken there, less a constant of the coordinate (Cai et al. 2019, section 3.3, where
latency is a sum over layers; here it may be any function).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .contract import Budget, Gates, Problem, Relaxation
from .pricing import Indices, Pricer
from .repair import expected_losses

Floats = NDArray[np.float64]

#: Gumbel-softmax temperature at the first and the last step of a training.
TEMPERATURE = (1.0, 0.5)
#: Adam (Kingma & Ba 2015) on the logits; epsilon in units of the root mean square of the whole gradient, so
#: that logits which nothing depends on stay where they are.
RATE, MOMENTUM, SECOND, EPSILON = 0.2, 0.5, 0.95, 0.1
#: Steps between two looks at the costs, the share of the coordinates looked at, and of old slopes kept.
COST_EVERY, COST_SHARE, COST_MEMORY = 6, 3, 0.5
#: Memory of the mean slope of the loss, per step.
SLOPE_MEMORY = 0.95
#: Multiplier of a relative excess of 1, and its growth a step, in units of the loss at the start.
PENALTY, ASCENT = 2.0, 0.05


class Separable:
    """A relaxation that is a sum: every value's own loss, as measured or expected. Nats a sample."""

    def __init__(self, losses: Sequence[Floats]) -> None:
        self.losses = losses

    @classmethod
    def of(cls, problem: Problem) -> Separable:
        """From `Problem.losses`; what was not measured grows with the square of the distance from the top."""
        given = problem.losses() if problem.losses is not None else {}
        found = []
        for choice, worst in zip(problem.space.choices, expected_losses(problem), strict=True):
            last = len(choice.values) - 1
            guess = worst * (1.0 - np.arange(last + 1) / max(last, 1)) ** 2
            measured = np.asarray(given.get(choice.name, np.full(last + 1, np.nan)), dtype=float)
            found.append(np.where(np.isfinite(measured), np.maximum(measured, 0.0), guess))
        return cls(found)

    def step(self, gates: Gates, batch: int) -> tuple[float, list[Floats]]:
        """The sum and its gradient; the same for every batch."""
        total = sum(float(g @ x) for g, x in zip(gates, self.losses, strict=True))
        return total, [x.copy() for x in self.losses]


class Logits:
    """A distribution over policies, independent by coordinate: logits (d, V), -inf where no value is."""

    def __init__(self, values: Floats) -> None:
        self.values = values

    @classmethod
    def around(cls, pricer: Pricer, centre: Indices) -> Logits:
        """Spread around a policy: channels over their neighbours, other choices with 0.7 at its value."""
        sizes = pricer.space.cardinalities
        values = np.full((len(sizes), int(sizes.max(initial=1))), -np.inf)
        for i, (n, c) in enumerate(zip(sizes, centre, strict=True)):
            if pricer.kinds[i] == "keep":
                values[i, :n] = -0.5 * ((np.arange(n) - c) / max(1.0, 0.2 * n)) ** 2
            else:
                values[i, :n] = np.log(0.3 / max(n - 1, 1))
                values[i, c] = np.log(0.7)
        return cls(values)

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """(d, V), rows of sum 1."""
        return softmax(self.values / temperature)

    @property
    def mode(self) -> Indices:
        """The most probable policy, (d,)."""
        found: Indices = self.values.argmax(axis=1)
        return found

    def sample(self, rng: np.random.Generator, changes: float) -> Indices:
        """A policy that differs from the mode in about ``changes`` coordinates; sets the temperature."""
        low, high = -6.0, 6.0
        for _ in range(24):
            middle = (low + high) / 2
            expected = float((1.0 - self.probabilities(np.exp(middle)).max(axis=1)).sum())
            low, high = (middle, high) if expected < changes else (low, middle)
        return draw(self.probabilities(np.exp(high)), rng)

    def moved(self, change: Floats) -> Logits:
        """The logits plus a change (d, V)."""
        return Logits(np.where(np.isfinite(self.values), self.values + change, -np.inf))


def softmax(values: Floats) -> Floats:
    """Along the last axis; -inf gives 0."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    found: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return found


def draw(probabilities: Floats, rng: np.random.Generator) -> Indices:
    """One value a row, (d,)."""
    below = np.cumsum(probabilities, axis=1) < rng.random((len(probabilities), 1))
    found: Indices = np.minimum(below.sum(axis=1), (probabilities > 0).sum(axis=1) - 1)
    return found


@dataclass
class Slopes:
    """Expected costs and their first-order differences, in units of the limits; refreshed a part at a time.

    ``differences[name]`` (d, V): cost with a value taken less cost with the last one, others drawn from the
    distribution.
    """

    pricer: Pricer
    limits: dict[str, float]
    differences: dict[str, Floats] = field(init=False)
    _at: Indices = field(init=False)
    _cost: dict[str, float] = field(init=False)
    _looks: int = 0

    def __post_init__(self) -> None:
        shape = (len(self.pricer.top), int(self.pricer.space.cardinalities.max(initial=1)))
        self.differences = {n: np.zeros(shape) for n in self.limits}

    def refresh(self, logits: Logits, rng: np.random.Generator) -> None:
        """Draw a policy, price all values of some of its coordinates; the first time, of all."""
        at, d = draw(logits.probabilities(), rng), len(self.pricer.top)
        share = COST_SHARE if self._looks else 1
        chosen = [i for i in range(d) if (i + self._looks) % share == 0]
        where = [(i, v) for i in chosen for v in range(int(self.pricer.space.cardinalities[i]))]
        rows = np.repeat(at[None], len(where) + 1, axis=0)
        for r, (i, v) in enumerate(where, start=1):
            rows[r, i] = v
        priced = self.pricer.price(rows)
        keep = COST_MEMORY if self._looks else 0.0
        for name, limit in self.limits.items():
            cost = np.asarray(priced[name]) / limit
            table = self.differences[name]
            fresh = np.zeros_like(table)
            for r, (i, v) in enumerate(where, start=1):
                fresh[i, v] = cost[r]
            for i in chosen:
                n = int(self.pricer.space.cardinalities[i])
                table[i, :n] = keep * table[i, :n] + (1 - keep) * (fresh[i, :n] - fresh[i, n - 1])
        self._at, self._cost = at, {n: float(priced[n][0]) / x for n, x in self.limits.items()}
        self._looks += 1

    def expected(self, probabilities: Floats) -> dict[str, float]:
        """First-order expected cost over its limit, by name."""
        rows = np.arange(len(self._at))
        return {
            name: self._cost[name] + float((probabilities * table).sum() - table[rows, self._at].sum())
            for name, table in self.differences.items()
        }


class Adam:
    """Adam's step for an array, with an epsilon relative to the gradient's own size."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.first, self.second, self.count = np.zeros(shape), np.zeros(shape), 0

    def step(self, gradient: Floats) -> Floats:
        """The change to make."""
        self.count += 1
        self.first = MOMENTUM * self.first + (1 - MOMENTUM) * gradient
        self.second = SECOND * self.second + (1 - SECOND) * gradient**2
        first = self.first / (1 - MOMENTUM**self.count)
        second = np.sqrt(self.second / (1 - SECOND**self.count))
        found: Floats = -RATE * first / (second + EPSILON * np.sqrt(np.mean(second**2)) + 1e-30)
        return found


@dataclass
class Trained:
    """What a training leaves.

    ``multipliers`` by limit, nats; ``slopes`` (d, V): loss of taking a value in place of the last one, to
    first order, around the distribution the training ended at.
    """

    logits: Logits
    multipliers: dict[str, float]
    slopes: Floats

    @property
    def loss(self) -> Floats:
        """Loss expected of each coordinate from its last to its first value, (d,), for repair.

        None below a hundredth of the median, so that nothing is free.
        """
        positive = self.slopes[:, 0][self.slopes[:, 0] > 0]
        floor = 1e-2 * float(np.median(positive)) if len(positive) else 1.0
        found: Floats = np.maximum(self.slopes[:, 0], floor)
        return found


class Trainer:
    """Trains logits of one problem; counts the relaxation's steps and its seconds, which are not its own."""

    def __init__(self, pricer: Pricer, relaxation: Relaxation) -> None:
        self.pricer = pricer
        self.relaxation = relaxation
        self.steps = 0
        self.seconds = 0.0
        self.sizes = pricer.space.cardinalities

    def one_hot(self, indices: Indices, batch: int = 0) -> float:
        """The relaxed loss of one policy."""
        return self._step([np.eye(n)[i] for n, i in zip(self.sizes, indices, strict=True)], batch)[0]

    def train(
        self,
        start: Logits,
        budget: Budget,
        steps: int,
        scale: float,
        rng: np.random.Generator,
        multipliers: dict[str, float] | None = None,
    ) -> Trained:
        """Minimise the relaxed loss subject to expected costs, by dual ascent on every limit.

        ``scale``: size of the losses at stake, nats; ``multipliers`` to start from.
        """
        logits, slopes = start, Slopes(self.pricer, dict(budget.limits))
        adam = Adam(start.values.shape)
        dual = {name: (multipliers or {}).get(name, 0.0) for name in slopes.limits}
        mean, last = np.zeros(start.values.shape), (np.arange(len(self.sizes)), self.pricer.top)
        for k in range(steps):
            if k % COST_EVERY == 0:
                slopes.refresh(logits, rng)
            warm = k / max(steps - 1, 1)
            temperature = TEMPERATURE[0] * (TEMPERATURE[1] / TEMPERATURE[0]) ** warm
            noisy = softmax((logits.values + rng.gumbel(size=logits.values.shape)) / temperature)
            slope = self._slope(noisy, k)
            mean = SLOPE_MEMORY * mean + (1 - SLOPE_MEMORY) * (slope - slope[last][:, None])
            gradient = _through(noisy, slope) / temperature
            p = logits.probabilities()
            for name, ratio in slopes.expected(p).items():
                excess = float(np.clip(ratio - 1.0, -1.0, 1.0))
                weight = max(0.0, dual[name] + PENALTY * scale * excess)
                gradient = gradient + weight * _through(p, slopes.differences[name])
                dual[name] = max(0.0, dual[name] + ASCENT * scale * excess)
            logits = logits.moved(adam.step(gradient))
        return Trained(logits, dual, mean / (1 - SLOPE_MEMORY**steps))

    def _slope(self, gates: Floats, batch: int) -> Floats:
        """The loss's gradient by the gates, (d, V), 0 beyond a coordinate's values."""
        found = self._step([row[:n] for row, n in zip(gates, self.sizes, strict=True)], batch)[1]
        padded = np.zeros_like(gates)
        for i, g in enumerate(found):
            padded[i, : len(g)] = g
        return np.nan_to_num(padded)

    def _step(self, gates: Gates, batch: int) -> tuple[float, list[Floats]]:
        begin = time.perf_counter()
        found = self.relaxation.step(gates, batch)
        self.seconds += time.perf_counter() - begin
        self.steps += 1
        return found


def _through(probabilities: Floats, slope: Floats) -> Floats:
    """Gradient by logits of a softmax from that by its probabilities, (d, V)."""
    found: Floats = probabilities * (slope - (probabilities * slope).sum(axis=1, keepdims=True))
    return found


__all__ = ["Logits", "Separable", "Slopes", "Trained", "Trainer", "draw", "softmax"]
