"""Gaussian process with log expected improvement, by Optuna.

Ament et al. 2023, "Unexpected improvements to expected improvement for Bayesian optimization".

| differences from the paper | |
|---|---|
| start | the filled uniform ladder, not random points |
| constraints | every sample is repaired with exact costs; the repaired point is what is learned |
| grid | climbed as if continuous, then rounded: Optuna's search over grids takes seconds here |
| history | the latest 24 and the best 24 of the rest: fitting grows with the cube |
"""

from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from .optuna_base import OptunaAgent


class GpAgent(OptunaAgent):
    """Fits a Matern kernel with a length scale per coordinate, then climbs log expected improvement."""

    name = "gp"
    summary = "Gaussian process with log expected improvement (Optuna)"
    history = 48
    shows_broken = False

    def distribution(self, size: int) -> BaseDistribution:
        return FloatDistribution(0.0, size - 1.0)

    def sampler(self, seed: int) -> optuna.samplers.GPSampler:
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=6)
