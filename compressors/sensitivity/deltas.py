"""What a change does to the uncompressed network's weights and activations, in their own shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..execute import convolved
from ..graph import WEIGHT_OPS, Graph, Node
from ..quantize import code_of, fake_quantize
from ..rounding import Quantizing
from .changes import Change, Changes
from .suffix import surviving


@torch.no_grad()
def weight_changes(changes: Changes, change: Change) -> dict[str, Tensor]:
    """Changed weight minus folded uncompressed weight, by parameter of ``changes.graph``, in its shape.

    Channels that go are zeros; a factorised layer counts with the product of its factors; a block that goes
    with zeros for the last of its layers, which is all that its shortcut would notice.
    """
    if change.where.params:
        state = Quantizing(
            change.graph, dict(change.weights), change.where, change.policy, changes.space.abilities.numerics
        )
        state.weights_first()
        return {p: state.weights[p] - changes.weights[p] for p in change.where.params}
    structure = changes.network.structure
    cut = {structure.block[b].layers[-1] for b in change.policy.removed}
    found: dict[str, Tensor] = {}
    for node in changes.graph.nodes:
        name = node.inputs[1] if node.op in WEIGHT_OPS else ""
        if not name or name in found:
            continue
        before, layer = changes.weights[name], structure.layer_of_node[node.name].name
        after = change.weights.get(name)
        if layer in change.policy.factors:
            found[name] = _product(changes, change, layer) - before
        elif after is None:
            if layer in cut:
                found[name] = -before
        elif after is not before:
            found[name] = _in_place(changes, change, name, after) - before
    return found


@torch.no_grad()
def activation_changes(changes: Changes, change: Change, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounded minus uncompressed activation, by tensor of ``changes.graph``; ``values`` hold the latter."""
    numerics = changes.space.abilities.numerics
    found: dict[str, Tensor] = {}
    for tensor, bits in change.where.tensors.items():
        producer = change.graph.producer.get(tensor)
        name = tensor if tensor in values or producer is None else producer.inputs[0]  # a copy that is read
        code = code_of(values[name], bits, numerics, change.policy.ranges, change.graph, tensor)
        found[name] = fake_quantize(values[name], code) - values[name]
    return found


def _in_place(changes: Changes, change: Change, name: str, after: Tensor) -> Tensor:
    """A cut weight in the shape it was cut from."""
    full = torch.zeros_like(changes.weights[name])
    ends = []
    for dim, size in enumerate(full.shape[:2]):
        mask = surviving(changes.network.structure, change, name, dim, size)
        ends.append(torch.arange(size) if mask is None else mask.nonzero().squeeze(1))
    rows, columns = ends
    full[rows[:, None], columns[None]] = after
    return full


def _product(changes: Changes, change: Change, layer: str) -> Tensor:
    names = changes.network.skeletons.of(change.policy).factor_weights[layer]
    nodes = [next(n for n in change.graph.nodes if n.inputs[1:2] == (w,)) for w in names]
    return product(change.graph, nodes, [change.weights[w] for w in names])


def product(graph: Graph, nodes: Sequence[Node], weights: Sequence[Tensor]) -> Tensor:
    """The one weight that does what a chain of layers does: kernels of a chain are convolved."""
    turned = nodes[-1].op == "conv_transpose" or nodes[0].op == "conv_transpose"
    total = weights[0] if nodes[0].op == "conv_transpose" else weights[0].transpose(0, 1)  # (in, out, k...)
    for node, weight in zip(nodes[1:], weights[1:], strict=True):
        if node.op == "linear":
            total = total @ weight.T
            continue
        groups = int(node.attrs["groups"])
        if node.op == "conv_transpose" and groups == 1:
            weight = weight.transpose(0, 1)
        space = tuple(range(2, weight.dim()))
        ones, padding = (1,) * len(space), tuple(k - 1 for k in weight.shape[2:])
        attrs = {"stride": ones, "padding": padding, "dilation": ones, "groups": groups}
        total = convolved(total, weight.flip(space), None, attrs)
    return total if turned else total.transpose(0, 1)


__all__ = ["activation_changes", "product", "weight_changes"]
