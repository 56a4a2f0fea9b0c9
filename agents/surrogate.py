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
#: Weights of the trend and the additive part, length scale and noise.
Hyper = tuple[float, float, float, float]
#: Observations used at most: the best half and the latest half of them.
HISTORY = 240


class Warp:
    """Compresses the bad end: -log(1 + loss / scale) with loss from the best, its lower fifth as scale.

    Near the best this is linear; a collapsed network (10 % instead of 88 %) counts as bad, not as an
    outlier that hides every difference among the good. Larger is better on both sides.
    """

    def __init__(self, gain: Floats) -> None:
        self.best = float(gain.max())
        loss = self.best - gain
        scale = float(np.quantile(loss, 0.2))
        self.scale = scale if scale > 0 else max(float(loss.max()), 1e-3)

    def warp(self, gain: Floats) -> Floats:
        """Warped metric; linear above the best."""
        loss = (self.best - gain) / self.scale
        found: Floats = np.where(loss > 0, -np.log1p(np.maximum(loss, 0.0)), -loss)
        return found

    def unwarp(self, warped: Floats) -> Floats:
        """Inverse of `warp`."""
        loss = np.where(warped < 0, np.expm1(np.clip(-warped, 0.0, 50.0)), -warped)
        found: Floats = self.best - self.scale * loss
        return found


def recent_and_best(gain: Floats, most: int = HISTORY) -> NDArray[np.int64]:
    """Positions of at most ``most`` observations: the latest half and the best of the rest, ascending."""
    n = len(gain)
    if n <= most:
        return np.arange(n)
    late = np.arange(n - most // 2, n)
    early = np.argsort(-gain[: n - most // 2], kind="stable")[: most - most // 2]
    return np.sort(np.concatenate([early, late]))


class Surrogate:
    """Posterior over the warped metric at embedded policies ``x`` (N, d), see `embedding.Embedding`.

    The trend, common to all policies, is logarithmic in the squared length: the summed loss. ``hyper`` takes
    hyperparameters found before instead of looking for them.
    """

    def __init__(self, x: Floats, y: Floats, hyper: Hyper | None = None) -> None:
        self.mean = float(y.mean())
        self.scale = float(y.std()) or 1.0
        self.x, self.y = x, (y - self.mean) / self.scale
        self.bend = float(np.median((x**2).sum(1))) or 1.0
        parts = self._parts(x, x)
        self.units = [max(float(np.mean(np.diag(k))), 1e-12) for k in parts[:2]]
        spread = float(np.median(self._distance(x, x)[np.triu_indices(len(x), 1)])) if len(x) > 1 else 1.0
        self.spread = spread or 1.0
        self.hyper: Hyper = hyper or self._likeliest(parts)
        self._condition()

    def _trend(self, x: Floats) -> Floats:
        found: Floats = np.log1p((x**2).sum(1) / self.bend)
        return found

    def _parts(self, a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
        trend = np.outer(self._trend(a), self._trend(b))
        additive = (a @ b.T + a**2 @ (b**2).T) / 2
        return trend, additive, self._distance(a, b)

    @staticmethod
    def _distance(a: Floats, b: Floats) -> Floats:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        found: Floats = np.sqrt(np.maximum(squared, 0.0))
        return found

    def _kernel(self, parts: tuple[Floats, Floats, Floats], hyper: Hyper) -> Floats:
        return self._summed(parts, hyper, self._residual(parts[2], hyper[2]))

    def _residual(self, distance: Floats, length: float) -> Floats:
        r = np.sqrt(5.0) * distance / (length * self.spread)
        found: Floats = (1 + r + r**2 / 3) * np.exp(-r)  # Matern 5/2
        return found

    def _summed(self, parts: tuple[Floats, Floats, Floats], hyper: Hyper, residual: Floats) -> Floats:
        trend, additive, _, _ = hyper
        linear: Floats = trend * parts[0] / self.units[0] + additive * parts[1] / self.units[1]
        linear += 1.0 + residual
        return linear

    def _likeliest(self, parts: tuple[Floats, Floats, Floats]) -> Hyper:
        """The hyperparameters of the grid with the largest marginal likelihood, of equals the first."""
        residuals = {length: self._residual(parts[2], length) for length in SCALE}
        return max(
            product(TREND, ADDITIVE, SCALE, NOISE),
            key=lambda h: self._likelihood(self._summed(parts, h, residuals[h[2]]), h[3]),
        )

    def _likelihood(self, kernel: Floats, noise: float) -> float:
        """Log marginal likelihood with the signal variance profiled out (Rasmussen & Williams, eq. 5.8)."""
        n = len(self.y)
        low = cholesky(kernel + (noise + 1e-8) * np.eye(n), lower=True)
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
        own = 2.0 + trend * self._trend(x) ** 2 / self.units[0]
        own = own + additive * ((x**2).sum(1) + (x**4).sum(1)) / 2 / self.units[1]
        variance = self._variance * np.maximum(own - (solved**2).sum(0), 1e-10)
        return self.mean + self.scale * (cross @ self._alpha), self.scale * np.sqrt(variance)


def expected_area(
    mean: Floats, std: Floats, latency: Floats, steps: tuple[Floats, Floats], top: float, back: Warp
) -> Floats:
    """Expected growth of the hypervolume over latencies up to ``top``, shape (P,), metric times ms.

    ``steps``: latencies (K,), rising, and the metric reached from each on (K,): the front as a staircase that
    starts at the reference. The latency of a candidate is known, so the integral over latencies is a sum
    (Emmerich et al. 2011 for one certain objective); over the metric Gauss-Hermite quadrature, unwarped.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    values = back.unwarp(mean[:, None] + std[:, None] * nodes)
    begins, reached = steps
    ends = np.append(begins[1:], top)
    width = np.clip(np.minimum(ends, top) - np.maximum(begins, latency[:, None]), 0.0, None)
    better = np.clip(values[:, :, None] - reached, 0.0, None)
    found: Floats = np.einsum("q,pqk,pk->p", weights / weights.sum(), better, width)
    return found


def expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Expected improvement over ``best`` (Jones et al. 1998, eq. 15), higher is better, shape (P,)."""
    z = (mean - best) / std
    found: Floats = std * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    return found


def probability_above(mean: Floats, std: Floats, threshold: float) -> Floats:
    """Probability that the value is at least ``threshold``, shape (P,)."""
    found: Floats = ndtr((mean - threshold) / std)
    return found
