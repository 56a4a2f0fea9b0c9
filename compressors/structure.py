"""From a traced graph to a `Structure`: layers, channel groups, tensor groups and removable blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .channels import channel_groups
from .graph import (
    VIEW_OPS,
    WEIGHT_OPS,
    Block,
    Graph,
    Layer,
    Node,
    Structure,
    TensorGroup,
)
from .loose import loose_parameters, notes_of
from .resolve import fused_output
from .skeleton import unfoldable_norms

#: Operations whose tensors share one choice of bits: values pass through, or are added or joined.
_JOINING = frozenset({"add", "cat", "max_pool", "avg_pool", "upsample", "relu", "clip", "mean", *VIEW_OPS})


def structure_of(graph: Graph) -> Structure:
    """Everything the policy space needs to know of a traced network."""
    weights = _weight_nodes(graph)
    outputs_of = {
        name: (nodes[0].inputs[1], 1 if nodes[0].op == "conv_transpose" and _plain(graph, nodes[0]) else 0)
        for name, nodes in weights.items()
    }
    channels = channel_groups(graph, outputs_of)
    layers = []
    notes: list[tuple[str, str]] = []
    for name, nodes in weights.items():
        fixed = {}
        if name in channels.reasons:
            fixed["prune"] = channels.reasons[name]
        fixed.update(_fixed_knobs(graph, nodes[0]))
        layers.append(
            Layer(
                name,
                nodes[0].op,
                nodes[0].inputs[1],
                nodes[0].inputs[2],
                tuple(n.name for n in nodes),
                graph.params[nodes[0].inputs[1]].shape,
                int(nodes[0].attrs.get("groups", 1)),
                sum(macs_of(graph, n) for n in nodes),
                fixed,
            )
        )
        notes += [(name, f"{_VERBS[k]}: {why}") for k, why in fixed.items()]
    notes += [
        (n.name, f"operation {n.attrs['target']} is not known and stays as it is")
        for n in graph.nodes
        if n.op == "aten"
    ]
    loose = loose_parameters(graph, layers, unfoldable_norms(graph, channels.sizes), channels.sizes)
    notes += notes_of(graph, loose)
    of_node = {n: x for x in layers for n in x.nodes}
    return Structure(
        graph,
        tuple(layers),
        channels.groups,
        tensor_groups(graph, of_node),
        residual_blocks(graph, of_node),
        channels.sizes,
        channels.starts,
        tuple(notes),
        loose,
    )


_VERBS = {"prune": "not pruned", "rank": "not factorised", "bits": "not quantised"}


def _plain(graph: Graph, node: Node) -> bool:
    """A transposed convolution whose output channels stand in the weight's second dimension."""
    return not (node.attrs["groups"] > 1 and graph.params[node.inputs[1]].shape[1] == 1)


def _weight_nodes(graph: Graph) -> dict[str, list[Node]]:
    """Layer name to its calls, in execution order; a shared weight is one layer."""
    found: dict[str, list[Node]] = {}
    for n in graph.nodes:
        if n.op in WEIGHT_OPS:
            name = n.inputs[1].removesuffix("_weight" if n.inputs[1].endswith("proj_weight") else ".weight")
            found.setdefault(name, []).append(n)
    return found


def _fixed_knobs(graph: Graph, node: Node) -> dict[str, str]:
    shape = graph.params[node.inputs[1]].shape
    fixed = {}
    if node.attrs.get("groups", 1) > 1:
        fixed["rank"] = "grouped convolutions are already sparse in channels"
    elif min(shape[0], shape[1]) < 8:
        fixed["rank"] = f"{min(shape[:2])} channels are too few for a rank below"
    if len(node.attrs.get("stride", ())) > 2:
        fixed["rank"] = fixed["bits"] = "3-d convolutions are not supported"
    return fixed


def macs_of(graph: Graph, node: Node, batch: int = 1) -> int:
    """Multiply-accumulates of one weight-bearing node: output elements x cin/groups x kernel.

    For a transposed convolution: input elements x cout/groups x kernel.
    """
    shape = graph.params[node.inputs[1]].shape
    tensor = node.inputs[0] if node.op == "conv_transpose" else node.outputs[0]
    return graph.tensors[tensor].elements(batch) * math.prod(shape[1:])


# -- tensor groups


