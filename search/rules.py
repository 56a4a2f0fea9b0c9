"""Kernel templates by hand-written fusion rules, for runtimes that cannot be asked here. Labelled "rules".

What they hold (TensorRT developer guide, "Types of fusions"): a convolution or matrix product takes in its
bias, a residual addition whose other operand is ready, and the pointwise activation behind it; a runtime of
mixed precision converts where integer and float kernels meet. Everything else is a kernel of its own.
``scripts/score_rules.py`` says how far the same rules are from what onnxruntime does on x86.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from compressors.graph import WEIGHT_OPS, Graph, Node
from compressors.skeleton import Placement, Skeleton
from hw_profiles.kernel import KernelKind
from hw_profiles.target import Target
from search.lowering_template import ONE, Cell, Dim, SymbolicKernel, Template, cell, count, dim_of

Sizes = tuple[Dim, ...]

#: ONNX names under which cost models know our operations.
NAMES: Mapping[str, str] = {
    "conv": "Conv", "conv_transpose": "ConvTranspose", "linear": "Gemm", "matmul": "MatMul",
    "batch_norm": "BatchNormalization", "layer_norm": "LayerNormalization",
    "group_norm": "GroupNormalization",
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "cat": "Concat", "split": "Split", "slice": "Slice", "select": "Gather", "reshape": "Reshape",
    "permute": "Transpose", "expand": "Expand", "max_pool": "MaxPool", "avg_pool": "AveragePool",
    "mean": "ReduceMean", "pad": "Pad", "upsample": "Resize", "embedding": "Gather", "prelu": "PRelu",
    "softmax": "Softmax", "log_softmax": "LogSoftmax", "clip": "Clip",
    "leaky_relu": "LeakyRelu", "elu": "Elu",
    "gelu": "Gelu", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt",
    "rsqrt": "Sqrt", "neg": "Neg", "abs": "Abs", "erf": "Erf", "log": "Log", "sin": "Sin", "cos": "Cos",
    "reciprocal": "Reciprocal", "floor": "Floor", "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid",
    "silu": "Silu", "mish": "Mish", "softplus": "Softplus", "identity": "Identity",
}  # fmt: skip
_POINTWISE = frozenset(
    [
        "relu",
        "clip",
        "sigmoid",
        "tanh",
        "hardswish",
        "hardsigmoid",
        "silu",
        "mish",
        "softplus",
        "leaky_relu",
        "elu",
        "gelu",
        "prelu",
    ]
)
_FOR_ONNXRUNTIME = frozenset(["relu", "clip", "sigmoid", "tanh", "leaky_relu", "hardsigmoid"])


@dataclass
class _Rules:
    """State of one application of the rules."""

    graph: Graph
    skeleton: Skeleton
    where: Placement
    target: Target
    batch: int
    kernels: list[SymbolicKernel] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # nodes that run inside an earlier kernel
    ready: set[str] = field(default_factory=set)
    integer: set[str] = field(default_factory=set)  # tensors that exist as codes
    float_too: set[str] = field(default_factory=set)  # ... and as floats as well
    names: dict[str, str] = field(default_factory=dict)

    @property
    def converts(self) -> bool:
        """Whether integer and float kernels need conversions between them."""
        return self.target.base_precision in ("fp32", "fp16")

    def sizes(self, tensor: str) -> Sizes:
        if tensor in self.skeleton.sizes:
            return tuple(dim_of(d, self.batch) for d in self.skeleton.sizes[tensor])
        shape = self.graph.type_of(tensor).shape
        return tuple(Dim(float(d if d >= 0 else -d * self.batch)) for d in shape)

    def precision(self, weight_bits: int | None, act_bits: int | None) -> str:
        """Precision of a kernel; None is the target's base precision."""
        if weight_bits is None or act_bits is None:
            return self.target.base_precision
        return "int8" if self.converts else f"w{weight_bits}a{act_bits}"


def rules_template(
    graph: Graph, skeleton: Skeleton, where: Placement, target: Target, batch: int
) -> Template:
    """The template of a concrete graph on a target, by rule."""
    r = _Rules(graph, skeleton, where, target, batch)
    r.ready.update(graph.inputs)
    for t in graph.inputs:
        if t in where.tensors and r.converts:
            _convert(r, "QuantizeLinear", t)
    for n in graph.nodes:
        if n.name not in r.taken:
            _apply(r, n)
        r.ready.update(n.outputs)
    tensors = {t: count(r.sizes(t)) for t in graph.tensors}
    widths = {t: _width(r, t) for t in graph.tensors}
    return Template(
        tuple(r.kernels), tensors, tuple(graph.inputs), tuple(graph.outputs), "rules", widths=widths
    )


