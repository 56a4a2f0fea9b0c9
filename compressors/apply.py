"""Doing a resolved policy to a network: prune, factorise, recalibrate, fold, quantise, correct biases.

The same policy on the same machine and thread count gives the same network, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compressed import ActivationCode, Code, Compressed, WeightCode
from .execute import run
from .factorize import factorize
from .graph import VIEW_OPS, WEIGHT_OPS, Graph, Node, Structure
from .importance import Evidence, kept_units
from .memo import Memo, nbytes
from .policy import Factor, ResolvedPolicy
from .prefix import PrefixCache, content_digest, narrow_points, prefix_keys
from .prune import kept_indices, prune
from .quantize import code_of, fake_quantize, quantize_bias, quantize_weight
from .recalibrate import Moments, channel_axis, channel_mean, fitted, moments, recalibrate
from .reconstruct import covariance, inputs_of, reconstruct
from .resolve import Numerics
from .skeleton import Placement, Skeleton, SkeletonCache, concrete, placed, unknowns
from .structure import structure_of
from .trace import trace

#: Calibration samples used to find activation ranges (batch-norm takes all that the network holds).
RANGE_SAMPLES = 128
#: Bytes of rounded activations remembered between policies.
ROUNDED_BYTES = 160 << 20
#: Median |log ratio| of calibration data's variances to the trained ones beyond which these data are strange:
#: 0.02 to 0.03 on data of the training's kind, 0.10 on synthesised tones, 0.19 on crops of a few photos.
STRANGE = 0.075


class _Seen(NamedTuple):
    """What the uncompressed network does on calibration data: see the methods of `Network`."""

    means: Mapping[str, Tensor]
    covariances: Mapping[str, Tensor]
    norms: Mapping[str, Moments]


@dataclass
class Network:
    """A traced network with what compression needs to know of it: structure, weights, calibration data."""

    structure: Structure
    weights: Mapping[str, Tensor]
    calibration: tuple[Tensor, ...]
    skeletons: SkeletonCache
    _gradients: dict[str, Tensor] | None = field(default=None, repr=False)
    _orders: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)
    _seen: _Seen | None = field(default=None, repr=False)
    #: Shared by all policies of these calibration data; a replaced network starts with an empty one.
    prefixes: PrefixCache = field(default_factory=PrefixCache, init=False, repr=False, compare=False)
    rounded: PrefixCache = field(
        default_factory=lambda: PrefixCache(ROUNDED_BYTES), init=False, repr=False, compare=False
    )
    predictors: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    factors: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

    @classmethod
    def from_module(
        cls, module: nn.Module, example: Sequence[Tensor], calibration: Sequence[Tensor]
    ) -> Network:
        """Trace a module; ``calibration`` are inputs, shape (samples, ...) each."""
        traced = trace(module, example)
        structure = structure_of(traced.graph)
        weights = {k: fast_layout(v.detach().clone()) for k, v in traced.weights.items()}
        return cls(structure, weights, tuple(fast_layout(x) for x in calibration), SkeletonCache(structure))

    def rank_channels(self, criterion: str) -> None:
        """Order every group's channels by importance now, rather than when a policy first prunes it."""
        for group in self.structure.groups:
            kept_units(self.evidence, group, criterion, group.size)

    @property
    def evidence(self) -> Evidence:
        """What importance criteria may look at."""
        return Evidence(self.structure, self.weights, self.gradients, self.covariances, self._orders)

    @torch.enable_grad()
    def gradients(self) -> Mapping[str, Tensor]:
        """Gradients of the loss against the network's own answers on calibration data, computed once."""
        if self._gradients is None:
            names = [x.weight for x in self.structure.layers]
            leaves = {k: self.weights[k].clone().requires_grad_(True) for k in names}
            inputs = tuple(x[:RANGE_SAMPLES] for x in self.calibration)
            outputs = batched(self.structure.graph, {**self.weights, **leaves}, inputs)
            first = outputs[0]
            if first.dim() == 2 and first.shape[1] > 1:
                loss = F.cross_entropy(first, first.detach().argmax(1))
            else:
                loss = first.square().mean()
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            self._gradients = {k: g for k, g in zip(names, found, strict=True) if g is not None}
        return self._gradients

    def channel_means(self) -> Mapping[str, Tensor]:
        """Mean of every weight-bearing node's output per channel, uncompressed, computed once."""
        return self._statistics().means

    def covariances(self) -> Mapping[str, Tensor]:
        """Channel covariance (C, C) of the layers' inputs, uncompressed, computed once."""
        return self._statistics().covariances

    def norm_moments(self) -> Mapping[str, Moments]:
        """(mean, variance) per channel of what reaches every batch-norm, by its name, uncompressed."""
        return self._statistics().norms

    def on_other_calibration(self, inputs: tuple[Tensor, ...]) -> Network:
        """The same network with other calibration data, for all but the covariances."""
        found = replace(self, calibration=inputs, _seen=None)
        found._seen = found._statistics()._replace(covariances=self.covariances())
        return found

    @property
    def strange_data(self) -> bool:
        """Whether calibration data are unlike those of the training: batch-norms' variances are others."""
        apart = []
        for node in self.structure.graph.nodes:
            if node.name in self.norm_moments():
                stored, now = self.weights[node.inputs[4]], self.norm_moments()[node.name][1]
                alive = stored > 0
                apart.append((now[alive].clamp_min(1e-30) / stored[alive]).log().abs())
        return bool(apart) and float(torch.cat(apart).median()) > STRANGE

    @torch.no_grad()
    def _statistics(self) -> _Seen:
        if self._seen is None:
            means: dict[str, Tensor] = {}
            covariances: dict[str, Tensor] = {}
            found: dict[str, Moments] = {}
            nodes = [n for n in self.structure.graph.nodes if n.name in self.structure.layer_of_node]
            axis = {n.outputs[0]: channel_axis(n) for n in nodes}
            read = inputs_of(self.structure)
            normed: dict[str, list[str]] = {}
            for n in self.structure.graph.nodes:
                if n.op == "batch_norm":
                    normed.setdefault(n.inputs[0], []).append(n.name)

            def look(name: str, value: Tensor) -> Tensor:
                if name in normed:
                    found.update(dict.fromkeys(normed[name], moments(value, 1)))
                if name in axis:
                    means[name] = channel_mean(value, axis[name])
                if name in read:
                    covariances[name] = covariance(value[:RANGE_SAMPLES], read[name])
                return value

            inputs = fitted(self.structure.graph, self.calibration)
            for name, value in zip(self.structure.graph.inputs, inputs, strict=True):
                if name in normed:
                    look(name, value)
            run(self.structure.graph, self.weights, inputs, look, hooked=frozenset((*axis, *read, *normed)))
            self._seen = _Seen(means, covariances, found)
        return self._seen


