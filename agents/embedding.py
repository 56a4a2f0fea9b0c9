"""Policies as points whose distances come from losses: their square roots.

A loss is quadratic in a small change, its root the change's size; a coordinate that loses nothing moves a
policy nowhere. The squared length of a point is the summed loss, what a separable model predicts.
"""

from __future__ import annotations

import numpy as np

from .loss_table import Floats, LossTable
from .pricing import Indices


def points(losses: LossTable, indices: Indices) -> Floats:
    """Points of policies given as value indices (P, d), shape (P, d), at most 1 in each coordinate.

    What a removed block holds counts for nothing.
    """
    each = losses.roots[np.arange(indices.shape[1]), indices]
    return np.where(losses.counted(indices), each, 0.0)


__all__ = ["points"]
