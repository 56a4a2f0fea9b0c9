"""From an optimised ONNX graph to symbolic kernels: sizes as formulas, layers by name.

The optimised graph has concrete weights, renamed tensors and layouts of its own. Formulas are carried from
the network's inputs through every node: a weight-bearing node takes its channels from the layer it came
from, the rest follows from shape rules. What no rule covers is told by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

from compressors.graph import WEIGHT_OPS, Graph, Node
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, KernelKind
from search.lowering_shapes import Reading, Sizes, Source, UnreadableError, is_blocked, outputs_of
from search.lowering_template import (
    ONE,
    Cell,
    Dim,
    SymbolicKernel,
    Template,
    Term,
    cell,
    count,
    element_width,
)

WEIGHTED = CONV_OPS | MATMUL_OPS
#: How onnxruntime calls the convolution that it makes of a batch-norm between blocked ones.
_NORM = "_bn_nchwc"


def read_template(model: onnx.ModelProto, source: Source, origin: str) -> Template:
    """Kernels of an optimised model whose original `emit` made from ``source.graph``."""
    constants = {i.name: list(i.dims) for i in model.graph.initializer}
    small = {i.name: i for i in model.graph.initializer if len(i.dims) <= 1}
    r = Reading(source, constants, small)
    for t in source.graph.inputs:
        r.sizes[t] = source.formula(t)
    kernels = [_kernel(r, node) for node in model.graph.node]
    tensors = {t: count(s) for t, s in r.sizes.items()}
    widths = {t: element_width(k.kind) for k in kernels for t in k.writes}
    return Template(
        tuple(kernels),
        tensors,
        tuple(source.graph.inputs),
        tuple(o.name for o in model.graph.output),
        origin,
        widths={t: w for t, w in widths.items() if w != 4.0},
    )


def _kernel(r: Reading, node: onnx.NodeProto) -> SymbolicKernel:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type.startswith("Nhwc"):  # such operations need not say so once more
        attrs.setdefault("channels_last", 1)
    data = [t for t in node.input if t and t not in r.constants]
    weighted = node.op_type in WEIGHTED and any(len(r.constants.get(t, ())) >= 2 for t in node.input[1:])
    norm = _norm(r, node) if weighted else None
    owner = _owner(r, node, attrs) if weighted and norm is None else None
    outs = outputs_of(r, node, attrs, owner) if norm is None else [r.sizes[data[0]]]
    for t, s in zip(node.output, outs, strict=False):
        if t:
            r.sizes[t] = s
    bits = _integer(r, node)
    for t in node.output:
        r.kinds[t] = bits[1]
    kind = KernelKind(
        node.op_type,
        node.domain if node.domain != "ai.onnx" else "",
        "int8" if bits[0] else "fp32",
        _label(r, node, owner) if norm is None else norm.outputs[0],
        fused_of(node, attrs),
        weighted,
    )
    ins = [r.sizes[t] for t in data]
    cells = _cells(r, node, attrs, owner, ins, outs)
    if norm is not None:  # one weight a channel
        cells |= {"weight_elements": cell(ins[0][1]), "groups": cell(ins[0][1])}
    return SymbolicKernel(kind, cells, tuple(data), tuple(t for t in node.output if t))


def fused_of(node: onnx.NodeProto, attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs inside the kernel besides its own operation: activation, residual add."""
    found = [attrs[a].decode().lower() for a in ("activation", "activation_func") if attrs.get(a)]
    if node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and node.input[3]:
        found.append("add")
    return tuple(found)


_INTEGER = ("QLinear", "QGemm", "DynamicQuantize", "MatMulInteger")


def _integer(r: Reading, node: onnx.NodeProto) -> tuple[bool, int]:
    """(whether the kernel computes on integers, whether its result is integers)."""
    op = node.op_type
    if op == "QuantizeLinear":
        return True, 1
    if op == "DequantizeLinear":
        return True, 0
    if op.startswith(_INTEGER):
        return True, int(
            not op.endswith(("ToFloat", "QuantizeMatMul")) and (op != "QGemm" or len(node.input) > 7)
        )
    first = next((t for t in node.input if t and t not in r.constants), "")
    return bool(r.kinds.get(first, 0)), r.kinds.get(first, 0)


# -- which of our nodes a weight-bearing kernel is


def _owner(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any]) -> Node | None:
    """The node of the network a weight-bearing kernel executes; None where it has no counterpart."""
    graph = r.source.graph
    for t in node.input:
        base = t.split("/")[0]
        if t in r.constants and base in graph.params:
            callers = [n for n in graph.consumers.get(base, ()) if n.op in WEIGHT_OPS and n.inputs[1] == base]
            if callers:
                free = [n for n in callers if n.name not in r.used]
                r.used.add((free or callers)[0].name)
                return (free or callers)[0]
    found = behind(r, node.name, attrs.get("kernel_shape"))
    if found is None and node.op_type in CONV_OPS:
        raise UnreadableError(
            f"kernel {node.name!r} of the optimised graph belongs to no layer of the network"
        )
    if found is not None:
        r.used.add(found.name)
    return found


def _norm(r: Reading, node: onnx.NodeProto) -> Node | None:
    """The batch-norm that a blocked convolution of one weight a channel stands for; None for any other."""
    return norm_of(r, node.name) if is_blocked(node) else None


def norm_of(r: Reading, name: str) -> Node | None:
    """The batch-norm that a kernel of this name stands for; None for any other kernel."""
    own = re.sub(r"_token_\d+$", "", name)
    found = _named(r.source.graph, own.removesuffix(_NORM)) if own.endswith(_NORM) else None
    return found if found is not None and found.op == "batch_norm" else None