def _width(r: _Rules, tensor: str) -> float:
    bits = r.where.tensors.get(tensor)
    if bits is not None:
        return 1.0 if r.converts else bits / 8.0
    return {"fp32": 4.0, "fp16": 2.0}.get(r.target.base_precision, 1.0)


def _apply(r: _Rules, n: Node) -> None:
    if n.op == "sdpa":
        _attention(r, n)
        return
    weighted = n.op in WEIGHT_OPS
    fused: list[str] = []
    last, reads = n, [t for t in n.inputs if t in r.graph.tensors]
    if weighted:
        last = _fuse(r, n, fused, reads)
    elif n.op == "add":
        last = _activation(r, n, fused)
    bits = _bits(r, n, last, reads, weighted)
    if r.converts:
        _meet(r, reads, integer=bits is not None)
    outs = last.outputs
    op = NAMES.get(n.op, n.attrs.get("target", n.op))
    kind = KernelKind(
        op,
        "",
        r.precision(*bits) if bits is not None else r.target.base_precision,
        r.skeleton.layer_of.get(n.name, outs[0]),
        tuple(fused),
        weighted,
    )
    r.kernels.append(SymbolicKernel(kind, _cells(r, n, reads, outs, bits), tuple(reads), tuple(outs)))
    for t in outs:
        if bits is not None and t in r.where.tensors:
            r.integer.add(t)
        elif t in r.where.tensors and r.converts:
            _convert(r, "QuantizeLinear", t)


def _bits(r: _Rules, n: Node, last: Node, reads: list[str], weighted: bool) -> tuple[int, int] | None:
    """(weight bits, activation bits) of an integer kernel, None for the base precision."""
    acts = [r.where.tensors.get(t) for t in reads]
    known = [a for a in acts if a is not None]
    if weighted:
        weight = r.where.params.get(n.inputs[1])
        return (weight, known[0]) if weight is not None and acts and acts[0] is not None else None
    if not known or len(known) < len(acts) or n.op not in _ON_CODES:
        return None
    return (8, max(known)) if all(t in r.where.tensors for t in last.outputs) else None


#: Operations that run on codes when everything around them is quantised.
_ON_CODES = frozenset(
    [
        "add",
        "cat",
        "max_pool",
        "avg_pool",
        "mean",
        "upsample",
        "reshape",
        "permute",
        "slice",
        "select",
        "split",
        "pad",
        "expand",
        "identity",
        "relu",
        "clip",
    ]
)


def _fuse(r: _Rules, n: Node, fused: list[str], reads: list[str]) -> Node:
    """Follow what a weight-bearing kernel takes in; returns the last node inside it."""
    last = _activation(r, n, fused)
    if last is not n:
        return last
    reader = _only_reader(r, n)
    if reader is None or reader.op != "add" or n.outputs[0] in r.where.tensors:
        return n
    other = [t for t in reader.inputs if t != n.outputs[0]]
    if (
        len(other) != 1
        or other[0] not in r.ready
        or r.graph.type_of(other[0]).shape != r.graph.type_of(n.outputs[0]).shape
    ):
        return n
    fused.append("add")
    reads.append(other[0])
    r.taken.add(reader.name)
    return _activation(r, reader, fused)


def _activation(r: _Rules, n: Node, fused: list[str]) -> Node:
    allowed = _POINTWISE if r.target.runtime.name != "onnxruntime" else _FOR_ONNXRUNTIME
    reader = _only_reader(r, n)
    if reader is None or reader.op not in allowed or n.outputs[0] in r.where.tensors:
        return n
    fused.append(NAMES[reader.op].lower())
    r.taken.add(reader.name)
    return reader


def _only_reader(r: _Rules, n: Node) -> Node | None:
    readers = r.graph.consumers.get(n.outputs[0], ())
    return readers[0] if len(readers) == 1 and n.outputs[0] not in r.graph.outputs else None


def _meet(r: _Rules, reads: Iterable[str], integer: bool) -> None:
    """Conversions in front of a float kernel that reads codes."""
    if integer:
        return
    for t in dict.fromkeys(reads):
        if t in r.integer and t not in r.float_too:
            r.float_too.add(t)
            _convert(r, "DequantizeLinear", t)


