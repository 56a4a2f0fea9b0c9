"""Cheap predictors over value indices, for searches that predict tens of thousands of policies.

Features for costs are the distances u of the coordinates from the top and their squares; for the metric the
amplitudes of `embedding`, square roots of the losses measured or expected: their sum, each of them, and their
squares, the losses. To both come, for what is not a sum, random cosines (Rahimi & Recht 2007, of a Matern
5/2 kernel). On them a Bayesian linear regression (Bishop 2006, section 3.3), whose prior deviations and noise
are those of most evidence on a fixed grid: no optimiser, no state, and a prediction is a row of a matrix
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from .loss_table import loss_table
from .pricing import Indices, Pricer

Floats = NDArray[np.float64]

#: Candidates for the prior deviation of (trend, sums, cosines) and for the noise, in deviations of y.
TRENDS, SUMS, REST, NOISES = (0.3, 1.0), (0.1, 0.3, 1.0), (0.0, 0.3, 1.0), (0.03, 0.1, 0.3, 0.6)
COSINES = 64
#: Length scale of the cosines in units of the median distance of two policies.
LENGTH = 1.5


class Regression:
    """Bayesian linear regression of ``y`` (N,) on ``f`` (N, M); ``group`` (M,) says which deviation is whose.

    ``grid``: combinations of a deviation per group and, last, of the noise; the one of most evidence counts.
    """

    def __init__(
        self, f: Floats, y: Floats, group: NDArray[np.int64], grid: Sequence[tuple[float, ...]]
    ) -> None:
        self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        self.center = f.mean(axis=0)
        centred, t = f - self.center, (y - self.mean) / self.scale
        self.gram, self.moment, self.total = centred.T @ centred, centred.T @ t, float(t @ t)
        self.count = len(y)
        self.grid = max(grid, key=lambda h: self._evidence(np.array(h[:-1])[group], h[-1]))
        self.deviation, self.noise = np.array(self.grid[:-1])[group], self.grid[-1]
        low = self._low(self.deviation, self.noise)
        z = cho_solve((low, True), self.deviation * self.moment)
        self.weights = self.deviation * z
        left = self.total - float(self.weights @ self.moment)
        self._spread = np.sqrt(max(left / max(self.count, 1), 1e-12))
        self._root = low

    def predict(self, f: Floats) -> Floats:
        """Posterior mean at features (P, M); (P,)."""
        found: Floats = self.mean + self.scale * ((f - self.center) @ self.weights)
        return found

    def samples(self, rng: np.random.Generator, count: int) -> Floats:
        """Weights drawn from the posterior, (M, count), for `sampled`."""
        z = solve_triangular(self._root.T, rng.normal(size=(len(self.weights), count)), lower=False)
        found: Floats = self.weights[:, None] + self._spread * self.deviation[:, None] * z
        return found

    def sampled(self, f: Floats, weights: Floats) -> Floats:
        """Predictions of drawn weights (M, S) at features (P, M); (P, S)."""
        found: Floats = self.mean + self.scale * ((f - self.center) @ weights)
        return found

    def _low(self, deviation: Floats, noise: float) -> Floats:
        scaled = deviation[:, None] * self.gram * deviation[None]
        found: Floats = cholesky(scaled + noise**2 * np.eye(len(scaled)), lower=True)
        return found

    def _evidence(self, deviation: Floats, noise: float) -> float:
        """Log marginal likelihood with the overall variance profiled out, up to a constant."""
        low = self._low(deviation, noise)
        half = solve_triangular(low, deviation * self.moment, lower=True)
        left = max((self.total - float(half @ half)) / noise**2, 1e-12)
        n, m = self.count, len(low)
        determinant = 2 * float(np.log(np.diag(low)).sum()) + (n - m) * 2 * np.log(noise)
        return float(-0.5 * n * np.log(left / max(n, 1)) - 0.5 * determinant)


class Features:
    """Features of value indices of one problem; a function of the problem and the seed.

    What is chosen inside a removed block counts for nothing, in cost and in loss.
    """

    def __init__(self, pricer: Pricer, seed: int) -> None:
        self.top = np.maximum(pricer.top, 1)
        d = len(self.top)
        losses = loss_table(pricer.problem)
        finite = np.where(np.isfinite(losses.loss), losses.loss, 0.0)
        self.roots = (finite / (float(finite.max(initial=0.0)) or 1.0)) ** 0.25
        self.blocks = np.flatnonzero(losses.hides.any(axis=1))
        self.hides = losses.hides[self.blocks].astype(float)
        rng = np.random.default_rng((seed, 0xFEA7))
        drawn = rng.integers(0, pricer.space.cardinalities, size=(256, d))
        u, root = self._distances(drawn)
        self.waves = (_Waves(u, rng), _Waves(root, rng))
        #: Which features tell costs and which the metric, and the group each of these belongs to.
        self.of_costs, self.of_metric = slice(0, 2 * d + COSINES), slice(2 * d + COSINES, None)
        self.cost_group = np.repeat([0, 1], [2 * d, COSINES])
        self.metric_group = np.repeat([0, 1, 2], [1, 2 * d, COSINES])

    def __call__(self, indices: Indices) -> Floats:
        """u, u squared, cosines of u; amplitudes summed, single, squared, cosines of their roots; (P, F)."""
        u, root = self._distances(indices)
        amplitude = root * root
        total = amplitude.sum(axis=1, keepdims=True)
        costs, metric = (wave(x) for wave, x in zip(self.waves, (u, root), strict=True))
        return np.concatenate([u, u * u, costs, total, amplitude, amplitude**2, metric], axis=1)

    def _distances(self, indices: Indices) -> tuple[Floats, Floats]:
        """Distances of the coordinates from the top, plain and by loss (`embedding.points`), (P, d) each."""
        counted = (indices[:, self.blocks] == 0).astype(float) @ self.hides < 0.5
        u: Floats = (1.0 - indices / self.top) * counted
        root: Floats = self.roots[np.arange(len(self.top)), indices] * counted
        return u, root


class _Waves:
    """Random cosines of points (P, d) that lie like ``points``; the products of two approximate a kernel."""

    def __init__(self, points: Floats, rng: np.random.Generator) -> None:
        spread = float(np.sqrt(2 * points.var(axis=0).sum())) or 1.0
        # Matern 5/2 has Student-t frequencies.
        self.frequency = rng.standard_t(5, size=(points.shape[1], COSINES)) / (LENGTH * spread)
        self.phase = rng.uniform(0.0, 2 * np.pi, COSINES)

    def __call__(self, points: Floats) -> Floats:
        found: Floats = np.cos(points @ self.frequency + self.phase) * np.sqrt(2.0 / COSINES)
        return found


class AccuracyPredictor:
    """Expected (warped) metric of policies, from outcomes. ``indices`` (N, d), ``y`` (N,), N at least 2."""

    def __init__(self, features: Features, indices: Indices, y: Floats) -> None:
        self.features = features
        grid = list(product(TRENDS, SUMS, REST, NOISES))
        self.model = Regression(features(indices)[:, features.of_metric], y, features.metric_group, grid)

    def __call__(self, f: Floats) -> Floats:
        """Mean at features (P, F), higher is better; (P,)."""
        return self.model.predict(f[:, self.features.of_metric])

    def sampled(self, f: Floats, rng: np.random.Generator, count: int) -> Floats:
        """Predictions of ``count`` draws from the posterior at features (P, F); (P, count)."""
        return self.model.sampled(f[:, self.features.of_metric], self.model.samples(rng, count))

    def marginal(self, at: Indices) -> Floats:
        """Predicted loss of each coordinate from top to bottom around a policy (d,); (d,)."""
        high, low = np.repeat(at[None], len(at), axis=0), np.repeat(at[None], len(at), axis=0)
        np.fill_diagonal(high, self.features.top)
        np.fill_diagonal(low, 0)
        f = self.features(np.concatenate([np.minimum(high, self.features.top), low]))
        mean = self(f)
        return mean[: len(at)] - mean[len(at) :]


class CostTables:
    """Each cost as a sum over features: the lookup table of OFA and ProxylessNAS, by least squares.

    Right to 5 to 10 % near the policies it was fitted to; what is suggested is repaired with real prices.
    ``indices`` (N, d) with ``costs`` name to (N,), positive. Sums of square roots err half as much as sums of
    costs or of their logarithms: widths multiply within a layer, layers add up.
    """

    def __init__(self, features: Features, indices: Indices, costs: dict[str, Floats]) -> None:
        self.features = features
        f = features(indices)[:, features.of_costs]
        grid = [(1.0, rest, noise) for rest in (0.3, 1.0, 3.0) for noise in (0.1, 0.3)]
        self.models = {n: Regression(f, np.sqrt(c), features.cost_group, grid) for n, c in costs.items()}
        self.least = {n: float(np.sqrt(c).min()) / 2 for n, c in costs.items()}

    def __call__(self, f: Floats) -> dict[str, Floats]:
        """Costs at features (P, F), name to (P,); positive."""
        own = f[:, self.features.of_costs]
        return {n: np.maximum(model.predict(own), self.least[n]) ** 2 for n, model in self.models.items()}
