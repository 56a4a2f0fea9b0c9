"""Uniform scaling: the baseline of width multipliers (Howard et al. 2017, MobileNets, section 3.3).

| differences from the paper | |
|---|---|
| the multiplier scales a trained network's channel groups | instead of training each width from scratch |
| bits are part of the rung | every precision pair of the target takes its turn |
| order | nearest to the budget first; for least latency, the latency range from coarse to fine |
"""

from __future__ import annotations

import numpy as np

from .base import SequentialAgent
from .contract import Problem
from .ladder import coarse_to_fine, ladder, nearest_first
from .pricing import Indices


class UniformAgent(SequentialAgent):
    """The same keep ratio and bits everywhere; stops when the ladder is used up."""

    name = "uniform"
    summary = "the same keep ratio and bits everywhere, nearest to the budget first (baseline)"
    falls_back = False

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        rungs = ladder(self.pricer)
        self.rungs = coarse_to_fine(rungs) if problem.objective == "latency" else nearest_first(rungs)

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        for rung in self.rungs:
            if not self.known(rung.indices):
                return rung.indices, f"uniform: keep {rung.ratio:.3g}, {rung.precision}"
        return None
