"""The shape of a compressed network before any weight is touched: pure, shared by compression and pricing.

`skeleton_of` depends only on a policy's *structure* (blocks removed, factorisation methods), so it is
cached; sizes stay symbolic in channels kept and ranks. `concrete` fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from .factors.base import FACTORISATIONS, Step, channel_ends
from .graph import WEIGHT_OPS, DimSize, Graph, Node, Structure, TensorType
from .padding import begins_and_ends
from .policy import FLOAT, ResolvedPolicy
from .resolve import Numerics, fused_output, without_blocks


@dataclass(frozen=True)
class Folding:
    """Batch-norm ``norm`` folded into the weight-bearing nodes ``into`` (several if it is shared)."""

    norm: Node
    into: tuple[str, ...]


@dataclass(frozen=True)
class Skeleton:
    """Topology of a compressed network.

    ``unfolded`` still has its batch-norms (for recalibration); ``graph`` has them folded away. Node and
    tensor names of what is left unchanged are those of the traced graph; types in both graphs are those
    of the *uncompressed* sizes: use `concrete`. ``sizes`` covers all tensors and parameters; rank i of
    layer L appears as pseudo group ``rank:L:i``. ``layer_of`` maps weight-bearing nodes (factors too) to
    layers; ``factor_weights`` maps a factorised layer to its factor weights in order. In ``graph`` every
    call of a layer has a bias of its own, since integer biases depend on the scale of the input:
    ``bias_copies`` maps those that were made to the bias they start as.
    """

    unfolded: Graph
    graph: Graph
    sizes: Mapping[str, tuple[DimSize, ...]]
    layer_of: Mapping[str, str]
    factor_weights: Mapping[str, tuple[str, ...]]
    foldings: tuple[Folding, ...]
    unfoldable: tuple[str, ...]
    slice_ends: Mapping[str, tuple[DimSize, DimSize]] = field(default_factory=dict)
    bias_copies: Mapping[str, str] = field(default_factory=dict)


def structure_key(policy: ResolvedPolicy) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What the topology depends on: blocks removed and the method of each factorised layer."""
    return tuple(sorted(policy.removed)), tuple(sorted((k, f.method) for k, f in policy.factors.items()))


def unknowns(policy: ResolvedPolicy, structure: Structure) -> dict[str, int]:
    """Values of everything sizes depend on: channels kept per group (all, if absent) and ranks."""
    values = {g.name: policy.kept.get(g.name, g.size) for g in structure.groups}
    for name, factor in policy.factors.items():
        values.update({f"rank:{name}:{i}": r for i, r in enumerate(factor.rank)})
    return values


class SkeletonCache:
    """Skeletons of one network by `structure_key`."""

    def __init__(self, structure: Structure, limit: int = 4096) -> None:
        self.structure = structure
        self.limit = limit
        self._build = lru_cache(maxsize=limit)(self._make)

    def __reduce__(self) -> tuple[type[SkeletonCache], tuple[Structure, int]]:
        # A copy, as in another process, fills itself anew.
        return type(self), (self.structure, self.limit)

    def of(self, policy: ResolvedPolicy) -> Skeleton:
        """The skeleton a policy leads to."""
        return self._build(*structure_key(policy))

    def _make(self, removed: tuple[str, ...], methods: tuple[tuple[str, str], ...]) -> Skeleton:
        return skeleton_of(self.structure, removed, dict(methods))