def _convert(r: _Rules, op: str, tensor: str) -> None:
    size = count(r.sizes(tensor))
    cells = {"in_elements": size, "out_elements": size, "weight_elements": cell(0.0)}
    cells |= {"batch": cell(r.sizes(tensor)[0]), "weight_bits": cell(8.0), "act_bits": cell(8.0)}
    r.kernels.append(SymbolicKernel(KernelKind(op, "", "int8", tensor), cells, (tensor,), (tensor,)))
    if op == "QuantizeLinear":
        r.integer.add(tensor)


def _attention(r: _Rules, n: Node) -> None:
    q, k, v, _ = n.inputs
    if r.converts:
        _meet(r, (q, k, v), integer=False)
    a, b, out = r.sizes(q), r.sizes(k), r.sizes(n.outputs[0])
    scores = (*a[:-1], b[-2])
    for op, left, right, result in (
        ("MatMul", a, b, scores),
        ("Softmax", scores, (), scores),
        ("MatMul", scores, r.sizes(v), out),
    ):
        cells: dict[str, Cell] = {
            "batch": cell(result[0]),
            "in_elements": (*count(left), *(count(right) if right else ())),
            "out_elements": count(result),
            "weight_elements": cell(0.0),
            **_base_bits(r),
        }
        if op == "MatMul":
            cells |= {
                "cin": cell(left[-1]), "cout": cell(result[-1]), "groups": (tuple(result[1:-2]) or (ONE,),),
                "in_h": cell(result[-2]), "out_h": cell(result[-2]),
            }  # fmt: skip
        kind = KernelKind(op, "", r.target.base_precision, n.outputs[0])
        r.kernels.append(SymbolicKernel(kind, cells, (q, k, v), tuple(n.outputs)))


def _base_bits(r: _Rules) -> dict[str, Cell]:
    bits = {"fp32": 32.0, "fp16": 16.0}.get(r.target.base_precision, 8.0)
    return {"weight_bits": cell(bits), "act_bits": cell(bits)}


def _cells(
    r: _Rules, n: Node, reads: list[str], outs: tuple[str, ...], bits: tuple[int, int] | None
) -> dict[str, Cell]:
    x = r.sizes(reads[0]) if reads else (ONE,)
    y = r.sizes(outs[0])
    weighted = n.op in WEIGHT_OPS
    found: dict[str, Cell] = {
        "batch": cell(x[0]),
        "in_elements": tuple(term for t in reads for term in count(r.sizes(t))),
        "out_elements": tuple(term for t in outs for term in count(r.sizes(t))),
        "weight_elements": count(r.sizes(n.inputs[1])) if weighted else cell(0.0),
        **_base_bits(r),
    }
    if bits is not None:
        found |= {"weight_bits": cell(bits[0]), "act_bits": cell(bits[1])}
    if n.op == "linear":
        rows = tuple(y[1:-1]) or (ONE,)
        return found | {"cin": cell(x[-1]), "cout": cell(y[-1]), "in_h": (rows,), "out_h": (rows,)}
    if n.op == "matmul":
        rows = (y[-2],) if len(y) > 2 else (ONE,)
        groups = tuple(y[1:-2]) or (ONE,)
        return found | {
            "cin": cell(x[-1]), "cout": cell(y[-1]), "groups": (groups,), "in_h": (rows,), "out_h": (rows,)
        }  # fmt: skip
    return found | _window(r, n, x, y)


def _window(r: _Rules, n: Node, x: Sizes, y: Sizes) -> dict[str, Cell]:
    wide_x, wide_y = (*x[1:], ONE, ONE, ONE), (*y[1:], ONE, ONE, ONE)
    kernel: tuple[int, ...] = tuple(n.attrs.get("kernel", ()))
    groups = cell(1.0)
    if n.op in WEIGHT_OPS:
        kernel = tuple(r.graph.params[n.inputs[1]].shape[2:])
        groups = cell(float(n.attrs["groups"]))
        if n.op == "conv" and n.attrs["groups"] > 1 and r.sizes(n.inputs[1])[1] == ONE:
            groups = cell(wide_x[0])
    stride = (*n.attrs.get("stride", ()), 1, 1)
    window = (*kernel, 1, 1)
    return {
        "cin": cell(wide_x[0]), "cout": cell(wide_y[0]), "groups": groups,
        "kernel_h": cell(window[0]), "kernel_w": cell(window[1]),
        "stride_h": cell(stride[0]), "stride_w": cell(stride[1]),
        "in_h": cell(wide_x[1]), "in_w": cell(wide_x[2]), "out_h": cell(wide_y[1]), "out_w": cell(wide_y[2]),
    }  # fmt: skip
