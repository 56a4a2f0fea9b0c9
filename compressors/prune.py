"""Structured pruning: removing whole channels, so that the network is physically smaller."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .graph import Structure
from .importance import Evidence, kept_units


def kept_indices(evidence: Evidence, kept: Mapping[str, int], criterion: str) -> dict[str, Tensor]:
    """Units each group keeps, ascending, for the groups that lose some."""
    return {
        g.name: kept_units(evidence, g, criterion, kept[g.name])
        for g in evidence.structure.groups
        if kept.get(g.name, g.size) < g.size
    }


def prune(
    structure: Structure, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights with the channels of every cut group removed from each dimension they stand in."""
    stays: dict[tuple[str, int], Tensor] = {}
    for name, units in kept.items():
        group = structure.group[name]
        chosen = torch.zeros(group.size + 1, dtype=torch.bool)
        chosen[units] = True
        chosen[-1] = True  # positions marked -1 are not of this group
        for (param, dim), marks in group.slices.items():
            if param in weights:
                mask = chosen[torch.tensor(marks)]
                stays[param, dim] = stays[param, dim] & mask if (param, dim) in stays else mask
    pruned = dict(weights)
    for (param, dim), mask in sorted(stays.items()):
        pruned[param] = pruned[param].index_select(dim, mask.nonzero().squeeze(1))
    return pruned
