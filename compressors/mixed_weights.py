"""Weights of a mixture of policies: every value's weight, worked out once, and their weighted sum.

A layer's weight under gates is, with W the trained one, M the mask of its input channels, and stacks of
differences to W, one for every value of a coordinate:

    (W + sum_r g_r (R_r - W) + sum_b g_b (Q_b - W)) * M + sum_k g_k D_k

R_r: the product of the factors at rank r, of W's shape; Q_b: W rounded to b bits; M: of every channel the
share of values that keep it; D_k: what kept channels take over from removed ones at k channels kept
(`compressors.reconstruct`). One gate alone at one-hot gives what compression gives; several at once leave
out what they do to one another: factors are those of the unpruned weight, rounded as the dense one is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .errors import PolicyError
from .factorize import factorize
from .factors import FACTORISATIONS, Step
from .graph import ChannelGroup, Layer, Node
from .importance import kept_units
from .mixed_bits import MixedBits
from .network import Network
from .policy import Factor, Policy
from .quantize import quantize_weight
from .reconstruct import predictor, reconstructible, surviving
from .resolve import Numerics
from .rounding import weight_axis
from .space import Choice, PolicySpace

#: Counts of kept channels whose reconstruction is worked out, per group; between two of them it is
#: interpolated.
ANCHORS = 16
#: Bytes that all reconstructions of a network may take: beyond it there are fewer anchors, or none.
RECONSTRUCTION_BYTES = 256 << 20


@dataclass(frozen=True)
class Mask:
    """Share of the mixture that keeps each position of one dimension, as ``group``'s channels are kept.

    ``kept`` (values, size + 1): whether a unit stays at a value; the last column is of positions that are
    not of the group. ``marks`` (positions,) are units, -1 for none.
    """

    coordinate: int
    kept: Tensor
    marks: Tensor

    def of(self, gates: Sequence[Tensor]) -> Tensor:
        """(positions,)."""
        return (gates[self.coordinate] @ self.kept)[self.marks]


@dataclass
class _Stack:
    """Differences (K, *weight); ``spread`` (values, K) says which value of the coordinate has which."""

    coordinate: int
    spread: Tensor
    differences: Tensor

    def of(self, gates: Sequence[Tensor]) -> Tensor:
        found: Tensor = torch.tensordot(gates[self.coordinate] @ self.spread, self.differences, 1)
        return found


@dataclass
class _Mixed:
    """What one layer's weight is mixed from."""

    weight: Tensor
    axis: int
    ranks: _Stack | None = None
    rounded: tuple[tuple[int, ...], Tensor] | None = None
    masks: list[Mask] = field(default_factory=list)
    taken_over: list[_Stack | None] = field(default_factory=list)

    def only_rounded(self, bits: Mapping[int, Tensor]) -> Tensor:
        if self.rounded is None:
            return self.weight
        shares = torch.stack([bits[b] for b in self.rounded[0]])
        rounded: Tensor = self.weight + torch.tensordot(shares, self.rounded[1], 1)
        return rounded

    def of(self, gates: Sequence[Tensor], bits: Mapping[int, Tensor]) -> Tensor:
        weight = self.only_rounded(bits)
        if self.ranks is not None:
            weight = weight + self.ranks.of(gates)
        masks = [self._wide(m.of(gates)) for m in self.masks]
        for mask in masks:
            weight = weight * mask
        for k, stack in enumerate(self.taken_over):
            if stack is not None:
                extra = stack.of(gates)
                for j, mask in enumerate(masks):
                    extra = extra if j == k else extra * mask
                weight = weight + extra
        return weight

    def _wide(self, mask: Tensor) -> Tensor:
        return mask.reshape([-1 if d == self.axis else 1 for d in range(self.weight.dim())])


