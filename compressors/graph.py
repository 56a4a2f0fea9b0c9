"""The traced network as a pure value: operations, tensors and their shapes.

Neither torch nor onnxruntime is imported here, so that policies can be resolved, lowered and priced
without either. Weights live beside the graph in a ``dict[str, torch.Tensor]`` keyed by parameter name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: Sizes of a tensor. A positive entry is a constant; ``-k`` means k times the batch size, so that
#: ``(-1, 16, 8, 8)`` is a batch of 16x8x8 maps and ``(-4, 64, 8)`` is four heads per sample.
Shape = tuple[int, ...]

#: Operations that carry weights and are searched as layers.
WEIGHT_OPS = frozenset({"conv", "conv_transpose", "linear"})
#: Operations that move or relabel values without computing: one quantiser serves both sides.
VIEW_OPS = frozenset({"reshape", "permute", "slice", "select", "split", "expand", "pad", "identity"})
#: Operations on one tensor, element by element and without attributes, as torch calls them.
ELEMENTWISE = frozenset(
    [
        "relu",
        "sigmoid",
        "tanh",
        "exp",
        "sqrt",
        "rsqrt",
        "neg",
        "abs",
        "erf",
        "log",
        "sin",
        "cos",
        "reciprocal",
        "floor",
        "hardswish",
        "hardsigmoid",
        "silu",
        "mish",
        "softplus",
    ]
)
#: Activations that runtimes fuse into the weight-bearing operation before them.
FUSED_ACTIVATIONS = frozenset({"relu", "clip"})


@dataclass(frozen=True)
class TensorType:
    """Shape and element type ("float32", "int64", ...) of one tensor."""

    shape: Shape
    dtype: str = "float32"

    def elements(self, batch: int = 1) -> int:
        """Number of elements at the given batch size."""
        n = 1
        for d in self.shape:
            n *= d if d >= 0 else -d * batch
        return n


@dataclass(frozen=True)
class Node:
    """One operation. ``inputs`` name activations or parameters; "" stands for an absent operand.

    ``attrs`` holds plain values (numbers, strings, tuples of them); which ones, per operation, is
    documented in ``compressors/trace.py``, the only place that makes nodes from torch's.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Node:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Graph:
    """A network: nodes in execution order, typed activations, typed parameters."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, TensorType]
    params: Mapping[str, TensorType]
    fixed_batch: int | None = None

    @cached_property
    def producer(self) -> dict[str, Node]:
        """Activation name to the node that makes it."""
        return {t: n for n in self.nodes for t in n.outputs}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Activation or parameter name to the nodes that read it (network outputs not counted)."""
        found: dict[str, list[Node]] = {}
        for n in self.nodes:
            for t in dict.fromkeys(n.inputs):
                if t:
                    found.setdefault(t, []).append(n)
        return {t: tuple(ns) for t, ns in found.items()}

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Node name to node."""
        return {n.name: n for n in self.nodes}

    @cached_property
    def topology(self) -> dict[str, Any]:
        """What others worked out from the nodes alone; shared by graphs that differ in sizes only."""
        return {}

    def resized(self, tensors: Mapping[str, TensorType], params: Mapping[str, TensorType]) -> Graph:
        """The same nodes with other types, which need not be put in order anew."""
        made = Graph(self.nodes, self.inputs, self.outputs, tensors, params, self.fixed_batch)
        known = ("topology", "producer", "consumers", "by_name")
        made.__dict__.update({name: getattr(self, name) for name in known})
        return made

    def type_of(self, tensor: str) -> TensorType:
        """Type of an activation or a parameter."""
        found = self.tensors.get(tensor)
        return found if found is not None else self.params[tensor]

    def activations_of(self, node: Node) -> Iterator[str]:
        """The inputs of a node that are activations (not parameters)."""
        return (t for t in node.inputs if t and t in self.tensors)

    def rebuilt(
        self,
        nodes: Iterable[Node],
        outputs: Sequence[str] | None = None,
        tensors: Mapping[str, TensorType] | None = None,
        params: Mapping[str, TensorType] | None = None,
    ) -> Graph:
        """A graph with other nodes, dead nodes, tensors and parameters dropped."""
        outs = tuple(outputs if outputs is not None else self.outputs)
        kept, needed = [], set(outs)
        for n in reversed(tuple(nodes)):
            if any(t in needed for t in n.outputs):
                kept.append(n)
                needed.update(t for t in n.inputs if t)
        kept.reverse()
        needed.update(t for n in kept for t in n.outputs)
        needed.update(self.inputs)
        all_tensors = {**self.tensors, **(tensors or {})}
        all_params = {**self.params, **(params or {})}
        return Graph(
            tuple(kept),
            self.inputs,
            outs,
            {t: v for t, v in all_tensors.items() if t in needed},
            {p: v for p, v in all_params.items() if p in needed},
            self.fixed_batch,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 (first 16 hex digits) of the structure: operations, attributes, shapes; no weights."""
        doc = [
            [n.op, n.name, n.inputs, n.outputs, sorted((k, repr(v)) for k, v in n.attrs.items())]
            for n in self.nodes
        ]
        types = sorted((t, v.shape, v.dtype) for t, v in {**self.tensors, **self.params}.items())
        text = json.dumps([doc, self.inputs, self.outputs, types, self.fixed_batch])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DimSize:
    """Size of one dimension as a function of kept channels: ``const + sum(mult[g] * kept[g])``.

    ``batch`` is True where the size is to be multiplied by the batch size.
    """

    const: int
    mult: tuple[tuple[str, int], ...] = ()
    batch: bool = False

    def at(self, kept: Mapping[str, int]) -> int:
        """The size (per batch unit) once each group keeps ``kept[group]`` channels."""
        size = self.const
        for g, m in self.mult:
            size += m * kept[g]
        return size


