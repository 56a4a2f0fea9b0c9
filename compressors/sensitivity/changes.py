"""One coordinate of a policy space at one value, as a network that can be run; all else is left as it is.

Reductions (channels, ranks, blocks) are what `compressors.apply` makes of such a policy, channel choice and
reconstruction included. Bits are rounded here without asking what a runtime would make of them: most execute
no single tensor in integers between float ones, so that a policy of one coordinate would change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..apply import fold, shrunk
from ..graph import Graph, Layer
from ..network import Network, fast_layout
from ..policy import FLOAT, ResolvedPolicy
from ..prune import kept_indices
from ..recalibrate import shifted
from ..resolve import fused_output
from ..skeleton import Folding, Placement, Skeleton, concrete, placed, unknowns
from ..space import PolicySpace

#: What calibration would set right behind a node: the mean of each channel, or mean and variance.
Statistic = Literal["mean", "moments"]
NOWHERE = Placement({}, {})


@dataclass(frozen=True)
class Change:
    """A network that differs from the uncompressed one (`Changes.graph`, folded) in one coordinate.

    ``where``: bits of the tensors and weights that are rounded; ``kept``: units that stay of each cut group;
    ``statistics``: what calibration sets right, by node. What is not named is as it was, tensor by tensor.
    """

    policy: ResolvedPolicy
    graph: Graph
    weights: Mapping[str, Tensor]
    where: Placement = NOWHERE
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Statistic] = field(default_factory=dict)


class Changes:
    """Makes the changes of one network's policy space. ``graph``, ``weights``: uncompressed and folded."""

    def __init__(self, network: Network, space: PolicySpace) -> None:
        self.network = network
        self.space = space
        self.top = space.cardinalities - 1
        self._reductions: dict[tuple[int, int], ResolvedPolicy] = {}
        self.policy = self._in_float(self.top)
        skeleton = network.skeletons.of(self.policy)
        nodes = skeleton.unfolded.by_name
        self._norms = {nodes[f.into[0]].inputs[1] for f in skeleton.foldings}  # weights with a norm inside
        self.graph = concrete(skeleton.graph, skeleton, unknowns(self.policy, network.structure))
        with torch.no_grad():
            folded = fold(skeleton, network.weights)
        self.weights = {name: fast_layout(value) for name, value in folded.items()}

    @property
    def nothing(self) -> Change:
        """The uncompressed network, as a change."""
        return Change(self.policy, self.graph, self.weights)

    def alters(self, coordinate: int, value: int) -> bool:
        """Whether a coordinate's value of this index changes anything."""
        choice = self.space.choices[coordinate]
        if choice.kind in ("act_bits", "weight_bits"):
            near = choice.kind == "weight_bits" or self._is_near_integers(choice.subject)
            return choice.values[value] != FLOAT and near
        found, dense = self._reduction(coordinate, value), self.policy
        return (found.kept, found.factors, found.removed) != (dense.kept, dense.factors, dense.removed)

    @torch.no_grad()
    def of(self, coordinate: int, value: int) -> Change | None:
        """The network with a coordinate at its value of this index; None where that changes nothing."""
        if not self.alters(coordinate, value):
            return None
        choice = self.space.choices[coordinate]
        bits = choice.values[value]
        if choice.kind == "act_bits" and isinstance(bits, int):
            return self._activations(choice.subject, bits)
        if choice.kind == "weight_bits" and isinstance(bits, int):
            return self._rounded({}, {choice.subject: bits})
        return self._reduced(self._reduction(coordinate, value))

    # -- channels, ranks, blocks

    def _reduction(self, coordinate: int, value: int) -> ResolvedPolicy:
        known = self._reductions.get((coordinate, value))
        if known is None:
            indices = self.top.copy()
            indices[coordinate] = value
            known = self._reductions[coordinate, value] = self._in_float(indices)
        return known

    def _in_float(self, indices: NDArray[np.int64]) -> ResolvedPolicy:
        policy = self.space.resolve(self.space.at(indices))
        return replace(
            policy,
            weight_bits=dict.fromkeys(policy.weight_bits, FLOAT),
            act_bits=dict.fromkeys(policy.act_bits, FLOAT),
        )

    def _reduced(self, policy: ResolvedPolicy) -> Change:
        structure = self.network.structure
        skeleton = self.network.skeletons.of(policy)
        graph = concrete(skeleton.graph, skeleton, unknowns(policy, structure))
        kept = kept_indices(self.network.evidence, policy.kept, policy.criterion)
        weights = self._folded(skeleton, shrunk(self.network, policy))
        return Change(policy, graph, weights, NOWHERE, kept, self._statistics(skeleton))

    def _folded(self, skeleton: Skeleton, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Folded weights; what did not change is the very tensor of ``self.weights``."""
        start, changed = dict(weights), []
        for folding in skeleton.foldings:
            if self._as_before(skeleton, folding, weights):
                name = skeleton.unfolded.by_name[folding.into[0]].inputs[1]
                start.update({n: self.weights[n] for n in (name, f"{name}.folded_bias")})
            else:
                changed.append(folding)
        found = fold(replace(skeleton, foldings=tuple(changed)), start)
        return {n: self.weights[n] if self._same(n, v) else fast_layout(v) for n, v in found.items()}

    def _same(self, name: str, value: Tensor) -> bool:
        ours, traced = self.weights.get(name), self.network.weights.get(name)
        plain = name not in self._norms and traced is not None and alike(value, traced)
        return ours is not None and (value is ours or plain)

    def _as_before(self, skeleton: Skeleton, folding: Folding, weights: Mapping[str, Tensor]) -> bool:
        node = skeleton.unfolded.by_name[folding.into[0]]
        names = [*node.inputs[1:], *folding.norm.inputs[1:]]
        traced = self.network.weights
        return node.inputs[1] in self._norms and all(
            n in traced and alike(weights[n], traced[n]) for n in names if n
        )

    def _statistics(self, skeleton: Skeleton) -> dict[str, Statistic]:
        """As `recalibrate`: batch-norms get both moments, biases that no batch-norm follows the mean."""
        found: dict[str, Statistic] = {
            n.name: "mean" for n in shifted(skeleton.unfolded, self.network.structure)
        }
        found.update({n: "moments" for f in skeleton.foldings for n in f.into})
        found.update({n.name: "moments" for n in skeleton.graph.nodes if n.op == "batch_norm"})
        return found

    # -- bits

    def _activations(self, group: str, bits: int) -> Change:
        """A tensor group in integers; where weights have no bits of their own, those of its readers too."""
        able = self.space.abilities
        paired = max((w for w, a in able.precisions if a == bits), default=bits)
        readers = {x.name: paired for x in self._integer_layers() if self._reads(x, group)}
        change = self._rounded({group: bits}, readers)
        if len(able.weight_bits) > 1:
            change = replace(change, where=Placement(change.where.tensors, {}))
        return change

    def _is_near_integers(self, group: str) -> bool:
        """Whether an integer layer reads or writes the group; else a runtime leaves its tensors alone."""
        return any(self._reads(x, group) or self._writes(x, group) for x in self._integer_layers())

    def _rounded(self, act_bits: Mapping[str, int], weight_bits: Mapping[str, int]) -> Change:
        policy = replace(
            self.policy,
            act_bits={**self.policy.act_bits, **act_bits},
            weight_bits={**self.policy.weight_bits, **weight_bits},
        )
        skeleton = self.network.skeletons.of(policy)
        numerics = self.space.abilities.numerics
        graph, where = placed(self.graph, self.network.structure, skeleton, policy, numerics)
        return Change(policy, graph, self.weights, where)

    def _integer_layers(self) -> list[Layer]:
        able = self.space.abilities
        return [
            x for x in self.network.structure.layers if "bits" not in x.fixed and able.has_integer_kernel(x)
        ]

    def _reads(self, layer: Layer, group: str) -> bool:
        structure = self.network.structure
        nodes = [structure.graph.by_name[n] for n in layer.nodes]
        return any(structure.tensor_group_of.get(n.inputs[0]) == group for n in nodes)

    def _writes(self, layer: Layer, group: str) -> bool:
        structure = self.network.structure
        written = [fused_output(structure.graph, structure.graph.by_name[n]) for n in layer.nodes]
        return any(structure.tensor_group_of.get(t) == group for t in written)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory seen the same way."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


__all__ = ["Change", "Changes", "Statistic", "alike"]
