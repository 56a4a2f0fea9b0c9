"""Policies as points whose distances are in the unit of what was measured: the square root of losses.

A coordinate that loses nothing when it alone is changed moves a policy nowhere, one that loses much moves it
far; the squared length of a point is the summed loss, what a separable model predicts. Loss is quadratic in a
small change, hence the root (the same reason why HAWQ, eq. 6, prices perturbations by their squared norm).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contract import Problem
from .pricing import Indices
from .repair import PRIOR_LOSS

Floats = NDArray[np.float64]

#: Share of a coordinate's largest loss below which a measured loss counts as noise; spread over its values.
LEAST = 1e-3


def loss_tables(problem: Problem) -> list[Floats]:
    """Loss of every value of each coordinate, (values,) each: measured, or the prior where it is not.

    The prior grows with the square of the distance from the last value, in the unit of the measured median.
    """
    given = problem.losses() if problem.losses is not None else {}
    prior = [PRIOR_LOSS.get(c.kind, 1.0) * _far(len(c.values)) ** 2 for c in problem.space.choices]
    known = [np.asarray(given.get(c.name, np.nan), dtype=float) for c in problem.space.choices]
    tops = [float(np.nanmax(k)) if np.isfinite(k).any() else np.nan for k in known]
    ratios = [t / p[0] for t, p in zip(tops, prior, strict=True) if t > 0 and len(p)]
    scale = float(np.median(ratios)) if ratios else 1.0
    least = LEAST * max([scale, *(t for t in tops if t > 0)])
    found = []
    for k, p in zip(known, prior, strict=True):
        table = np.where(np.isfinite(k), k, scale * p) if k.shape == p.shape else scale * p
        floor = least * _far(len(table))
        found.append(np.maximum(table, floor))
    return found


def _far(n: int) -> Floats:
    return np.linspace(1.0, 0.0, n) if n > 1 else np.zeros(n)


class Embedding:
    """Maps value indices to points; what a removed block holds counts for nothing."""

    def __init__(self, problem: Problem) -> None:
        space = problem.space
        self.tables = loss_tables(problem)
        width = max((len(t) for t in self.tables), default=1)
        self._table = np.stack([np.pad(t, (0, width - len(t))) for t in self.tables]) if self.tables else None
        self.scale = max((float(t[0]) for t in self.tables if len(t)), default=1.0) or 1.0
        removed = {c.subject: i for i, c in enumerate(space.choices) if c.kind == "removed"}
        blocks = {b.name: frozenset(b.layers) for b in space.structure.blocks}
        #: Coordinate and that of a block's removal after which it means nothing.
        self._within = [
            (i, removed[name])
            for i, c in enumerate(space.choices)
            if c.kind != "removed" and (own := _layers(problem, c.kind, c.subject))
            for name, layers in blocks.items()
            if name in removed and own <= layers
        ]

    def losses(self, indices: Indices) -> Floats:
        """Loss of every coordinate's value, shape (P, d)."""
        if self._table is None:
            return np.zeros(indices.shape)
        found: Floats = np.take_along_axis(self._table, indices.T, axis=1).T
        for i, block in self._within:
            found[indices[:, block] == 0, i] = 0.0
        return found

    def summed(self, indices: Indices) -> Floats:
        """Loss that a separable model predicts, shape (P,)."""
        return self.losses(indices).sum(axis=1)

    def at(self, indices: Indices) -> Floats:
        """Points of policies, shape (P, d), at most 1 in each coordinate."""
        found: Floats = np.sqrt(self.losses(indices) / self.scale)
        return found


def _layers(problem: Problem, kind: str, subject: str) -> frozenset[str]:
    """Layers that a coordinate changes."""
    structure = problem.space.structure
    if kind == "keep":
        return frozenset(structure.group[subject].layers)
    if kind in ("rank", "weight_bits"):
        return frozenset((subject,))
    return frozenset()


__all__ = ["Embedding", "loss_tables"]
