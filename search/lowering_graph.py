"""From an optimised ONNX graph to symbolic kernels: sizes as formulas, layers by name.

The optimised graph has concrete weights, renamed tensors and layouts of its own. Formulas are carried from
the network's inputs through every node: a weight-bearing node takes its channels from the layer it came
from, the rest follows from shape rules. What no rule covers is told by name, then by its concrete size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper

from compressors.graph import WEIGHT_OPS, DimSize, Graph, Node
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, KernelKind
from search.errors import TailorbirdError
from search.lowering_template import (
    ONE,
    Cell,
    Dim,
    SymbolicKernel,
    Template,
    Term,
    cell,
    count,
    dim_of,
    element_width,
)

Sizes = tuple[Dim, ...]
WEIGHTED = CONV_OPS | MATMUL_OPS


class TemplateError(TailorbirdError):
    """An optimised graph that cannot be read as kernels of the network."""


@dataclass
class Source:
    """The network an optimised graph came from: concrete graph and the formulas of its sizes."""

    graph: Graph
    sizes: Mapping[str, tuple[DimSize, ...]]
    layer_of: Mapping[str, str]
    batch: int
    block: int = 16

    def formula(self, tensor: str) -> Sizes:
        """Sizes of a tensor or parameter of the network."""
        if tensor in self.sizes:
            return tuple(dim_of(d, self.batch) for d in self.sizes[tensor])
        kind = self.graph.type_of(tensor)
        return tuple(Dim(float(d if d >= 0 else -d * self.batch)) for d in kind.shape)

    def known(self, name: str) -> Sizes | None:
        """Sizes of a tensor of the optimised graph, if its name is one that emission gave."""
        base = re.sub(r"_token_\d+$", "", name)
        for suffix in ("", *_SUFFIXES):
            if base.endswith(suffix) and (tensor := base.removesuffix(suffix)) in self.graph.tensors:
                return self.formula(tensor)
        return None


_SUFFIXES = ("/float", "/codes", "/codes1", "/clipped", "/clipped1", "/dequantised", "/back", "/normed")


@dataclass
class _Reading:
    """State while the nodes of one optimised graph are read in order."""

    source: Source
    constants: dict[str, list[int]]
    small: dict[str, onnx.TensorProto]
    sizes: dict[str, Sizes] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def integers(self, name: str) -> list[int]:
        """Values of a small constant."""
        return [int(v) for v in onnx.numpy_helper.to_array(self.small[name]).reshape(-1)]


def read_template(model: onnx.ModelProto, source: Source, origin: str) -> Template:
    """Kernels of an optimised model whose original `emit` made from ``source.graph``."""
    constants = {i.name: list(i.dims) for i in model.graph.initializer}
    small = {i.name: i for i in model.graph.initializer if len(i.dims) <= 1}
    r = _Reading(source, constants, small)
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


def _kernel(r: _Reading, node: onnx.NodeProto) -> SymbolicKernel:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    data = [t for t in node.input if t and t not in r.constants]
    weighted = node.op_type in WEIGHTED and any(len(r.constants.get(t, ())) >= 2 for t in node.input[1:])
    owner = _owner(r, node, attrs) if weighted else None
    outs = _outputs(r, node, attrs, owner)
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
        _label(r, node, owner),
        fused_of(node, attrs),
        weighted,
    )
    ins = [r.sizes[t] for t in data]
    cells = _cells(r, node, attrs, owner, ins, outs)
    return SymbolicKernel(kind, cells, tuple(data), tuple(t for t in node.output if t))


def fused_of(node: onnx.NodeProto, attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs inside the kernel besides its own operation: activation, residual add."""
    found = [attrs[a].decode().lower() for a in ("activation", "activation_func") if attrs.get(a)]
    if node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and node.input[3]:
        found.append("add")
    return tuple(found)


_INTEGER = ("QLinear", "QGemm", "DynamicQuantize", "MatMulInteger")


def _integer(r: _Reading, node: onnx.NodeProto) -> tuple[bool, int]:
    """(whether the kernel computes on integers, whether its result is integers)."""
    op = node.op_type
    if op == "QuantizeLinear":
        return True, 1
    if op == "DequantizeLinear":
        return True, 0
    if op.startswith(_INTEGER):
        return True, int(not op.endswith("ToFloat") and (op != "QGemm" or len(node.input) > 7))
    first = next((t for t in node.input if t and t not in r.constants), "")
    return bool(r.kinds.get(first, 0)), r.kinds.get(first, 0)


# -- which of our nodes a weight-bearing kernel is


def _owner(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any]) -> Node | None:
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
    found = _behind(r, node, attrs)
    if found is None and node.op_type in CONV_OPS:
        raise TemplateError(f"kernel {node.name!r} of the optimised graph belongs to no layer of the network")
    if found is not None:
        r.used.add(found.name)
    return found