def skeleton_of(structure: Structure, removed: tuple[str, ...], methods: Mapping[str, str]) -> Skeleton:
    """Remove blocks, split factorised layers, fold batch-norms; sizes stay symbolic."""
    graph = without_blocks(structure, removed)
    sizes = dict(structure.sizes)
    layer_of = {n.name: structure.layer_of_node[n.name].name for n in graph.nodes if n.op in WEIGHT_OPS}
    nodes: list[Node] = []
    types: dict[str, TensorType] = {}
    params: dict[str, TensorType] = {}
    weights: dict[str, tuple[str, ...]] = {}
    for n in graph.nodes:
        layer = layer_of.get(n.name)
        if layer is None or layer not in methods:
            nodes.append(n)
            continue
        chain = _factor(structure, n, layer, methods[layer], sizes, types, params)
        weights[layer] = tuple(c.inputs[1] for c in chain)
        layer_of.update({c.name: layer for c in chain})
        nodes.extend(chain)
    unfolded = graph.rebuilt(nodes, tensors=types, params=params)
    folded, foldings, unfoldable = _fold(unfolded, sizes)
    folded, copies = _own_biases(folded, sizes)
    alive = {n.name for n in unfolded.nodes}
    return Skeleton(
        unfolded,
        folded,
        sizes,
        {k: v for k, v in layer_of.items() if k in alive},
        weights,
        foldings,
        unfoldable,
        {k: v for k, v in structure.slice_ends.items() if k in alive},
        copies,
    )


def _factor(
    structure: Structure,
    n: Node,
    layer: str,
    method: str,
    sizes: dict[str, tuple[DimSize, ...]],
    types: dict[str, TensorType],
    params: dict[str, TensorType],
) -> list[Node]:
    """The chain of nodes a factorised layer becomes; registers its weights and inner tensors."""
    x, w, b = n.inputs
    cout, cin, *_ = sizes[w]
    if n.op == "conv_transpose":
        cin, cout = cout, cin
    full = structure.graph.params[w].shape
    scheme = FACTORISATIONS.find(method)
    steps = scheme.steps(n.op, full[2:], n.attrs)
    ranks = [DimSize(0, ((f"rank:{layer}:{i}", 1),)) for i in range(scheme.ranks)]
    chain: list[Node] = []
    tensor = x
    for i, (step, (ends, after)) in enumerate(
        zip(steps, channel_ends(steps, cin, cout, ranks, DimSize(1)), strict=True)
    ):
        last = i == len(steps) - 1
        weight = f"{layer}.factor{i}.weight"
        sizes[weight] = (*ends, *(DimSize(k) for k in step.kernel))
        params[weight] = TensorType((full[0], 1 if step.depthwise else full[1], *step.kernel))
        out = n.outputs[0] if last else f"{n.outputs[0]}.factor{i}"
        chain.append(
            Node(
                step.op,
                n.name if last else f"{n.name}.factor{i}",
                (tensor, weight, b if last else ""),
                (out,),
                {**step.attrs, "groups": full[0]} if step.depthwise else step.attrs,
            )
        )
        if not last:
            before = structure.graph.tensors[tensor].shape if tensor == x else types[tensor].shape
            kind, dims = _inner(step, before, sizes[tensor], after, full[0])
            types[out], sizes[out] = kind, dims
        tensor = out
    return chain