def _named(graph: Graph, name: str) -> Node | None:
    """The node that a name in the optimised graph goes back to."""
    base = name.split("/")[0]
    return graph.producer.get(base) or graph.by_name.get(base)


def behind(r: Reading, name: str, window: Sequence[int] | None = None) -> Node | None:
    """The layer's node a kernel executes, by the kernel's name: a blocked convolution is called after the
    tensor that its original wrote. Each node is found once; ``window``: the kernel's sizes, if it has some.
    """
    graph = r.source.graph
    start = _named(graph, re.sub(r"_token_\d+$", "", name.removesuffix("_nchwc")))
    seen, waiting = set(), [start] if start is not None else []
    while waiting:
        n = waiting.pop(0)
        if n.name in seen:
            continue
        seen.add(n.name)
        if n.op in WEIGHT_OPS:
            if n.name not in r.used and _fits(graph, n, window):
                return n
            continue
        waiting += [graph.producer[t] for t in n.inputs if t in graph.producer]
    return None


def _fits(graph: Graph, n: Node, window: Sequence[int] | None) -> bool:
    return window is None or tuple(window) == tuple(graph.params[n.inputs[1]].shape[2:])


def _label(r: Reading, node: onnx.NodeProto, owner: Node | None) -> str:
    if owner is not None:
        return r.source.layer_of.get(owner.name, owner.name)
    for t in node.output:
        base = re.sub(r"_token_\d+$", "", t).split("/")[0]
        if base in r.source.graph.tensors:
            return base
    return ""


# -- columns, with the conventions of hw_profiles/onnx_kernels.py


def _cells(
    r: Reading,
    node: onnx.NodeProto,
    attrs: Mapping[str, Any],
    owner: Node | None,
    ins: list[Sizes],
    outs: list[Sizes],
) -> dict[str, Cell]:
    x = ins[0] if ins else (ONE,)
    y = outs[0] if outs else x
    counted = [s for s in ins if len(s) > 1 or s == x] or [x]
    weights = count(_stored(r, node, owner, x)) if owner is not None else cell(0.0)
    bits = 8.0 if _integer(r, node)[0] else 32.0
    found: dict[str, Cell] = {
        "batch": cell(x[0] if x else ONE),
        "in_elements": tuple(term for s in counted for term in count(s)),
        "out_elements": count(y),
        "weight_elements": weights,
        "weight_bits": cell(bits),
        "act_bits": cell(bits),
    }
    if node.op_type in MATMUL_OPS:
        return found | _matmul_cells(attrs, owner, x, y)
    return found | _window_cells(r, node, attrs, owner, x, y)


def _stored(r: Reading, node: onnx.NodeProto, owner: Node, x: Sizes) -> Sizes:
    """Sizes of the weight as the kernel reads it: in whole blocks where the layout is blocked."""
    shape = r.source.formula(owner.inputs[1])
    if not is_blocked(node):
        return shape
    blocked_input = bool(x[1].step) or (not x[1].mult and x[1].const % r.source.block == 0)
    grouped = owner.attrs.get("groups", 1) > 1
    first = shape[0].rounded(r.source.block)
    second = shape[1].rounded(r.source.block) if blocked_input and not grouped else shape[1]
    return (first, second, *shape[2:])


def _planes(shape: Sizes, last: bool) -> tuple[Dim, Dim, Dim]:
    """(channels, height, width); missing spatial sizes are 1."""
    if last and len(shape) >= 3:
        spatial = (*shape[1:-1], ONE)
        return shape[-1], spatial[0], spatial[1]
    rest = (*shape[1:], ONE, ONE, ONE)
    return rest[0], rest[1], rest[2]


def _window_cells(
    r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], owner: Node | None, x: Sizes, y: Sizes
) -> dict[str, Cell]:
    last = bool(attrs.get("channels_last", 0))
    cin, in_h, in_w = _planes(x, last)
    cout, out_h, out_w = _planes(y, last)
    window = list(
        attrs.get("kernel_shape") or (r.source.graph.params[owner.inputs[1]].shape[2:] if owner else [1])
    )
    strides = list(attrs.get("strides") or [1, 1])
    groups: Dim | float = 1.0
    if node.op_type in CONV_OPS:
        groups = float(attrs.get("group", 1))
        if owner is not None and owner.attrs.get("groups", 1) > 1:
            per_group = r.source.formula(owner.inputs[1])[1 if owner.op == "conv" else 0]
            groups = cin if owner.op == "conv" and per_group == ONE else groups
    return {
        "cin": cell(cin), "cout": cell(cout), "groups": cell(groups),
        "kernel_h": cell([*window, 1][0]), "kernel_w": cell([*window, 1][1]),
        "stride_h": cell([*strides, 1][0]), "stride_w": cell([*strides, 1][1]),
        "in_h": cell(in_h), "in_w": cell(in_w), "out_h": cell(out_h), "out_w": cell(out_w),
    }  # fmt: skip


def _matmul_cells(attrs: Mapping[str, Any], owner: Node | None, x: Sizes, y: Sizes) -> dict[str, Cell]:
    contracted = x[-2] if attrs.get("transA") else x[-1]
    groups: Term = (ONE,)
    if owner is None:
        groups = tuple(y[1:-2]) or (ONE,)
    batched = len(y) > 1
    rows: Term = tuple(y[1:-1]) if owner is not None else tuple(y[-2:-1] if len(y) > 2 else ())
    rows = rows if batched else (ONE,)
    return {
        "batch": cell(y[0] if batched else ONE),
        "cin": cell(contracted), "cout": cell(y[-1]), "groups": (groups,),
        "in_h": (rows or (ONE,),), "out_h": (rows or (ONE,),),
    }  # fmt: skip
