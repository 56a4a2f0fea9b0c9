"""The quantisation pass: round weights, find activation ranges, correct biases, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .compressed import ActivationCode, Code, Compressed, WeightCode
from .execute import run
from .graph import VIEW_OPS, WEIGHT_OPS, Graph, Node
from .memo import nbytes
from .network import RANGE_SAMPLES
from .policy import ResolvedPolicy
from .prefix import PrefixCache, narrow_points, prefix_keys
from .quantize import code_of, fake_quantize, quantize_bias, quantize_weight
from .recalibrate import channel_axis, channel_mean, fitted
from .resolve import Numerics
from .skeleton import Placement, Skeleton


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


__all__ = ["Quantizing", "quantized", "weight_axis"]
