"""Tree-structured Parzen estimator by Optuna.

Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Watanabe 2023, "Tree-structured Parzen
estimator: understanding its algorithm components", whose multivariate form Optuna has.

| differences from the paper | |
|---|---|
| start | the filled uniform ladder, not random points |
| constraints | every sample is repaired with exact costs; the repaired point is what is learned |
| parallel | suggestions that are out count as bad (constant liar) |
| few values | two or three are categories: Gaussian kernels of Optuna's widths would hardly ever leave one |
| history | the latest 40 and the best 40 of the rest, to bound the time |
| densities | Optuna's, computed for all coordinates at once (`agents.parzen`): ten times quicker |
"""

from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from .optuna_base import OptunaAgent
from .parzen import quicken

#: Coordinates of up to this many values are categories.
FEW = 3


class TpeAgent(OptunaAgent):
    """Samples from the density of the good outcomes what is unlikely under that of the others."""

    name = "tpe"
    summary = "tree-structured Parzen estimator (Optuna)"

    def distribution(self, size: int) -> BaseDistribution:
        return CategoricalDistribution(range(size)) if size <= FEW else super().distribution(size)

    def sampler(self, seed: int) -> optuna.samplers.TPESampler:
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=8, multivariate=True, constant_liar=True
        )
        quicken(sampler)
        return sampler
