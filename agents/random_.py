"""Random search (Bergstra & Bengio 2012), the baseline every agent has to beat.

| differences from the paper | |
|---|---|
| a draw that breaks the budget is repaired, not discarded | nearly every draw breaks a tight budget |
| slack is spent: channels grow back to the edge of the budget | draws inside the budget would waste it |
"""

from __future__ import annotations

import numpy as np

from .base import SequentialAgent
from .pricing import Indices
from .repair import random_feasible


class RandomAgent(SequentialAgent):
    """Uniformly random value indices, repaired to feasibility and grown back to the budget."""

    name = "random"
    summary = "uniformly random policies, repaired to the budget (baseline)"

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        indices = random_feasible(self.pricer, rng)
        return None if indices is None else (indices, "random, repaired to the budget")
