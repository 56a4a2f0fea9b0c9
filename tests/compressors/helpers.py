"""Shared by the tests of this package: networks traced once, random policies, a masking oracle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from compressors.graph import ChannelGroup, Graph, Structure
from compressors.network import Network
from compressors.policy import ResolvedPolicy
from compressors.space import Abilities, PolicySpace
from tests.compressors.networks import inputs_for, networks, oddities

#: Integer kernels of an x86 runtime.
EIGHT = Abilities()
#: A target that executes several weight bits.
MIXED = Abilities(precisions=((2, 8), (4, 8), (8, 8)), granularity=1, depthwise_granularity=1)
ALL = {**networks(), **oddities()}
TWELVE = tuple(networks())
ODD = tuple(oddities())


@cache
def network_of(name: str) -> Network:
    """The named network, traced, with 16 calibration samples (as many as it takes when fixed)."""
    module, example = ALL[name]()
    return Network.from_module(module, example, inputs_for(name, 16, seed=7))


def batches(name: str) -> tuple[int, ...]:
    """Batch sizes a network takes."""
    fixed = network_of(name).structure.graph.fixed_batch
    return (1, 3, 8) if fixed is None else (fixed,)


def space_of(name: str, abilities: Abilities = EIGHT) -> PolicySpace:
    """Policy space of a named network."""
    return PolicySpace(network_of(name).structure, abilities)


def random_policy(space: PolicySpace, seed: int) -> ResolvedPolicy:
    """A random point of the space, resolved."""
    return space.resolve(space.decode(np.random.default_rng(seed).random(space.dimension)))


def random_kept(structure: Structure, seed: int) -> dict[str, int]:
    """Any number of channels from 1 to all for every group."""
    rng = np.random.default_rng(seed)
    return {g.name: int(rng.integers(1, g.size + 1)) for g in structure.groups}


def random_units(structure: Structure, kept: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Which units stay, ascending, for groups that lose some."""
    g = torch.Generator().manual_seed(seed)
    return {
        x.name: torch.randperm(x.size, generator=g)[: kept[x.name]].sort().values
        for x in structure.groups
        if kept[x.name] < x.size
    }


def survivors(
    graph: Graph, groups: Mapping[str, ChannelGroup], units: Mapping[str, Tensor], tensor: str, batch: int
) -> list[Tensor | None]:
    """Per dimension of an activation: a boolean mask of positions that stay, None where all do."""
    found: list[Tensor | None] = []
    for d, size in enumerate(graph.tensors[tensor].shape):
        mask = None
        for name, kept in units.items():
            marks = groups[name].slices.get((tensor, d))
            if marks is None:
                continue
            stays = torch.zeros(groups[name].size + 1, dtype=torch.bool)
            stays[kept] = True
            stays[-1] = True
            one = stays[torch.tensor(marks)]
            mask = one if mask is None else mask & one
        if mask is not None and size < 0:
            mask = mask.repeat(batch)
        found.append(mask)
    return found


def zeroed(value: Tensor, masks: list[Tensor | None]) -> Tensor:
    """The value with removed positions set to zero."""
    for d, mask in enumerate(masks):
        if mask is not None:
            shape = [1] * value.dim()
            shape[d] = -1
            value = torch.where(mask.reshape(shape), value, torch.zeros((), dtype=value.dtype))
    return value


def cut(value: Tensor, masks: list[Tensor | None]) -> Tensor:
    """The value with removed positions taken out."""
    for d, mask in enumerate(masks):
        if mask is not None:
            value = value.index_select(d, mask.nonzero().squeeze(1))
    return value
