"""Optuna's Parzen estimator over grids, all coordinates at once.

Optuna loops over the coordinates in Python: 0.4 ms for each, 25 ms a suggestion for sixty of them. The same
estimator in arrays takes a tenth of that. Formulas: Watanabe 2023, equations 14 to 18 (truncated discrete
Gaussian kernels, bandwidths from neighbours, magic clipping), as in `optuna.samplers.TPESampler`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from scipy.special import ndtr

Floats = NDArray[np.float64]

#: Below any mass of a kernel that matters; its log stands in for that of none at all.
TINY = 1e-300


class GridParzen(_ParzenEstimator):
    """A mixture of products of kernels on the integers 0..n-1 of every coordinate.

    ``observations``: coordinate name to values, each (N,); ``search_space``: name to `IntDistribution` from 0
    (truncated Gaussians) or to `CategoricalDistribution` of 0..n-1 (one value and a little of all the
    others). One kernel an observation, and one of the prior.
    """

    def __init__(
        self,
        observations: dict[str, NDArray[Any]],
        search_space: dict[str, Any],
        parameters: Any,
        predetermined_weights: Floats | None = None,
    ) -> None:
        self.names = list(search_space)
        seen = np.array([observations[n] for n in self.names], dtype=float).reshape(len(self.names), -1).T
        if predetermined_weights is None:
            predetermined_weights = self._call_weights_func(parameters.weights, len(seen))
        weights = np.append(predetermined_weights, parameters.prior_weight) if len(seen) else np.ones(1)
        self.weights = weights / weights.sum()
        spaces = list(search_space.values())
        plain = np.array([isinstance(s, optuna.distributions.CategoricalDistribution) for s in spaces])
        high = np.array([len(s.choices) - 1 if c else s.high for s, c in zip(spaces, plain, strict=True)])
        #: Log mass of every value under every kernel, (d, values, K); below `TINY` beyond a coordinate's end.
        self.table = np.empty((len(spaces), int(high.max(initial=0)) + 1, len(weights)))
        self.table[~plain] = gaussian_masses(seen[:, ~plain], high[~plain], self.table.shape[1])
        prior = parameters.prior_weight / len(weights)
        self.table[plain] = categorical_masses(seen[:, plain], high[plain], self.table.shape[1], prior)

    def sample(self, rng: np.random.RandomState, size: int) -> dict[str, Floats]:
        """``size`` draws, name to (size,)."""
        active = rng.choice(len(self.weights), p=self.weights, size=size)
        up_to = np.cumsum(np.exp(self.table[:, :, active]), axis=1)
        quantile = rng.random_sample((len(self.names), size)) * up_to[:, -1]
        drawn = (up_to < quantile[:, None]).sum(axis=1).astype(float)
        return dict(zip(self.names, drawn, strict=True))

    def log_pdf(self, samples_dict: dict[str, NDArray[Any]]) -> Floats:
        """Log of the mixture's mass at samples, name to (S,); returns (S,)."""
        x = np.array([samples_dict[n] for n in self.names], dtype=np.int64)
        kernels = self.table[np.arange(len(self.names))[:, None], x].sum(axis=0) + np.log(self.weights)
        top = kernels.max(axis=1)
        found: Floats = np.log(np.exp(kernels - top[:, None]).sum(axis=1)) + top
        return found


def gaussian_masses(seen: Floats, high: NDArray[np.int64], values: int) -> Floats:
    """Log mass of 0..values-1 under a Gaussian round every observation (N, d), and under the prior's.

    Truncated to what a coordinate has, 0..high (d,); shape (d, values, N + 1).
    """
    mu = np.concatenate([seen, high[None] / 2.0]).T[:, None]
    sigma = np.concatenate([bandwidths(seen, high), high[None] + 1.0]).T[:, None]
    z = (np.arange(-0.5, values)[None, :, None] - mu) / sigma
    # From the tails: far from a kernel the distribution function rounds to 1 on both sides of a value.
    tail = ndtr(-np.abs(z))
    apart = np.abs(tail[:, 1:] - tail[:, :-1])
    astride = (z[:, :-1] < 0) & (z[:, 1:] > 0)
    mass = np.where(astride, 1.0 - tail[:, :-1] - tail[:, 1:], apart)
    mass *= np.arange(values)[None, :, None] <= high[:, None, None]
    found: Floats = np.log(np.maximum(mass, TINY)) - np.log(mass.sum(axis=1, keepdims=True))
    return found


def categorical_masses(seen: Floats, high: NDArray[np.int64], values: int, prior: float) -> Floats:
    """The same where values do not compare: 1 for the one observed, ``prior`` more for each there is."""
    grid = np.arange(values)[None, :, None]
    mass = np.zeros((seen.shape[1], values, len(seen) + 1))
    mass[:, :, :-1] = grid == seen.T[:, None]
    mass += prior
    mass *= grid <= high[:, None, None]
    found: Floats = np.log(np.maximum(mass, TINY)) - np.log(mass.sum(axis=1, keepdims=True))
    return found


def bandwidths(seen: Floats, high: NDArray[np.int64]) -> Floats:
    """Per observation (N, d) the distance to its farther neighbour, clipped; ``high`` (d,): last values.

    An outermost observation has its inner neighbour only, unless it is alone.
    """
    n = len(seen)
    if n == 0:
        return seen
    order = np.argsort(seen, axis=0, kind="stable")
    ends = np.stack([np.full(len(high), -0.5), high + 0.5])
    ranked = np.concatenate([ends[:1], np.take_along_axis(seen, order, axis=0), ends[1:]])
    gaps = np.diff(ranked, axis=0)
    sigma = np.maximum(gaps[:-1], gaps[1:])
    if n >= 2:
        sigma[0], sigma[-1] = gaps[1], gaps[-2]
    found = np.empty_like(sigma)
    np.put_along_axis(found, order, sigma, axis=0)
    width = high + 1.0
    return np.clip(found, width / min(100.0, 2.0 + n), width)


def quicken(sampler: optuna.samplers.TPESampler) -> None:
    """Have a sampler over grids from 0 use `GridParzen`; one that lacks the hook keeps its own estimator."""
    if hasattr(sampler, "_parzen_estimator_cls"):
        sampler._parzen_estimator_cls = GridParzen
