"""A Gaussian process over value indices: accuracy of policies not evaluated yet, with its uncertainty.

The kernel is additive plus residual (Duvenaud et al. 2011, additive Gaussian processes, orders 1 and d):
a compressed network's loss is mostly a sum over layers, and what is left is smooth. Hyperparameters are
chosen by marginal likelihood over a fixed grid: no optimiser, no random state, same answer every time.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import ndtr

Floats = NDArray[np.float64]

TREND, ADDITIVE, SCALE, NOISE = (0.3, 1.0), (0.3, 1.0, 3.0), (0.7, 1.5), (1e-4, 1e-2, 0.1, 0.4)
#: Observations used at most: the best half and the latest half of them.
HISTORY = 240


def warp(gain: Floats) -> Floats:
    """Compress the bad end: -log(1 + loss / scale) with loss from the best and the median loss as scale.

    Near the best this is linear; a collapsed network (10 % instead of 88 %) counts as bad, not as an
    outlier that hides every difference among the good. Shape (N,), larger is better.
    """
    loss = gain.max() - gain
    scale = float(np.median(loss))
    warped: Floats = -np.log1p(loss / (scale if scale > 0 else max(float(loss.max()), 1.0)))
    return warped


def recent_and_best(gain: Floats, most: int = HISTORY) -> NDArray[np.int64]:
    """Positions of at most ``most`` observations: the latest half and the best of the rest, ascending."""
    n = len(gain)
    if n <= most:
        return np.arange(n)
    late = np.arange(n - most // 2, n)
    early = np.argsort(-gain[: n - most // 2], kind="stable")[: most - most // 2]
    return np.sort(np.concatenate([early, late]))


class Surrogate:
    """Posterior over the warped metric. ``x``: distance from the top of every coordinate, (N, d) in 0..1.

    ``weights`` (d,): expected loss of each coordinate, which scales its share of the trend, a feature
    ``sum(weights * x**2)`` common to all policies.
    """

    def __init__(self, x: Floats, y: Floats, weights: Floats) -> None:
        self.weights = weights / max(float(weights.sum()), 1e-12)
        self.mean = float(y.mean())
        self.scale = float(y.std()) or 1.0
        self.x, self.y = x, (y - self.mean) / self.scale
        parts = self._parts(x, x)
        self.units = [max(float(np.mean(np.diag(k))), 1e-12) for k in parts[:2]]
        spread = float(np.median(self._distance(x, x)[np.triu_indices(len(x), 1)])) if len(x) > 1 else 1.0
        self.spread = spread or 1.0
        grid = product(TREND, ADDITIVE, SCALE, NOISE)
        self.hyper = max(grid, key=lambda h: self._likelihood(parts, h))
        self._condition()

    def _parts(self, a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
        trend = np.outer(a**2 @ self.weights, b**2 @ self.weights)
        additive = (a @ b.T + a**2 @ (b**2).T) / 2
        return trend, additive, self._distance(a, b)

    @staticmethod
    def _distance(a: Floats, b: Floats) -> Floats:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        found: Floats = np.sqrt(np.maximum(squared, 0.0))
        return found

    def _kernel(self, parts: tuple[Floats, Floats, Floats], hyper: tuple[float, ...]) -> Floats:
        trend, additive, length, _ = hyper
        r = np.sqrt(5.0) * parts[2] / (length * self.spread)
        residual = (1 + r + r**2 / 3) * np.exp(-r)  # Matern 5/2
        linear: Floats = trend * parts[0] / self.units[0] + additive * parts[1] / self.units[1]
        linear += 1.0 + residual
        return linear

    def _likelihood(self, parts: tuple[Floats, Floats, Floats], hyper: tuple[float, ...]) -> float:
        """Log marginal likelihood with the signal variance profiled out (Rasmussen & Williams, eq. 5.8)."""
        n = len(self.y)
        low = cholesky(self._kernel(parts, hyper) + (hyper[3] + 1e-8) * np.eye(n), lower=True)
        white = solve_triangular(low, self.y, lower=True)
        variance = max(float(white @ white) / n, 1e-12)
        return float(-0.5 * n * np.log(variance) - np.log(np.diag(low)).sum())

    def _condition(self) -> None:
        n = len(self.y)
        kernel = self._kernel(self._parts(self.x, self.x), self.hyper)
        self._low = cholesky(kernel + (self.hyper[3] + 1e-8) * np.eye(n), lower=True)
        self._alpha = cho_solve((self._low, True), self.y)
        self._variance = max(float(self.y @ self._alpha) / n, 1e-12)

    def believe(self, x: Floats) -> None:
        """Take predictions at ``x`` (W, d) for outcomes: suggestions that are out repel the next one."""
        if len(x):
            mean = (self.predict(x)[0] - self.mean) / self.scale
            self.x, self.y = np.concatenate([self.x, x]), np.concatenate([self.y, mean])
            self._condition()

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the warped metric at ``x`` (P, d); each (P,)."""
        cross = self._kernel(self._parts(x, self.x), self.hyper)
        solved = solve_triangular(self._low, cross.T, lower=True)
        trend, additive, _, _ = self.hyper
        own = 2.0 + trend * (x**2 @ self.weights) ** 2 / self.units[0]
        own = own + additive * ((x**2).sum(1) + (x**4).sum(1)) / 2 / self.units[1]
        variance = self._variance * np.maximum(own - (solved**2).sum(0), 1e-10)
        return self.mean + self.scale * (cross @ self._alpha), self.scale * np.sqrt(variance)


def expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Expected improvement over ``best`` (Jones et al. 1998, eq. 15), higher is better, shape (P,)."""
    z = (mean - best) / std
    found: Floats = std * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    return found


def probability_above(mean: Floats, std: Floats, threshold: float) -> Floats:
    """Probability that the value is at least ``threshold``, shape (P,)."""
    found: Floats = ndtr((mean - threshold) / std)
    return found