def tensor_groups(graph: Graph, layer_of_node: dict[str, Layer]) -> tuple[TensorGroup, ...]:
    """Activations that can be quantised, joined where they share one choice of bits.

    Quantise/dequantise stands behind the producer of each of these tensors: inputs of weight-bearing
    operations, outputs of convolutions (an integer convolution writes integers), and whatever lies
    between them through adds, concats, pooling and reshapes. Calls of one layer are read alike and written
    alike. Results that only attention, layer-norm or
    the network's caller read stay float.
    """
    written = {n.name: _written(graph, n) for n in graph.nodes}
    inside = _inside(graph)
    points = _points(graph, written, inside)
    parent = {t: t for t in points}

    def root(t: str) -> str:
        while parent[t] != t:
            t = parent[t]
        return t

    def join(tensors: Iterable[str]) -> None:
        ends = [t for t in tensors if t in points]
        for t in ends[1:]:
            a, b = root(ends[0]), root(t)
            if a != b:
                parent[b] = a

    for n in graph.nodes:
        if n.op in _JOINING and n.name not in inside:
            join((*graph.activations_of(n), *written[n.name]))
    for layer in {x.name: x for x in layer_of_node.values()}.values():
        calls = [graph.by_name[n] for n in layer.nodes]  # one weight is integer in all calls or in none
        join(n.inputs[0] for n in calls)
        join(written[n.name][0] for n in calls)
    members: dict[str, list[str]] = {}
    for t in [*graph.inputs, *(t for n in graph.nodes for t in n.outputs)]:
        if t in points:
            members.setdefault(root(t), []).append(t)
    made_by = {written[name][0]: layer.name for name, layer in layer_of_node.items()}
    groups: list[TensorGroup] = []
    for ts in members.values():
        name = next((made_by[t] for t in ts if t in made_by), ts[0])
        name = ts[0] if any(g.name == name for g in groups) else name
        groups.append(TensorGroup(name, tuple(ts)))
    return tuple(groups)


def _written(graph: Graph, n: Node) -> tuple[str, ...]:
    """What a node's fused kernel writes."""
    return (fused_output(graph, n),) if n.op in _FUSING else n.outputs


_FUSING = frozenset({"add", *WEIGHT_OPS})


def _inside(graph: Graph) -> set[str]:
    """Names of the nodes that run inside the kernel of the node before them."""
    found: set[str] = set()
    for n in graph.nodes:
        if n.op in _FUSING:
            tensor, last = n.outputs[0], fused_output(graph, n)
            while tensor != last:
                reader = graph.consumers[tensor][0]
                found.add(reader.name)
                tensor = reader.outputs[0]
    return found


def _points(graph: Graph, written: dict[str, tuple[str, ...]], inside: set[str]) -> set[str]:
    points: set[str] = set()
    for n in graph.nodes:
        if n.op in WEIGHT_OPS:
            points.add(n.inputs[0])
            if n.op != "linear":
                points.update(written[n.name])
    before = -1
    while len(points) > before:
        before = len(points)
        for n in graph.nodes:
            if n.op in _JOINING and n.name not in inside:
                _grow(graph, n, written[n.name], points)
    return {t for t in points if graph.tensors[t].dtype == "float32"}


def _grow(graph: Graph, n: Node, outs: tuple[str, ...], points: set[str]) -> None:
    """Carry quantisation through an operation that runs on integers when all its tensors are integer."""
    ins = list(graph.activations_of(n))
    if len(ins) < len([t for t in n.inputs if t]):
        return  # one operand is a constant
    read = any(t in graph.consumers for t in outs)
    if n.op in ("add", "cat"):
        if all(t in points for t in ins) and read:
            points.update(outs)
    elif any(t in points for t in outs) or (all(t in points for t in ins) and read):
        points.update(ins)
        points.update(outs)


# -- blocks


def residual_blocks(graph: Graph, layer_of_node: dict[str, Layer]) -> tuple[Block, ...]:
    """Residual branches that can be removed: ``add(x, f(x))`` where f(x) has the shape of x."""
    ancestors = _ancestors(graph)
    found: list[Block] = []
    for n in graph.nodes:
        if n.op != "add" or len(list(graph.activations_of(n))) != 2:
            continue
        for shortcut, branch in (n.inputs, n.inputs[::-1]):
            shape = graph.tensors[shortcut].shape
            if shortcut not in ancestors[branch] or shape != graph.tensors[n.outputs[0]].shape:
                continue
            if graph.tensors[branch].shape != shape:
                continue
            layers = _only_for(graph, n, shortcut, layer_of_node)
            if layers:
                found.append(Block(_block_name(n, layers, found), n.outputs[0], shortcut, layers))
            break
    return tuple(found)


def _ancestors(graph: Graph) -> dict[str, frozenset[str]]:
    known: dict[str, frozenset[str]] = {t: frozenset() for t in graph.inputs}
    for n in graph.nodes:
        ins = list(graph.activations_of(n))
        above = frozenset(ins).union(*(known[t] for t in ins))
        for t in n.outputs:
            known[t] = above
    return known


def _only_for(graph: Graph, add: Node, shortcut: str, layer_of_node: dict[str, Layer]) -> tuple[str, ...]:
    """Layers that die when the branch is cut, () when one of them is also used by what stays."""

    def through(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(shortcut if t == add.outputs[0] else t for t in names)

    nodes = [n.with_(inputs=through(n.inputs)) for n in graph.nodes if n is not add]
    alive = {n.name for n in graph.rebuilt(nodes, outputs=through(graph.outputs)).nodes}
    dead = [n.name for n in graph.nodes if n.name not in alive and n.name in layer_of_node]
    layers = {layer_of_node[n].name: layer_of_node[n] for n in dead}
    if any(node in alive for x in layers.values() for node in x.nodes):
        return ()
    return tuple(layers)


def _block_name(add: Node, layers: tuple[str, ...], taken: list[Block]) -> str:
    """The dotted prefix all layers of a block share, or the name of its addition."""
    parts = [x.split(".") for x in layers]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    name = ".".join(common) if common and len(layers) > 1 else add.name
    return add.name if any(b.name == name for b in taken) else name


__all__ = ["macs_of", "structure_of", "tensor_groups"]