def _behind(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any]) -> Node | None:
    """By name: a blocked convolution is called after the tensor that its original wrote."""
    graph = r.source.graph
    name = re.sub(r"_token_\d+$", "", node.name.removesuffix("_nchwc"))
    base = name.split("/")[0]
    start = graph.producer.get(base) or graph.by_name.get(base)
    seen, waiting = set(), [start] if start is not None else []
    while waiting:
        n = waiting.pop(0)
        if n.name in seen:
            continue
        seen.add(n.name)
        if n.op in WEIGHT_OPS:
            if n.name not in r.used and _fits(graph, n, attrs):
                return n
            continue
        waiting += [graph.producer[t] for t in n.inputs if t in graph.producer]
    return None


def _fits(graph: Graph, n: Node, attrs: Mapping[str, Any]) -> bool:
    kernel = attrs.get("kernel_shape")
    return kernel is None or tuple(kernel) == tuple(graph.params[n.inputs[1]].shape[2:])


def _label(r: _Reading, node: onnx.NodeProto, owner: Node | None) -> str:
    if owner is not None:
        return r.source.layer_of.get(owner.name, owner.name)
    for t in node.output:
        base = re.sub(r"_token_\d+$", "", t).split("/")[0]
        if base in r.source.graph.tensors:
            return base
    return ""


# -- shapes

_Rule = Callable[[_Reading, onnx.NodeProto, Mapping[str, Any], list[Sizes]], list[Sizes]]


def _outputs(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], owner: Node | None) -> list[Sizes]:
    ins = [r.sizes[t] for t in node.input if t and t in r.sizes]
    if not ins:  # computed from constants alone, in every run
        ins = [tuple(Dim(float(d)) for d in r.constants[node.input[0]])] if node.input else [()]
    if owner is not None:
        return [_weighted_output(r, node, attrs, owner, ins[0])]
    rule = RULES.get(node.op_type)
    if rule is not None:
        return rule(r, node, attrs, ins)
    found = []
    for t in node.output:
        sizes = r.source.known(t) if t else ()
        if sizes is None:
            raise TemplateError(f"operation {node.op_type} ({node.name!r}): the sizes of {t!r} are not known")
        found.append(sizes)
    return found


def _weighted_output(
    r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], owner: Node, x: Sizes
) -> Sizes:
    whole = r.source.formula(owner.outputs[0])
    if node.op_type not in CONV_OPS:
        return whole if len(whole) == len(x) else (*x[:-1], whole[-1])
    spatial = whole[2:]
    if attrs.get("channels_last"):
        return (x[0], *spatial, whole[1])
    channels = whole[1].rounded(r.source.block) if is_blocked(node) else whole[1]
    return (x[0], channels, *spatial)


def is_blocked(node: onnx.NodeProto) -> bool:
    """Whether a kernel works on channels in whole blocks (onnxruntime's NCHWc layout)."""
    return node.domain == "com.microsoft.nchwc"


