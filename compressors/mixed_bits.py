"""Bits in a mixture of policies: how much of which bits every layer and every tensor has.

Bits are resolved before they count (`compressors.resolve`): a layer is integer only where the tensors around
it are, and a tensor that no integer layer touches stays float. Every coordinate being drawn independently by
its gates, a layer has some bits with a probability that is multilinear in the gates; at one-hot gates it is
what resolution says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from .graph import Layer, Structure
from .policy import FLOAT, Policy
from .resolve import fused_output, resolved_weight_bits
from .space import PolicySpace


@dataclass(frozen=True)
class _Rule:
    """``bits[v, w, ...]``: resolved weight bits of a layer at values v, w, ... of ``coordinates``."""

    coordinates: tuple[int, ...]
    bits: Tensor

    def chance(self, gates: Sequence[Tensor], wanted: Tensor, given: Mapping[int, int]) -> Tensor:
        """Probability that the values drawn lie in ``wanted`` (shaped as ``bits``), some of them given."""
        left = wanted
        for c in reversed(self.coordinates):
            left = left[..., given[c]] if c in given else left @ gates[c]
        return left


class MixedBits:
    """The rules of one policy space. Gates are tensors (values,) per coordinate, in the space's order."""

    def __init__(self, space: PolicySpace, dtype: torch.dtype = torch.float32) -> None:
        self.space = space
        self.structure = space.structure
        self.dtype = dtype
        self.at = {c.name: i for i, c in enumerate(space.choices)}
        self._fixed = dict(space.resolve(space.dense).act_bits)
        self._rules = {x.name: self._rule(x) for x in self.structure.layers}
        self._wanted = {
            name: {int(b): (rule.bits == b).to(dtype) for b in rule.bits.unique() if b != FLOAT}
            for name, rule in self._rules.items()
        }
        self._integer = {n: (rule.bits != FLOAT).to(dtype) for n, rule in self._rules.items()}

    def possible(self, layer: str) -> tuple[int, ...]:
        """Bits other than float that a layer's weights can take, ascending."""
        return tuple(sorted(self._wanted[layer]))

    def offered(self, group: str) -> tuple[int, ...]:
        """Bits other than float that a tensor group can take, ascending."""
        i = self.at.get(f"act_bits:{group}")
        values = (self._fixed.get(group, FLOAT),) if i is None else self.space.choices[i].values
        return tuple(sorted(v for v in values if isinstance(v, int) and v != FLOAT))

    def weights(self, gates: Sequence[Tensor], layer: str) -> dict[int, Tensor]:
        """Bits of a layer's weights to their shares; what is missing to 1 stays float."""
        rule = self._rules[layer]
        return {b: rule.chance(gates, wanted, {}) for b, wanted in self._wanted[layer].items()}

    def tensors(self, gates: Sequence[Tensor], group: str) -> dict[int, Tensor]:
        """Bits of a tensor group to their shares; what is missing to 1 stays float."""
        i = self.at.get(f"act_bits:{group}")
        if i is None:
            return {b: torch.ones((), dtype=self.dtype) for b in self.offered(group)}
        able, values = self.space.abilities, self.space.choices[i].values
        found: dict[int, Tensor] = {}
        for v, bits in enumerate(values):
            if isinstance(bits, int) and bits != FLOAT:
                share = gates[i][v]
                found[bits] = share * self._used(gates, group, {i: v}) if able.float_kernels else share
        return found

    def reads(self, gates: Sequence[Tensor], group: str, layer: str) -> dict[int, Tensor]:
        """As `tensors`, but of one layer's reading: where only what integer layers read is rounded."""
        i = self.at.get(f"act_bits:{group}")
        rule, integer = self._rules[layer], self._integer[layer]
        if i is None:
            return {b: rule.chance(gates, integer, {}) for b in self.offered(group)}
        return {
            bits: gates[i][v] * rule.chance(gates, integer, {i: v})
            for v, bits in enumerate(self.space.choices[i].values)
            if isinstance(bits, int) and bits != FLOAT
        }

    def _used(self, gates: Sequence[Tensor], group: str, given: Mapping[int, int]) -> Tensor:
        """Probability that some integer layer reads or writes the group."""
        idle = torch.ones((), dtype=self.dtype)
        for layer in self._around[group]:
            integer = self._rules[layer].chance(gates, self._integer[layer], given)
            idle = idle * (1 - integer * self._alive(gates, layer))
        return 1 - idle

    def _alive(self, gates: Sequence[Tensor], layer: str) -> Tensor:
        stays = torch.ones((), dtype=self.dtype)
        for block in self.structure.blocks:
            i = self.at.get(f"removed:{block.name}")
            if i is not None and layer in block.layers:
                stays = stays * (1 - gates[i][self.space.choices[i].values.index(True)])
        return stays

    @cached_property
    def _around(self) -> dict[str, tuple[str, ...]]:
        """Tensor group to the layers that read it, and to those that write it where that counts."""
        ends = 1 if self.space.abilities.rounding.at_reads else 2
        found: dict[str, dict[str, None]] = {g.name: {} for g in self.structure.tensor_groups}
        for layer in self.structure.layers:
            for call in groups_around(self.structure, layer):
                for group in call[:ends]:
                    if group:
                        found[group][layer.name] = None
        return {group: tuple(layers) for group, layers in found.items()}

    def _rule(self, layer: Layer) -> _Rule:
        groups = {g for call in groups_around(self.structure, layer) for g in call if g}
        asked = [f"weight_bits:{layer.name}", *(f"act_bits:{g}" for g in sorted(groups))]
        own = [self.at[name] for name in asked if name in self.at]
        choices = [self.space.choices[i] for i in own]
        sizes = tuple(len(c.values) for c in choices)
        bits = []
        for values in product(*(c.values for c in choices)):
            chosen = {c.name: v for c, v in zip(choices, values, strict=True) if isinstance(v, int)}
            acts = {**self._fixed, **{g: b for g in groups if (b := chosen.get(f"act_bits:{g}")) is not None}}
            own_bits = chosen.get(f"weight_bits:{layer.name}")
            policy = Policy(weight_bits={} if own_bits is None else {layer.name: own_bits})
            bits.append(resolved_weight_bits(self.structure, self.space.abilities, policy, layer, acts))
        return _Rule(tuple(own), torch.tensor(bits).reshape(sizes))


def groups_around(structure: Structure, layer: Layer) -> list[tuple[str, str]]:
    """Per call of a layer the tensor groups of what it reads and of what its kernel writes, "" for none."""
    graph, group_of = structure.graph, structure.tensor_group_of
    nodes = [graph.by_name[n] for n in layer.nodes]
    return [(group_of.get(n.inputs[0], ""), group_of.get(fused_output(graph, n), "")) for n in nodes]
