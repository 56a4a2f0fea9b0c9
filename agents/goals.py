"""What one suggestion of `joint` is after, and what candidates are worth for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contract import Budget
from .surrogate import Warp, expected_area, expected_improvement, probability_above

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """What one suggestion is after, inside ``budget``.

    More than ``best`` (warped); with ``steps`` the most area beyond that staircase (`expected_area`), up to
    the latency ``widest``; with ``latency`` less than that. ``factor``: exact latency over its estimate.
    """

    budget: Budget
    best: float
    back: Warp
    origin: str
    latency: float | None = None
    steps: tuple[Floats, Floats] | None = None
    widest: float = np.inf
    factor: float = 1.0

    def score(self, mean: Floats, std: Floats, latency: Floats) -> Floats:
        """Worth of candidates of these predictions (warped metric) and latencies in ms; each (P,)."""
        if self.steps is not None:
            widest = self.widest if np.isfinite(self.widest) else float(latency.max(initial=1e-12))
            return expected_area(mean, std, latency, self.steps, widest, self.back)
        if self.latency is None:
            return expected_improvement(mean, std, self.best)
        saved = np.log(self.latency / np.maximum(latency, 1e-12))
        return np.maximum(saved, 0.0) * probability_above(mean, std, self.best)


def staircase(latency: Floats, gain: Floats, reference: float) -> tuple[Floats, Floats]:
    """Latencies from which on a metric is reached, rising, and that metric; begins at the reference."""
    order = np.lexsort((-gain, latency))
    begins, reached = [0.0], [reference]
    for k in order:
        if gain[k] > reached[-1]:
            begins.append(float(latency[k]))
            reached.append(float(gain[k]))
    return np.array(begins), np.array(reached)


__all__ = ["Goal", "staircase"]