def _inner(
    step: Step,
    before: tuple[int, ...],
    sizes: tuple[DimSize, ...],
    channels: DimSize,
    full: int,
) -> tuple[TensorType, tuple[DimSize, ...]]:
    """Type and sizes of the tensor between two factors."""
    if step.op == "linear":
        return TensorType((*before[:-1], full)), (*sizes[:-1], channels)
    stride, dilation = step.attrs["stride"], step.attrs["dilation"]
    zeros = map(sum, zip(*begins_and_ends(step.attrs), strict=True))
    spatial = tuple(
        (s + p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(before[2:], zeros, dilation, step.kernel, stride, strict=True)
    )
    return TensorType((before[0], full, *spatial)), (sizes[0], channels, *(DimSize(s) for s in spatial))


def _fold(
    graph: Graph, sizes: dict[str, tuple[DimSize, ...]]
) -> tuple[Graph, tuple[Folding, ...], tuple[str, ...]]:
    """Drop every batch-norm that directly follows a weight-bearing node nobody else reads."""
    callers: dict[str, list[Node]] = {}
    for n in graph.nodes:
        if n.op in WEIGHT_OPS:
            callers.setdefault(n.inputs[1], []).append(n)
    norm_after = {
        n.name: m for n in graph.nodes if n.op in WEIGHT_OPS and (m := _norm_after(graph, n)) is not None
    }
    foldings: list[Folding] = []
    gone: dict[str, str] = {}  # name of a folded batch-norm node -> its input tensor
    biased: dict[str, str] = {}
    for weight, nodes in callers.items():
        norms = [norm_after.get(n.name) for n in nodes]
        first = norms[0]
        if first is None or any(m is None or m.inputs[1:] != first.inputs[1:] for m in norms):
            continue
        foldings.append(Folding(first, tuple(n.name for n in nodes)))
        gone.update({m.name: m.inputs[0] for m in norms if m is not None})
        bias = f"{weight}.folded_bias"
        sizes[bias] = sizes[first.inputs[1]]
        biased.update({n.name: bias for n in nodes})
    renamed = {gone[n.name]: n.outputs[0] for n in graph.nodes if n.name in gone}
    nodes = [_renamed(n, renamed, biased) for n in graph.nodes if n.name not in gone]
    params = {b: graph.params[f.norm.inputs[1]] for f in foldings for b in [biased[f.into[0]]]}
    left = tuple(n.name for n in nodes if n.op == "batch_norm")
    return graph.rebuilt(nodes, params=params), tuple(foldings), left


def unfoldable_norms(graph: Graph, sizes: Mapping[str, tuple[DimSize, ...]]) -> tuple[str, ...]:
    """Names of the batch-norms that stay where they are, in a graph that nothing was done to."""
    return _fold(graph, dict(sizes))[2]


def _own_biases(graph: Graph, sizes: dict[str, tuple[DimSize, ...]]) -> tuple[Graph, dict[str, str]]:
    """A bias for each call of a shared layer, and what the new ones are copies of."""
    taken: set[str] = set()
    copies: dict[str, str] = {}
    nodes = []
    for n in graph.nodes:
        bias = n.inputs[2] if n.op in WEIGHT_OPS else ""
        if bias in taken:
            own = f"{bias}.{n.name}"
            copies[own], sizes[own] = bias, sizes[bias]
            n = n.with_(inputs=(*n.inputs[:2], own))
        elif bias:
            taken.add(bias)
        nodes.append(n)
    params = {own: graph.params[bias] for own, bias in copies.items()}
    return (graph.rebuilt(nodes, params=params) if copies else graph), copies


def _renamed(n: Node, renamed: Mapping[str, str], biased: Mapping[str, str]) -> Node:
    outputs = tuple(renamed.get(t, t) for t in n.outputs)
    inputs = n.inputs if n.name not in biased else (*n.inputs[:2], biased[n.name])
    return n.with_(outputs=outputs, inputs=inputs)


def _norm_after(graph: Graph, n: Node) -> Node | None:
    out = n.outputs[0]
    readers = graph.consumers.get(out, ())
    if out in graph.outputs or len(readers) != 1 or readers[0].op != "batch_norm":
        return None
    if n.op == "linear" and len(graph.tensors[out].shape) != 2:
        return None
    if n.op == "conv_transpose" and n.attrs["groups"] > 1:
        return None
    return readers[0]


def concrete(graph: Graph, skeleton: Skeleton, values: Mapping[str, int]) -> Graph:
    """A graph of the skeleton with real sizes: types, groups of depthwise layers, ends of slices."""

    def sized(name: str, kind: TensorType) -> TensorType:
        sizes = skeleton.sizes[name]
        return TensorType(tuple([-d.at(values) if d.batch else d.at(values) for d in sizes]), kind.dtype)

    tensors = {t: sized(t, k) for t, k in graph.tensors.items()}
    params = {p: sized(p, k) for p, k in graph.params.items()}
    nodes = []
    same = True
    for n in graph.nodes:
        before = n
        if n.op == "conv" and n.attrs["groups"] > 1:
            groups = tensors[n.inputs[0]].shape[1] // params[n.inputs[1]].shape[1]
            n = n.with_(attrs={**n.attrs, "groups": groups})
        elif n.op == "conv_transpose" and n.attrs["groups"] > 1 and graph.params[n.inputs[1]].shape[1] == 1:
            n = n.with_(attrs={**n.attrs, "groups": params[n.inputs[1]].shape[0]})
        elif n.op == "slice" and n.name in skeleton.slice_ends:
            start, end = skeleton.slice_ends[n.name]
            n = n.with_(attrs={**n.attrs, "start": start.at(values), "end": end.at(values)})
        nodes.append(n)
        same = same and n is before
    if same:
        return graph.resized(tensors, params)
    return Graph(tuple(nodes), graph.inputs, graph.outputs, tensors, params, graph.fixed_batch)


@dataclass(frozen=True)
class Placement:
    """Where integers are: bits of activations (by tensor, at its producer) and of weights (by parameter)."""

    tensors: Mapping[str, int]
    params: Mapping[str, int]


def placement(structure: Structure, skeleton: Skeleton, policy: ResolvedPolicy) -> Placement:
    """Quantise/dequantise goes exactly here, in simulation and export; tensors not named stay float.

    A tensor inside a factorised layer takes the bits of the layer's input when the layer is integer.
    """
    graph = skeleton.graph
    tensors: dict[str, int] = {}
    for g in structure.tensor_groups:
        bits = policy.act_bits.get(g.name, FLOAT)
        if bits != FLOAT:
            tensors.update({t: bits for t in g.tensors if t in graph.tensors})
    params: dict[str, int] = {}
    for n in graph.nodes:
        layer = skeleton.layer_of.get(n.name)
        if layer is None:
            continue
        bits = policy.weight_bits.get(layer, FLOAT)
        if bits == FLOAT:
            continue
        params[n.inputs[1]] = bits
        inner = n.outputs[0]
        source = tensors.get(n.inputs[0])
        if ".factor" in inner and source is not None:
            tensors[fused_output(graph, n)] = source
    return Placement(tensors, params)


def placed(
    graph: Graph, structure: Structure, skeleton: Skeleton, policy: ResolvedPolicy, numerics: Numerics
) -> tuple[Graph, Placement]:
    """The folded graph as it is simulated and exported, and where its integers are."""
    where = placement(structure, skeleton, policy)
    return at_reads(graph, where) if numerics.under(policy.ranges).at_reads else (graph, where)


def at_reads(graph: Graph, where: Placement) -> tuple[Graph, Placement]:
    """Quantisers only where integer layers read: what others read as well is read through an identity.

    So a residual connection carries the exact sum while the convolution beside it rounds its input.
    """
    layers = {
        n.name
        for n in graph.nodes
        if len(n.inputs) > 1 and n.inputs[1] in where.params and n.inputs[0] in where.tensors
    }
    read = dict.fromkeys(n.inputs[0] for n in graph.nodes if n.name in layers)
    shared = {
        t: f"{t}/read"
        for t in read
        if t in graph.outputs or any(n.name not in layers for n in graph.consumers[t])
    }
    copies = {t: Node("identity", name, (t,), (name,)) for t, name in shared.items()}
    nodes = [copies[t] for t in graph.inputs if t in copies]
    for n in graph.nodes:
        if n.name in layers and n.inputs[0] in shared:
            n = n.with_(inputs=(shared[n.inputs[0]], *n.inputs[1:]))
        nodes += [n, *(copies[t] for t in n.outputs if t in copies)]
    types = {name: graph.tensors[t] for t, name in shared.items()}
    tensors = {shared.get(t, t): where.tensors[t] for t in read}
    return graph.rebuilt(nodes, tensors=types), Placement(tensors, where.params)