@dataclass(frozen=True)
class Layer:
    """One weight-bearing operation (all calls of one weight), with its shapes.

    ``weight_shape`` is torch's: conv (cout, cin/groups, k...), conv_transpose (cin, cout/groups, k...),
    linear (cout, cin). ``macs`` counts multiply-accumulates of all calls for one sample.
    ``fixed`` maps "prune", "bits" or "rank" to the reason why that knob is left alone.
    """

    name: str
    op: str
    weight: str
    bias: str
    nodes: tuple[str, ...]
    weight_shape: tuple[int, ...]
    groups: int
    macs: int
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def depthwise(self) -> bool:
        """True for a convolution with one input channel per group."""
        return self.op == "conv" and self.groups > 1 and self.weight_shape[1] == 1

    @property
    def kind(self) -> str:
        """The operation, told apart as runtimes do: "conv1d", "depthwise", "grouped", or as ``op``."""
        if self.op != "conv":
            return self.op
        if len(self.kernel) == 1:
            return "conv1d"
        return "conv" if self.groups == 1 else "depthwise" if self.depthwise else "grouped"

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial kernel size; () for linear layers."""
        return self.weight_shape[2:]

    @property
    def cout(self) -> int:
        """Output channels."""
        return self.weight_shape[1] * self.groups if self.op == "conv_transpose" else self.weight_shape[0]

    @property
    def cin(self) -> int:
        """Input channels."""
        return self.weight_shape[0] if self.op == "conv_transpose" else self.weight_shape[1] * self.groups


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together: ``size`` interchangeable units.

    ``slices`` maps (tensor or parameter, dimension) to the unit index each position belongs to
    (-1: not of this group). Removing unit u removes every position that carries u.
    """

    name: str
    size: int
    slices: Mapping[tuple[str, int], tuple[int, ...]]
    layers: tuple[str, ...]
    depthwise: bool = False


@dataclass(frozen=True)
class TensorGroup:
    """Activations that share one choice of bits (joined by add, concat, pooling, reshape)."""

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A residual branch that can be removed: ``output`` becomes ``shortcut``."""

    name: str
    output: str
    shortcut: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Loose:
    """Parameters of no layer that one operation reads: names, bytes as traced, why no policy changes them.

    ``weighs``: the operation multiplies with them as a layer does, but is not one.
    """

    subject: str
    names: tuple[str, ...]
    size_bytes: int
    reason: str
    weighs: bool = False


@dataclass(frozen=True)
class Structure:
    """All that the policy space needs to know of a network: pure, no weights.

    ``sizes[tensor][dim]`` gives every activation's and parameter's dimension as a function of the
    channels kept; ``slice_ends[node]`` likewise where a slice over channels starts and ends. ``notes``
    lists what cannot be searched: (subject, reason); ``loose`` the parameters that belong to no layer.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    tensor_groups: tuple[TensorGroup, ...]
    blocks: tuple[Block, ...]
    sizes: Mapping[str, tuple[DimSize, ...]]
    slice_ends: Mapping[str, tuple[DimSize, DimSize]] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    loose: tuple[Loose, ...] = ()

    @cached_property
    def layer(self) -> dict[str, Layer]:
        """Layers by name."""
        return {x.name: x for x in self.layers}

    @cached_property
    def group(self) -> dict[str, ChannelGroup]:
        """Channel groups by name."""
        return {x.name: x for x in self.groups}

    @cached_property
    def layer_of_node(self) -> dict[str, Layer]:
        """Node name to its layer."""
        return {n: x for x in self.layers for n in x.nodes}

    @cached_property
    def tensor_group_of(self) -> dict[str, str]:
        """Activation name to the name of its tensor group."""
        return {t: g.name for g in self.tensor_groups for t in g.tensors}

    @cached_property
    def block(self) -> dict[str, Block]:
        """Blocks by name."""
        return {x.name: x for x in self.blocks}