def fast_layout(value: Tensor) -> Tensor:
    """Images and 2-d convolution weights with channels last, which CPU convolutions run fastest on."""
    if value.dim() != 4:
        return value
    if value.shape[1] == 1 and value.is_contiguous():
        # both layouts describe one channel; the strides tell torch which one the result is to have
        _, _, high, wide = value.shape
        return value.as_strided(value.shape, (high * wide, 1, wide, 1))
    return value.contiguous(memory_format=torch.channels_last)


def batched(graph: Graph, weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs for any number of samples, also of a network that takes a fixed batch only."""
    if graph.fixed_batch is None:
        return run(graph, weights, inputs)
    step = graph.fixed_batch
    parts = [
        run(graph, weights, tuple(x[i : i + step] for x in inputs))
        for i in range(0, inputs[0].shape[0] - step + 1, step)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@torch.no_grad()
def compress(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: dict[str, Tensor] | None = None
) -> Compressed:
    """The compressed network a resolved policy describes, ready to simulate and to export.

    ``weights``: what `shrunk` returned, where that is known already.
    """
    return finish(network, policy, numerics, reduced(network, policy, weights))


@torch.no_grad()
def shrunk(network: Network, policy: ResolvedPolicy) -> dict[str, Tensor]:
    """Weights after pruning and factorisation, before recalibration."""
    skeleton = network.skeletons.of(policy)
    kept = kept_indices(network.evidence, policy.kept, policy.criterion)
    weights = prune(network.structure, network.weights, kept)
    if kept:
        covariances = network.covariances()
        weights = reconstruct(
            network.structure, network.weights, weights, kept, covariances, network.predictors
        )
    for name, factor in policy.factors.items():
        layer = network.structure.layer[name]
        parts = _factorized(network, weights[layer.weight], factor, layer.op == "conv_transpose")
        weights.update(zip(skeleton.factor_weights[name], parts, strict=True))
    return {k: fast_layout(v) for k, v in weights.items() if k in skeleton.unfolded.params}


def _factorized(network: Network, weight: Tensor, factor: Factor, transposed: bool) -> list[Tensor]:
    key = (factor, transposed, content_digest(weight))
    held = network.factors.get(key)
    return list(held or network.factors.put(key, tuple(factorize(weight, factor, transposed))))


@torch.no_grad()
def reduced(
    network: Network, policy: ResolvedPolicy, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights of the float network (`Skeleton.unfolded`) after pruning, factorisation and recalibration.

    ``weights``: as in `compress`.
    """
    return reduced_network(network, policy, weights)[1]


@torch.no_grad()
def reduced_network(
    network: Network, policy: ResolvedPolicy, weights: dict[str, Tensor] | None = None
) -> tuple[Graph, dict[str, Tensor]]:
    """The float network with its batch-norms, and the weights as of `reduced`."""
    skeleton = network.skeletons.of(policy)
    kept = kept_indices(network.evidence, policy.kept, policy.criterion)
    weights = shrunk(network, policy) if weights is None else dict(weights)
    unfolded = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    found = recalibrate(unfolded, weights, network, kept, changed=is_reduced(network, policy))
    return unfolded, found


@torch.no_grad()
def finish(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: Mapping[str, Tensor]
) -> Compressed:
    """Fold the float network's batch-norms and quantise what the policy says."""
    skeleton = network.skeletons.of(policy)
    return round_folded(network, policy, numerics, fold(skeleton, weights))


@torch.no_grad()
def round_folded(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: Mapping[str, Tensor]
) -> Compressed:
    """Quantise a folded network's weights, find activation ranges, correct and round biases."""
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    graph, where = placed(graph, network.structure, skeleton, policy, numerics)
    return quantized(graph, weights, where, network.calibration, policy, numerics, skeleton, network.rounded)


@torch.no_grad()
def folded_network(
    network: Network, policy: ResolvedPolicy, weights: dict[str, Tensor] | None = None
) -> tuple[Graph, dict[str, Tensor]]:
    """The float network, its batch-norms folded into the weights. ``weights``: as in `compress`."""
    skeleton = network.skeletons.of(policy)
    found = fold(skeleton, reduced(network, policy, weights))
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    return graph, {name: fast_layout(value) for name, value in found.items()}


def is_reduced(network: Network, policy: ResolvedPolicy) -> bool:
    """Whether a policy prunes, factorises or removes anything, so that statistics must be found anew."""
    cut = any(policy.kept.get(g.name, g.size) < g.size for g in network.structure.groups)
    return cut or bool(policy.factors) or bool(policy.removed)


def fold(skeleton: Skeleton, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold batch-norm into the weights before it: w * g / s and (b - m) * g / s + beta, s = sqrt(v + eps)."""
    found = dict(weights)
    by_name = skeleton.unfolded.by_name
    for folding in skeleton.foldings:
        node = by_name[folding.into[0]]
        _, scale, offset, mean, var = folding.norm.inputs
        factor = weights[scale] / torch.sqrt(weights[var] + folding.norm.attrs["eps"])
        axis = 1 if node.op == "conv_transpose" else 0
        shape = [1] * weights[node.inputs[1]].dim()
        shape[axis] = -1
        bias = weights[node.inputs[2]] if node.inputs[2] else torch.zeros_like(weights[mean])
        found[node.inputs[1]] = weights[node.inputs[1]] * factor.reshape(shape)
        found[f"{node.inputs[1]}.folded_bias"] = (bias - weights[mean]) * factor + weights[offset]
    found.update({own: found[bias] for own, bias in skeleton.bias_copies.items()})
    return {k: v for k, v in found.items() if k in skeleton.graph.params}


def weight_axis(graph: Graph, node: Node) -> int:
    """The dimension of a weight that holds its output channels."""
    if node.op == "conv_transpose" and not (
        node.attrs["groups"] > 1 and graph.params[node.inputs[1]].shape[1] == 1
    ):
        return 1
    return 0


def quantized(
    graph: Graph,
    weights: Mapping[str, Tensor],
    where: Placement,
    calibration: tuple[Tensor, ...],
    policy: ResolvedPolicy,
    numerics: Numerics,
    skeleton: Skeleton,
    prefixes: PrefixCache | None = None,
) -> Compressed:
    """Round weights, find activation ranges and correct biases in one pass, tensor by tensor.

    ``prefixes``: what other policies found on the same calibration data.
    """
    state = Quantizing(graph, dict(weights), where, policy, numerics)
    if where.tensors or where.params:
        inputs = tuple(x[:RANGE_SAMPLES] for x in fitted(graph, calibration))
        keys = state.keys(inputs) if prefixes is not None else []
        state.weights_first()
        state.run(inputs, keys, prefixes)
        state.biases_last()
    return Compressed(
        policy,
        numerics,
        graph,
        state.weights,
        state.activations,
        state.codes,
        state.biases,
        skeleton.layer_of,
        skeleton.unfoldable,
    )


class Quantizing:
    """State of a quantisation pass: `weights_first`, then `seen` for every tensor in `watched`, in order."""

    def __init__(
        self,
        graph: Graph,
        weights: dict[str, Tensor],
        where: Placement,
        policy: ResolvedPolicy,
        numerics: Numerics,
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.where = where
        self.policy = policy
        self.numerics = numerics
        self.codes: dict[str, WeightCode] = {}
        self.errors: dict[str, Tensor] = {}
        self.activations: dict[str, Code] = {}
        self.biases: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.corrected: set[str] = set()
        self.calls: dict[str, list[Node]] = {}
        for n in graph.nodes:
            if len(n.inputs) > 1 and n.inputs[1] in where.params:
                self.calls.setdefault(n.inputs[1], []).append(n)
        self.outputs = {n.outputs[0]: n for nodes in self.calls.values() for n in nodes if n.op in WEIGHT_OPS}
        self.read = {n.inputs[0] for nodes in self.calls.values() for n in nodes}
        self.watched = {*where.tensors, *self.outputs, *self.read}

    def weights_first(self) -> None:
        """Round every integer weight; remember what rounding changed, per output and input channel."""
        for name, bits in self.where.params.items():
            node = self.calls[name][0]
            axis = weight_axis(self.graph, node)
            exact = self.weights[name]
            rounded, code = quantize_weight(exact, bits, axis, self.numerics, self.policy.scales)
            change = rounded - exact
            self.errors[name] = change.sum(tuple(range(2, change.dim()))) if change.dim() > 2 else change
            self.weights[name], self.codes[name] = rounded, code

    def keys(self, inputs: tuple[Tensor, ...]) -> list[bytes | None]:
        """Digests of the graph's beginnings, before anything was rounded."""
        root = (self.numerics.key, self.policy.ranges, self.policy.scales, [tuple(x.shape) for x in inputs])
        bits = [self.where.tensors.get(t) for t in self.graph.inputs]

        def more(node: Node) -> object:
            return [self.where.params.get(t) for t in node.inputs], [
                self.where.tensors.get(t) for t in node.outputs
            ]

        return prefix_keys(self.graph, repr((root, bits)).encode(), self.weights, more)

    def run(
        self, inputs: tuple[Tensor, ...], keys: Sequence[bytes | None], prefixes: PrefixCache | None
    ) -> None:
        """The pass itself, from the end of the longest beginning that another policy shares."""
        resume = None
        found = prefixes.longest(keys) if prefixes is not None else None
        beside: dict[str, Tensor] = {}
        if found is not None:
            position, (values, activations, biases) = found
            self.activations.update(activations)
            self.weights.update(biases)
            self.corrected.update(biases)
            self.means.update({t: v for t, v in values.items() if t in self.read})
            beside.update(values)
            resume = (position + 1, values)
        points = {t: (keys[i], others) for i, (t, *others) in narrow_points(self.graph).items() if keys}
        others = {t for _, names in points.values() for t in names}

        def hook(name: str, value: Tensor) -> Tensor:
            value = self.seen(name, value) if name in self.watched else value
            if name in others:
                beside[name] = value
            key, names = points.get(name, (None, ()))
            if key is not None and prefixes is not None:
                biases = {b: self.weights[b] for b in self.corrected}
                alive = {name: value, **{t: beside[t] for t in names}}
                prefixes.put(key, (alive, dict(self.activations), biases), nbytes([*alive.values()]))
            return value

        hooked = frozenset((*self.watched, *points, *others))
        run(self.graph, self.weights, inputs, hook, hooked=hooked, resume=resume)

    def seen(self, name: str, value: Tensor) -> Tensor:
        """Hook of the pass: correct the bias a tensor came through, then quantise the tensor."""
        node = self.outputs.get(name)
        if node is not None:
            value = self._corrected(node, value)
        bits = self.where.tensors.get(name)
        if bits is not None:
            ranges = self.policy.ranges
            code = self._inherited(name) or code_of(value, bits, self.numerics, ranges, self.graph, name)
            self.activations[name] = code
            value = fake_quantize(value, code)
        if name in self.read:
            self.means[name] = value
        return value

    def _inherited(self, name: str) -> ActivationCode | None:
        """Operations that only move values keep their input's quantiser; so does ReLU of codes from zero."""
        node = self.graph.producer.get(name)
        if node is None:
            return None
        code = self.activations.get(node.inputs[0])
        if not isinstance(code, ActivationCode):
            return None
        moves = node.op in VIEW_OPS or node.op == "max_pool"
        moves = moves or (node.op == "upsample" and node.attrs["mode"] == "nearest")
        moves = moves or (node.op == "relu" and code.low == code.zero_point)
        return code if moves else None

    def _corrected(self, node: Node, value: Tensor) -> Tensor:
        """Take the mean that weight rounding adds out of the bias (Nagel et al. 2019, section 4.2)."""
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else ""
        x = self.means.get(node.inputs[0])
        if not bias or x is None or node.op == "conv_transpose":
            return value
        axis = channel_axis(node) % x.dim()
        mean = channel_mean(x, axis)
        error = self.errors[weight]
        groups = node.attrs.get("groups", 1)
        if groups > 1:
            blocks = mean.reshape(groups, -1).repeat_interleave(error.shape[0] // groups, 0)
            delta = (error * blocks).sum(1)
        else:
            delta = error @ mean
        self.weights[bias] = self.weights[bias] - delta
        self.corrected.add(bias)
        out = channel_axis(node) % value.dim()
        return value - delta.reshape([-1 if d == out else 1 for d in range(value.dim())])

    def biases_last(self) -> None:
        """Round the biases of integer layers to int32; behind dynamic ranges they stay float."""
        for node in self.outputs.values():
            bias = node.inputs[2]
            code = self.activations.get(node.inputs[0])
            if bias and isinstance(code, ActivationCode):
                self.weights[bias], self.biases[bias] = quantize_bias(
                    self.weights[bias], code.scale, self.codes[node.inputs[1]], self.numerics.bias_bits
                )


__all__ = [
    "Network",
    "Quantizing",
    "batched",
    "compress",
    "finish",
    "fitted",
    "fold",
    "folded_network",
    "is_reduced",
    "quantized",
    "recalibrate",
    "reduced",
    "reduced_network",
    "round_folded",
    "shrunk",
]
