"""Intervals that hold as often as they say: conformal prediction on networks left out of the fit.

Normalised by difficulty (Papadopoulos et al. 2008; Lei et al. 2018, section 5.2): the score of a left-out
network is its |log error| over what the model expects of it, and an interval is the score's quantile times
the new network's own expected spread. Scores come from cross-fitting (Barber et al. 2021, CV+).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hw_profiles.kernel import Array
from hw_profiles.target import Cost

_Z90 = NormalDist().inv_cdf(0.95)
#: Spread that no network is without: minima of CPU time repeat within 1.1 %, and sums of kernels are off.
FLOOR = 0.02
#: 90 % factor on several threads of a CPU that were never measured: on one machine of a kind each has a core
#: of its own, on another two share one. Two threads' time over one's, 46 networks on two such machines: 0.74
#: and 1.04 in the median.
SHARED_CORES = 1.3
#: Quantiles kept of the scores.
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Calibration:
    """Quantiles of |log error| / spread at LEVELS; `prior_sigma` stands where `count` is 0.

    `typical` is the median difficulty of the networks left out.
    """

    quantiles: tuple[float, ...]
    prior_sigma: float
    count: int
    typical: float

    @classmethod
    def of_prior(cls, cost: Cost, threads: int = 1) -> Calibration:
        """Nothing measured: the target's own spread, whatever the network."""
        sigma = prior_sigma(cost, threads)
        quantiles = tuple(NormalDist().inv_cdf(0.5 + level / 2.0) for level in LEVELS)
        return cls(quantiles, sigma, 0, sigma)

    def half_width(self, difficulty: Array, level: float = 0.9) -> Array:
        """(P,) log half-width of the interval that holds with probability `level`."""
        quantile = float(np.interp(level, (0.0, *LEVELS), (0.0, *self.quantiles)))
        if not self.count:
            return np.full(np.shape(difficulty), quantile * self.prior_sigma)
        return np.asarray(quantile * np.hypot(FLOOR, difficulty))


def prior_sigma(cost: Cost, threads: int = 1) -> float:
    """Standard deviation of log(measured / predicted) where nothing was measured."""
    shared = SHARED_CORES if cost.model == "cpu" and threads > 1 else 1.0
    factors = (math.log(cost.interval.runtime_factor.value), math.log(shared))
    return math.hypot(cost.interval.log_sigma.value, *(factor / _Z90 for factor in factors))


def calibrate(errors: Array, difficulty: Array, cost: Cost, threads: int = 1) -> Calibration:
    """Quantiles of left-out networks' log errors (N,) by difficulty, with the finite-sample correction."""
    prior = Calibration.of_prior(cost, threads)
    if not len(errors):
        return prior
    scores = np.sort(np.abs(errors) / np.hypot(FLOOR, difficulty))
    count = len(scores)
    found = []
    for level in LEVELS:
        rank = math.ceil((count + 1) * level)
        # More is asked than the scores can say: what they say, stretched as a Gaussian's tail.
        extra = 1.0
        if rank > count:
            top = count / (count + 1)
            extra = NormalDist().inv_cdf(0.5 + level / 2.0) / NormalDist().inv_cdf(0.5 + top / 2.0)
        found.append(float(scores[min(rank, count) - 1]) * extra)
    typical = float(np.median(difficulty))
    return Calibration(tuple(np.maximum.accumulate(found).tolist()), prior.prior_sigma, count, typical)


__all__ = ["FLOOR", "LEVELS", "SHARED_CORES", "Calibration", "calibrate", "prior_sigma"]
