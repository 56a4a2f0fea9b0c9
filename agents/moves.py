"""Mutations that keep close to a budget: exchange, step, crossover, and a change of kind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contract import Budget
from .pricing import Indices, Pricer
from .repair import step_keys

Floats = NDArray[np.float64]

#: Shares of the moves: exchange, a few random values, crossover, one coordinate that changes the kernels.
SHARES = (0.4, 0.15, 0.15, 0.3)


class Mover:
    """Mutates parents. ``loss`` (d,) is the expected loss of each coordinate from top to bottom."""

    def __init__(self, pricer: Pricer, budget: Budget, loss: Floats) -> None:
        limits = [n for n in budget.limits if n in pricer.savings] or [pricer.budget.latency_key]
        self.saving = np.mean([pricer.savings[n] for n in limits], axis=0)
        self.budget, self.pricer = budget, pricer
        self.keys = step_keys(pricer, loss, self.saving)
        self.top = pricer.top
        self.unit = self.saving / np.maximum(pricer.top, 1)
        keep = pricer.kinds == "keep"
        self.smooth = np.flatnonzero(keep) if keep.any() else np.arange(len(pricer.top))
        self.kernel = np.flatnonzero(~keep) if (~keep).any() else self.smooth

    def mutate(self, parents: Indices, rng: np.random.Generator) -> Indices:
        """A changed copy of one of ``parents`` (K, d), the first ones more often; (d,)."""
        k = min(int(rng.geometric(0.35)) - 1, len(parents) - 1)
        child: Indices = parents[k].copy()
        if not len(self.top):
            return child
        kind = int(rng.choice(4, p=SHARES))
        if kind == 0:
            return self._exchange(child, rng)
        if kind == 1:
            return self._random(child, rng, int(rng.integers(1, 4)))
        if kind == 2:
            other = parents[int(rng.integers(len(parents)))]
            swap = rng.random(len(child)) < 0.3
            child[swap] = other[swap]
            return child
        for i in rng.choice(self.kernel, size=int(rng.integers(1, 3))):
            child[i] = rng.integers(0, self.top[i] + 1)
        return self._exchange(child, rng) if rng.random() < 0.5 else child

    def rate(self, at: Indices) -> float:
        """What a whole budget of the tightest limit is worth at ``at``, in units of ``loss``."""
        next_up = [float(self.keys[i][self.top[i] - at[i] - 1]) for i in self.smooth if at[i] < self.top[i]]
        if not next_up or not self.budget.limits:
            return 0.0
        name, limit = min(
            self.budget.limits.items(), key=lambda p: p[1] / float(self.pricer.price(self.top[None])[p[0]][0])
        )
        share = limit / float(self.pricer.price(self.top[None])[name][0])
        return float(np.median(next_up)) * min(1.0, share)

    def _random(self, child: Indices, rng: np.random.Generator, count: int) -> Indices:
        for i in rng.choice(len(child), size=min(count, len(child)), replace=False):
            child[i] = rng.integers(0, self.top[i] + 1)
        return child

    def _exchange(self, child: Indices, rng: np.random.Generator) -> Indices:
        """Raise one or two groups, lower others by about what that costs."""
        spent = 0.0
        up = [int(i) for i in self.smooth if child[i] < self.top[i]]
        worth = np.array([self.keys[i][self.top[i] - child[i] - 1] for i in up])
        for _ in range(int(rng.integers(1, 3))):
            if up:
                i = up[int(np.argmax(worth * np.exp(rng.normal(0.0, 1.0, len(up)))))]
                step = int(rng.integers(1, 1 + max(1, (self.top[i] - child[i] + 1) // 2)))
                child[i] = min(self.top[i], child[i] + step)
                spent += step * float(self.unit[i])
        lowered = 0
        while spent > 0 or lowered == 0:
            down = [int(i) for i in self.smooth if child[i] > 0]
            if not down or lowered >= 12:
                break
            price = np.array([self.keys[i][self.top[i] - child[i]] for i in down])
            i = down[int(np.argmin(price * np.exp(rng.normal(0.0, 1.0, len(down)))))]
            child[i] -= 1
            spent -= max(float(self.unit[i]), 1e-6)
            lowered += 1
        return child