class MixedWeights:
    """The mixtures of all layers' weights of one network under one policy space.

    ``reconstructed``: let kept channels take over from removed ones, as compression does.
    """

    def __init__(
        self, network: Network, space: PolicySpace, numerics: Numerics, bits: MixedBits, reconstructed: bool
    ) -> None:
        self.network = network
        self.space = space
        self.numerics = numerics
        self.bits = bits
        self.masks = keep_masks(network, space)
        self._layers = {x.name: self._mixed(x) for x in network.structure.layers}
        others = (n for n in network.structure.graph.nodes if n.name not in network.structure.layer_of_node)
        self._tied = {t for n in others for t in n.inputs}
        self.anchors = self._anchors() if reconstructed else 0
        if self.anchors:
            for layer in network.structure.layers:
                self._take_over(layer)

    def of(self, gates: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameter name to its mixed weight, where any choice changes it; the same for others that read it.

        An embedding that is a layer's weight as well is rounded with it, but neither factorised nor masked.
        """
        found, tied = {}, {}
        for name, mixed in self._layers.items():
            if mixed.ranks is not None or mixed.rounded is not None or mixed.masks:
                weight = self.network.structure.layer[name].weight
                shares = self.bits.weights(gates, name) if mixed.rounded is not None else {}
                found[weight] = mixed.of(gates, shares)
                if weight in self._tied:
                    tied[weight] = mixed.only_rounded(shares)
        return found, tied

    def _mixed(self, layer: Layer) -> _Mixed:
        weight = self.network.weights[layer.weight].detach()
        axis = input_axis(layer)
        found = _Mixed(weight, 0 if axis is None else axis, self._ranks(layer, weight))
        possible = self.bits.possible(layer.name)
        if possible:
            out = weight_axis(self.network.structure.graph, self._node(layer))
            scales = self.space.abilities.scales
            rounded = [quantize_weight(weight, b, out, self.numerics, scales)[0] - weight for b in possible]
            found.rounded = (possible, torch.stack(rounded))
        if axis is not None:
            found.masks = list(self.masks.get((layer.weight, axis), ()))
            found.taken_over = [None] * len(found.masks)
        return found

    def _node(self, layer: Layer) -> Node:
        return self.network.structure.graph.by_name[layer.nodes[0]]

    def _ranks(self, layer: Layer, weight: Tensor) -> _Stack | None:
        i = self.bits.at.get(f"rank:{layer.name}")
        if i is None:
            return None
        values = self.space.choices[i].values
        factors = [self._factor(layer, v) for v in values]
        distinct = list(dict.fromkeys(f for f in factors if f is not None))
        if not distinct:
            return None
        spread = torch.zeros(len(values), len(distinct), dtype=weight.dtype)
        for v, factor in enumerate(factors):
            if factor is not None:
                spread[v, distinct.index(factor)] = 1.0
        attrs = self._node(layer).attrs
        return _Stack(i, spread, torch.stack([low_rank(layer, weight, f, attrs) - weight for f in distinct]))

    def _factor(self, layer: Layer, value: object) -> Factor | None:
        """What a value resolves to with all channels kept; None where it saves nothing."""
        if not isinstance(value, tuple):
            return None
        return self.space.resolve(Policy(rank={layer.name: value})).factors.get(layer.name)

    # -- reconstruction

    def _anchors(self) -> int:
        """How many anchors the memory allows."""
        size = sum(
            mixed.weight.numel() * mixed.weight.element_size() * len(mixed.masks)
            for name, mixed in self._layers.items()
            if reconstructible(self.network.structure, self.network.structure.layer[name])
        )
        most = min(ANCHORS, RECONSTRUCTION_BYTES // max(size, 1))
        return most if most > 1 else 0

    def _take_over(self, layer: Layer) -> None:
        structure, mixed = self.network.structure, self._layers[layer.name]
        tensor = self._node(layer).inputs[0]
        covariances = self.network.covariances() if mixed.masks else {}
        if not reconstructible(structure, layer) or tensor not in covariances:
            return
        for k, mask in enumerate(mixed.masks):
            choice = self.space.choices[mask.coordinate]
            counts = [v for v in choice.values if isinstance(v, int)]
            places, spread = anchored(len(counts), self.anchors)
            stack = [
                self._gain(layer, tensor, covariances[tensor], choice, counts[p]).to(mixed.weight.dtype)
                for p in places
            ]
            if stack:
                mixed.taken_over[k] = _Stack(
                    mask.coordinate, spread.to(mixed.weight.dtype), torch.stack(stack)
                )

    def _gain(self, layer: Layer, tensor: str, cov: Tensor, choice: Choice, count: int) -> Tensor:
        """What the kept input channels take over, of the weight's shape, 0 at the removed ones."""
        network = self.network
        group = network.structure.group[choice.subject]
        units = kept_units(network.evidence, group, self.space.abilities.criterion, count)
        stay = surviving(network.structure, layer, 1, {group.name: units})
        full = network.weights[layer.weight].double()
        gain = torch.zeros_like(full)
        if bool(stay.any()) and not bool(stay.all()):
            taken = predictor(cov, stay, network.predictors, tensor)
            gain[:, stay] = torch.einsum("or...,rk->ok...", full[:, ~stay], taken)
        return gain


def anchored(values: int, most: int) -> tuple[list[int], Tensor]:
    """Positions of at most ``most`` anchors among all values but the last, and (values, anchors) weights.

    A value between two anchors takes its share of both; the last value, at which nothing is removed, counts
    as an anchor of zero.
    """
    places = sorted(
        {round(p) for p in np.linspace(0, values - 2, min(most, values - 1))} if values > 1 else ()
    )
    ends = [*places, values - 1]
    spread = torch.zeros(values, len(ends))
    for v in range(values):
        spread[v] = torch.from_numpy(
            np.array([np.interp(v, ends, np.eye(len(ends))[j]) for j in range(len(ends))])
        )
    return places, spread[:, :-1]


def input_axis(layer: Layer) -> int | None:
    """The dimension of a weight that its input channels are summed over; None where they are not summed."""
    if layer.op == "conv_transpose":
        return None if layer.groups > 1 and layer.weight_shape[1] == 1 else 0
    return None if layer.depthwise else 1


def keep_masks(network: Network, space: PolicySpace) -> dict[tuple[str, int], tuple[Mask, ...]]:
    """Per dimension of a tensor or parameter the masks of the groups that are cut there and have a choice."""
    found: dict[tuple[str, int], list[Mask]] = {}
    dtype = next(w.dtype for w in network.weights.values() if w.is_floating_point())
    for i, choice in enumerate(space.choices):
        if choice.kind == "keep":
            group = network.structure.group[choice.subject]
            kept = _kept(network, group, choice, space.abilities.criterion).to(dtype)
            for place, marks in group.slices.items():
                found.setdefault(place, []).append(Mask(i, kept, torch.tensor(marks)))
    return {place: tuple(masks) for place, masks in found.items()}


def _kept(network: Network, group: ChannelGroup, choice: Choice, criterion: str) -> Tensor:
    kept = torch.zeros(len(choice.values), group.size + 1)
    kept[:, -1] = 1.0
    for v, count in enumerate(choice.values):
        if isinstance(count, int):
            kept[v, kept_units(network.evidence, group, criterion, count)] = 1.0
    return kept


def low_rank(layer: Layer, weight: Tensor, factor: Factor, attrs: Mapping[str, object]) -> Tensor:
    """The weight that one layer would need to do what its factors do, of the layer's shape.

    Raises PolicyError for a scheme whose windows overlap, which no window of the layer's size replaces.
    """
    steps = FACTORISATIONS.find(factor.method).steps(layer.op, layer.kernel, attrs)
    parts = factorize(weight, factor, layer.op == "conv_transpose")
    found = composed(steps, parts)
    found = found.transpose(0, 1) if layer.op == "conv_transpose" else found
    if found.shape != weight.shape:
        raise PolicyError(f"factorisation {factor.method!r} of {layer.name!r} is not one layer's weight")
    return found


def composed(steps: Sequence[Step], parts: Sequence[Tensor]) -> Tensor:
    """(cout, cin, k...) of a chain of layers, at most one of which has a window along each dimension."""
    found: Tensor | None = None
    for step, part in zip(steps, parts, strict=True):
        own = part.transpose(0, 1) if step.op == "conv_transpose" else part
        if found is None:
            found = (
                torch.diag_embed(own[:, 0].movedim(0, -1)).movedim((-2, -1), (0, 1))
                if step.depthwise
                else own
            )
        elif step.depthwise:
            found = own * found
        else:
            found = torch.einsum("oi...,ic...->oc...", own, found)
    if found is None:
        raise PolicyError("a factorisation without a step")
    return found


__all__ = ["Mask", "MixedWeights", "composed", "input_axis", "keep_masks", "low_rank"]
