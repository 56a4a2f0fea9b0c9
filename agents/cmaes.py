"""CMA-ES with warm start, by the package under Optuna's `CmaEsSampler`.

Hansen 2016, "The CMA evolution strategy: a tutorial"; Nomura et al. 2021, "Warm starting CMA-ES for
hyperparameter optimization"; Auger & Hansen 2005 (restarts with growing population).

| differences from the papers | |
|---|---|
| grid | value i of n is the cell [i/n, (i+1)/n] of the unit cube, and is told anywhere in it |
| start | fitted to the best of the initial design and of what is known beforehand (warm start) |
| constraints | samples are repaired with exact costs and told as repaired (Hansen 2011, without clipping) |
| generations | by order of the outcomes, whoever proposed them: samples may be asked for before one is full |
| restarts | when the distribution has collapsed: twice the population, around the best known by then |

Hamano et al. 2022 (CMA-ES with margin) keep grids from freezing the distribution by correcting mean and
covariance; here the even spread within cells does, whose deviation is 0.29 of a cell.
`CmaEsSampler` itself keeps the optimizer in the trial that closed a generation, which an agent whose state
is its two records cannot: here it is folded over the outcomes, a generation at a time, and kept as a cache.
"""

from __future__ import annotations

import cmaes
import numpy as np
from numpy.typing import NDArray

from .base import Told
from .contract import Problem
from .optuna_base import SamplerAgent
from .pricing import Indices

Floats = NDArray[np.float64]

#: Of what is known at a start the best share is fitted, and widened by this much of the cube (Nomura et al.).
GAMMA, ALPHA = 0.3, 0.15
#: Outcomes that a Gaussian can be fitted to.
LEAST = 2


class CmaesAgent(SamplerAgent):
    """Samples a Gaussian over the unit cube whose cells are policies."""

    name = "cmaes"
    summary = "CMA-ES warm-started from the best known (Optuna's cmaes)"

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self.open = np.flatnonzero(self.space.cardinalities > 1)
        self.cells = self.space.cardinalities[self.open].astype(float)
        self._optimizer: cmaes.CMA | None = None
        self._learned, self._widened = 0, 1

    def ask(self, rng: np.random.Generator) -> Indices:
        if len(self.told) < LEAST or not len(self.open):
            return rng.integers(0, self.space.cardinalities, dtype=np.int64)
        optimizer = self._folded()
        optimizer.reseed_rng(int(rng.integers(2**31)))
        drawn = np.clip(optimizer.ask(), 0.0, 1.0)
        found = self.pricer.top.copy()
        found[self.open] = np.minimum(drawn * self.cells, self.cells - 1).astype(np.int64)
        return found

    def _folded(self) -> cmaes.CMA:
        """The optimizer after the last full generation of what was told."""
        first = self._first()
        if len(self.told) <= first:  # what it begins from is not complete yet
            return self._begin(len(self.told), 1)
        if self._optimizer is None:
            self._optimizer, self._learned = self._begin(first, 1), first
        while self._learned + (size := self._optimizer.population_size) <= len(self.told):
            batch = self.told[self._learned : self._learned + size]
            self._optimizer.tell([(self._place(t), -self.worth(t)) for t in batch])
            self._learned += size
            if self._optimizer.should_stop():
                self._widened *= 2
                self._optimizer = self._begin(self._learned, self._widened)
        return self._optimizer

    def _first(self) -> int:
        """How many outcomes the first distribution is fitted to: those known beforehand, and a design."""
        known = next((k for k, t in enumerate(self.told) if t.number >= 0), len(self.told))
        return max(known + len(self.design), LEAST)

    def _begin(self, count: int, widened: int) -> cmaes.CMA:
        """A Gaussian of the best of the first ``count`` outcomes."""
        source = [(self._place(t), -self.worth(t)) for t in self.told[:count]]
        share = max(GAMMA, 1.0 / len(source) + 1e-9)
        mean, sigma, cov = cmaes.get_warm_start_mgd(source, gamma=share, alpha=ALPHA)
        d = len(self.open)
        return cmaes.CMA(
            mean=mean,
            sigma=sigma,
            bounds=np.tile([0.0, 1.0], (d, 1)),
            n_max_resampling=10,
            seed=0,
            population_size=widened * (4 + int(3 * np.log(d))),
            cov=cov,
        )

    def _place(self, told: Told) -> Floats:
        """Where in its cell an outcome is told: anywhere, by its number. Shape (open coordinates,).

        The metric is the same all over a cell. Told in the middle, the distribution would shrink to a point
        of no interest; told evenly, its deviation stays near that of a uniform cell, 0.29 of its width.
        """
        within = np.random.default_rng((self.seed, told.number % (1 << 32))).random(len(self.open))
        found: Floats = (told.indices[self.open] + within) / self.cells
        return found
