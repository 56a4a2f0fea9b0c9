"""Sizes of the tensors of an optimised graph, as formulas: one small rule per ONNX operation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from compressors.graph import DimSize, Graph, Node
from hw_profiles.kernel import CONV_OPS
from search.errors import TailorbirdError
from search.lowering_template import ONE, Dim, dim_of

Sizes = tuple[Dim, ...]


class TemplateError(TailorbirdError):
    """A network that the runtime does not turn into kernels."""


class UnreadableError(TemplateError):
    """An optimised graph whose sizes cannot be followed as formulas; its sizes in a run can be read."""


@dataclass
class Source:
    """The network an optimised graph came from: concrete graph and the formulas of its sizes."""

    graph: Graph
    sizes: Mapping[str, tuple[DimSize, ...]]
    layer_of: Mapping[str, str]
    batch: int
    block: int = 16
    _formulas: dict[str, Sizes] = field(default_factory=dict)

    def formula(self, tensor: str) -> Sizes:
        """Sizes of a tensor or parameter of the network."""
        found = self._formulas.get(tensor)
        if found is None:
            found = self._formulas[tensor] = self._formula(tensor)
        return found

    def _formula(self, tensor: str) -> Sizes:
        if tensor in self.sizes:
            return tuple(dim_of(d, self.batch) for d in self.sizes[tensor])
        maker = self.graph.producer.get(tensor)
        if maker is not None and maker.op == "identity":  # a copy that integer layers read
            return self.formula(maker.inputs[0])
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
class Reading:
    """State while the nodes of one optimised graph are read in order."""

    source: Source
    constants: dict[str, list[int]]
    small: dict[str, onnx.TensorProto]
    sizes: dict[str, Sizes] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def constant(self, name: str) -> Sizes:
        """Sizes of a constant: formulas where it is a parameter of the network, as it is or turned round."""
        sizes, base = tuple(self.constants[name]), name.split("/")[0]
        kind = self.source.graph.params.get(base)
        if kind is not None and sizes == kind.shape:
            return self.source.formula(base)
        if kind is not None and sizes == kind.shape[::-1]:
            return self.source.formula(base)[::-1]
        return tuple(Dim(float(d)) for d in sizes)

    def integers(self, name: str) -> list[int]:
        """Values of a small constant."""
        return [int(v) for v in onnx.numpy_helper.to_array(self.small[name]).reshape(-1)]


# -- shapes

_Rule = Callable[[Reading, onnx.NodeProto, Mapping[str, Any], list[Sizes]], list[Sizes]]


def outputs_of(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], owner: Node | None) -> list[Sizes]:
    """Sizes of what a node writes; ``owner`` is the node of the network it executes, if it bears weights."""
    ins = [r.sizes[t] for t in node.input if t and t in r.sizes]
    if not ins:  # computed from constants alone, in every run
        ins = [r.constant(node.input[0])] if node.input else [()]
    if owner is not None:
        return [_weighted_output(r, node, attrs, owner, ins[0])]
    rule = RULES.get(node.op_type)
    if rule is not None:
        return rule(r, node, attrs, ins)
    found = []
    for t in node.output:
        sizes = r.source.known(t) if t else ()
        if sizes is None:
            raise UnreadableError(
                f"operation {node.op_type} ({node.name!r}): the sizes of {t!r} are not known"
            )
        found.append(sizes)
    return found


def _weighted_output(
    r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], owner: Node, x: Sizes
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


def _reorder(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    step = r.source.block if node.op_type == "ReorderInput" else 0
    at = len(ins[0]) - 1 if attrs.get("channels_last") and step else 1
    found = [d for i, d in enumerate(ins[0]) if i != at]
    channels = ins[0][at].rounded(step) if step or ins[0][at].mult else Dim(float(attrs["channels"]))
    last = bool(attrs.get("channels_last")) and not step
    return [(*found, channels) if last else (found[0], channels, *found[1:])]


def _same(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    return [ins[0]] * len(node.output)


def _broadcast(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    shapes = list(ins)
    shapes += [tuple(Dim(float(d)) for d in r.constants[t]) for t in node.input if t in r.constants]
    rank = max(len(s) for s in shapes)
    wide = [(ONE,) * (rank - len(s)) + s for s in shapes]
    return [tuple(next((d for d in column if d != ONE), ONE) for column in zip(*wide, strict=True))]


def _dynamic(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    return [ins[0], (), ()]  # codes, scale, zero point


def _transpose(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    perm = attrs.get("perm") or range(len(ins[0]) - 1, -1, -1)
    return [tuple(ins[0][i] for i in perm)]


def _spatial_at(attrs: Mapping[str, Any], rank: int) -> range:
    return range(1, rank - 1) if attrs.get("channels_last") else range(2, rank)


def _global(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    at = _spatial_at(attrs, len(ins[0]))
    return [tuple(ONE if i in at else d for i, d in enumerate(ins[0]))]


def _pool(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
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


def _pad(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    if not all(t in r.small for t in (*node.input[1:2], *node.input[3:4]) if t):
        raise UnreadableError(f"pad {node.name!r} takes amounts that are computed")
    x, pads = list(ins[0]), r.integers(node.input[1])
    axes = r.integers(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(len(x)))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if before or after:
            x[axis] = x[axis].plus(Dim(float(before + after)))
    return [tuple(x)]


def _concat(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    shapes = list(ins)
    if node.op_type == "Concat":
        shapes += [r.constant(t) for t in node.input if t in r.constants]
    axis = attrs["axis"] % len(shapes[0])
    total = shapes[0][axis]
    for s in shapes[1:]:
        total = total.plus(s[axis])
    return [(*shapes[0][:axis], total, *shapes[0][axis + 1 :])]


def _flatten(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
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
            raise UnreadableError("a reshape multiplies two sizes that both depend on the policy")
        total = d.times(total.const) if not total.mult else total.times(d.const)
    return total


def _reshape(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
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
                raise UnreadableError(f"reshape {node.name!r} divides two sizes that depend on the policy")
            found[wanted.index(-1)] = Dim(_ratio(whole, rest))
        else:
            found[wanted.index(-1)] = whole.times(1.0 / rest.const)
    return [tuple(found)]


def _split(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    known = [r.source.known(t) for t in node.output]
    if all(k is not None for k in known):
        return [k for k in known if k is not None]
    x, axis = ins[0], attrs.get("axis", 0) % len(ins[0])
    many = len(node.output)
    parts = r.integers(node.input[1]) if len(node.input) > 1 else [1] * many
    shares = [x[axis].times(p / sum(parts)) for p in parts]
    return [(*x[:axis], share, *x[axis + 1 :]) for share in shares]


def _squeeze(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
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


def _matmul(r: Reading, node: onnx.NodeProto, attrs: Mapping[str, Any], ins: list[Sizes]) -> list[Sizes]:
    a = ins[0]
    b = ins[1] if len(ins) > 1 else None
    if b is None:
        constant = next(t for t in node.input if len(r.constants.get(t, ())) >= 2)
        b = r.constant(constant)
        if constant == node.input[0]:
            a, b = b, a
    rows = a[-1] if attrs.get("transA") else a[-2]
    columns = b[-2] if attrs.get("transB") else b[-1]
    longer = a if len(a) >= len(b) else b
    return [(*longer[:-2], rows, columns)]


# fmt: off
_SAME_OPS = (
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Exp", "Sqrt", "Neg", "Abs", "Erf", "Log", "Sin",
    "Cos", "Reciprocal", "Floor", "HardSwish", "HardSigmoid", "Mish", "Softplus", "Softmax", "LogSoftmax",
    "Elu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Identity", "Cast", "LayerNormalization",
    "InstanceNormalization", "BatchNormalization", "SkipLayerNormalization", "Silu", "Swish", "Selu", "Celu",
    "SimplifiedLayerNormalization", "QuantizeLinear", "DequantizeLinear", "QLinearSigmoid", "Round", "Sign",
    "QLinearLeakyRelu", "QLinearSoftmax", "ThresholdedRelu", "Ceil", "Tan", "Not", "GroupNorm",
)
_BROADCAST_OPS = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Sum", "Mean", "And", "Or", "Equal", "Less",
    "Greater", "QLinearAdd", "QLinearMul",
)
# fmt: on
RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_SAME_OPS, _same),
    **dict.fromkeys(_BROADCAST_OPS, _broadcast),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "QLinearGlobalAveragePool"), _global),
    **dict.fromkeys(("MaxPool", "AveragePool", "QLinearAveragePool", "NhwcMaxPool"), _pool),
    **dict.fromkeys(("Concat", "QLinearConcat"), _concat),
    **dict.fromkeys(("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulIntegerToFloat", "Gemm"), _matmul),
    **dict.fromkeys(("ReorderInput", "ReorderOutput"), _reorder),
    "DynamicQuantizeLinear": _dynamic,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Split": _split,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
}