def _reorder(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    step = r.source.block if node.op_type == "ReorderInput" else 0
    at = len(ins[0]) - 1 if attrs.get("channels_last") and step else 1
    found = [d for i, d in enumerate(ins[0]) if i != at]
    channels = ins[0][at].rounded(step) if step or ins[0][at].mult else Dim(float(attrs["channels"]))
    last = bool(attrs.get("channels_last")) and not step
    return [(*found, channels) if last else (found[0], channels, *found[1:])]


def _same(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    return [ins[0]] * len(node.output)


def _broadcast(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    shapes = list(ins)
    shapes += [tuple(Dim(float(d)) for d in r.constants[t]) for t in node.input if t in r.constants]
    rank = max(len(s) for s in shapes)
    wide = [(ONE,) * (rank - len(s)) + s for s in shapes]
    return [tuple(next((d for d in column if d != ONE), ONE) for column in zip(*wide, strict=True))]


def _transpose(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    perm = attrs.get("perm") or range(len(ins[0]) - 1, -1, -1)
    return [tuple(ins[0][i] for i in perm)]


def _spatial_at(attrs: Mapping[str, Any], rank: int) -> range:
    return range(1, rank - 1) if attrs.get("channels_last") else range(2, rank)


def _global(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    at = _spatial_at(attrs, len(ins[0]))
    return [tuple(ONE if i in at else d for i, d in enumerate(ins[0]))]


def _pool(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    x, kernel = list(ins[0]), attrs["kernel_shape"]
    n = len(kernel)
    pads = attrs.get("pads") or [0] * 2 * n
    strides, dilations = attrs.get("strides") or [1] * n, attrs.get("dilations") or [1] * n
    for j, i in enumerate(_spatial_at(attrs, len(x))):
        size = int(x[i].const)
        room = size + pads[j] + pads[j + n] - dilations[j] * (kernel[j] - 1) - 1
        up = strides[j] - 1 if attrs.get("ceil_mode") else 0
        out = (room + up) // strides[j] + 1
        if up and (out - 1) * strides[j] >= size + pads[j]:
            out -= 1  # the last window would start in the padding
        x[i] = Dim(float(out))
    return [tuple(x)]


def _concat(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    shapes = list(ins)
    if node.op_type == "Concat":
        shapes += [tuple(Dim(float(d)) for d in r.constants[t]) for t in node.input if t in r.constants]
    axis = attrs["axis"] % len(shapes[0])
    total = shapes[0][axis]
    for s in shapes[1:]:
        total = total.plus(s[axis])
    return [(*shapes[0][:axis], total, *shapes[0][axis + 1 :])]


def _flatten(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    axis = attrs.get("axis", 1)
    found = []
    for part in (ins[0][:axis], ins[0][axis:]):
        found.append(product(part))
    return [tuple(found)]


def product(dims: Sequence[Dim]) -> Dim:
    """Product of sizes of which at most one is not constant."""
    total = ONE
    for d in dims:
        if d.mult and total.mult:
            raise TemplateError("a reshape multiplies two sizes that both depend on the policy")
        total = d.times(total.const) if not total.mult else total.times(d.const)
    return total


def _reshape(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    known = r.source.known(node.output[0])
    if known is not None:  # a reshape's result has the layout it always had
        return [known]
    wanted = r.integers(node.input[1])
    found = [ins[0][i] if d == 0 else Dim(float(d)) for i, d in enumerate(wanted)]
    if -1 in wanted:
        rest = product([d for d, w in zip(found, wanted, strict=True) if w != -1])
        whole = product(ins[0])
        if rest.mult:
            if whole.times(1.0 / _ratio(whole, rest)) != rest:
                raise TemplateError(f"reshape {node.name!r} divides two sizes that depend on the policy")
            found[wanted.index(-1)] = Dim(_ratio(whole, rest))
        else:
            found[wanted.index(-1)] = whole.times(1.0 / rest.const)
    return [tuple(found)]


def _split(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    known = [r.source.known(t) for t in node.output]
    if all(k is not None for k in known):
        return [k for k in known if k is not None]
    x, axis = ins[0], attrs.get("axis", 0) % len(ins[0])
    many = len(node.output)
    parts = r.integers(node.input[1]) if len(node.input) > 1 else [1] * many
    shares = [x[axis].times(p / sum(parts)) for p in parts]
    return [(*x[:axis], share, *x[axis + 1 :]) for share in shares]


def _squeeze(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    x = list(ins[0])
    axes = r.integers(node.input[1]) if len(node.input) > 1 else list(attrs.get("axes", ()))
    if node.op_type == "Unsqueeze":
        for a in sorted(a % (len(x) + len(axes)) for a in axes):
            x.insert(a, ONE)
        return [tuple(x)]
    gone = {a % len(x) for a in axes} or {i for i, d in enumerate(x) if d == ONE}
    return [tuple(d for i, d in enumerate(x) if i not in gone)]


def _ratio(whole: Dim, rest: Dim) -> float:
    return whole.mult[0][1] / rest.mult[0][1] if whole.mult else whole.const / rest.const


def _matmul(r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    a = ins[0]
    b = ins[1] if len(ins) > 1 else None
    if b is None:
        constant = next(t for t in node.input if len(r.constants.get(t, ())) >= 2)
        b = tuple(Dim(float(d)) for d in r.constants[constant])
        if constant == node.input[0]:
            a, b = b, a
    rows = a[-1] if attrs.get("transA") else a[-2]
    columns = b[-2] if attrs.get("transB") else b[-1]
    longer = a if len(a) >= len(b) else b
    return [(*longer[:-2], rows, columns)]


_SAME_OPS = [
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Sqrt",
    "Neg",
    "Abs",
    "Erf",
    "Log",
    "Sin",
    "Cos",
    "Reciprocal",
    "Floor",
    "HardSwish",
    "HardSigmoid",
    "Mish",
    "Softplus",
    "Softmax",
    "LogSoftmax",
    "Elu",
    "Gelu",
    "FastGelu",
    "QuickGelu",
    "BiasGelu",
    "Identity",
    "Cast",
    "LayerNormalization",
    "InstanceNormalization",
    "BatchNormalization",
    "SkipLayerNormalization",
    "Silu",
    "Swish",
    "SimplifiedLayerNormalization",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearSoftmax",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "Round",
    "Sign",
    "Ceil",
    "Tan",
    "Not",
    "GroupNorm",
]
_BROADCAST_OPS = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Where",
    "Sum",
    "Mean",
    "And",
    "Or",
    "Equal",
    "Less",
    "Greater",
    "QLinearAdd",
    "QLinearMul",
]
RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_SAME_OPS, _same),
    **dict.fromkeys(_BROADCAST_OPS, _broadcast),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "QLinearGlobalAveragePool"), _global),
    **dict.fromkeys(("MaxPool", "AveragePool", "QLinearAveragePool", "NhwcMaxPool"), _pool),
    **dict.fromkeys(("Concat", "QLinearConcat"), _concat),
    **dict.fromkeys(("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulIntegerToFloat", "Gemm"), _matmul),
    **dict.fromkeys(("ReorderInput", "ReorderOutput"), _reorder),
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Split": _split,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
}


# -- columns, with the conventions of hw_profiles/onnx_kernels.py


def _cells(
    r: _Reading,
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


def _stored(r: _Reading, node: onnx.NodeProto, owner: Node, x: Sizes) -> Sizes:
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
    r: _Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], owner: Node | None, x: Sizes, y: Sizes
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
