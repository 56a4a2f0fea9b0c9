"""One small function per operation of ``compressors/trace.py``: our node to ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compressors.graph import Node
from search.emit.builder import Builder, UnsupportedOperationError, element_type
from search.emit.weighted import conv, conv_transpose, linear

Handler = Callable[[Builder, Node], None]


def _out(b: Builder, n: Node) -> list[str]:
    return [b.write(n.outputs[0])]


def _unary(op: str, **keys: str) -> Handler:
    def handle(b: Builder, n: Node) -> None:
        attrs = {theirs: n.attrs[ours] for theirs, ours in keys.items()}
        b.node(op, [b.read(n.inputs[0])], _out(b, n), n.name, **attrs)

    return handle


def _binary(op: str) -> Handler:
    def handle(b: Builder, n: Node) -> None:
        result = b.graph.type_of(n.outputs[0]).dtype
        operands = []
        for t in n.inputs:
            name = b.read(t)
            if b.graph.type_of(t).dtype != result:
                name = b.step(n, "Cast", [name], "cast", to=element_type(result))
            operands.append(name)
        b.node(op, operands, _out(b, n), n.name)

    return handle


def _batch_norm(b: Builder, n: Node) -> None:
    b.node("BatchNormalization", [b.read(t) for t in n.inputs], _out(b, n), n.name, epsilon=n.attrs["eps"])


def _layer_norm(b: Builder, n: Node) -> None:
    x, w, bias = n.inputs
    dims = n.attrs["dims"]
    scale = b.read(w) or b.constant(np.ones(b.shape(x)[-dims:], np.float32))
    names = [b.read(x), scale, *([b.read(bias)] if bias else [])]
    b.node("LayerNormalization", names, _out(b, n), n.name, axis=-dims, epsilon=n.attrs["eps"])


def _group_norm(b: Builder, n: Node) -> None:
    x, w, bias = n.inputs
    groups, shape = n.attrs["groups"], b.shape(n.inputs[0])
    flat = b.step(n, "Reshape", [b.read(x), b.integers([0, groups, -1])], "grouped")
    ones, zeros = (b.constant(np.full(groups, v, np.float32)) for v in (1.0, 0.0))
    normed = b.step(n, "InstanceNormalization", [flat, ones, zeros], "normed", epsilon=n.attrs["eps"])
    last = [b.write(n.outputs[0])]
    back = [normed, b.target_shape(x)]
    if not w and not bias:
        b.node("Reshape", back, last, n.name)
        return
    value = b.step(n, "Reshape", back, "back")
    wide = (-1, *(1 for _ in shape[2:]))
    if w:
        factor = b.initializer(f"{w}/wide", b.array(w).reshape(wide))
        into = last if not bias else [b.temporary(n.outputs[0], "scaled")]
        value = b.node("Mul", [value, factor], into)
    if bias:
        b.node("Add", [value, b.initializer(f"{bias}/wide", b.array(bias).reshape(wide))], last, n.name)


def _pool(op: str) -> Handler:
    def handle(b: Builder, n: Node) -> None:
        a = n.attrs
        if op == "MaxPool":
            extra: dict[str, Any] = {"dilations": a["dilation"] if max(a["dilation"]) > 1 else None}
        else:
            extra = {"count_include_pad": int(a["count_include_pad"])}
        b.node(
            op,
            [b.read(n.inputs[0])],
            _out(b, n),
            n.name,
            kernel_shape=a["kernel"],
            strides=a["stride"],
            pads=[*a["padding"], *a["padding"]],
            ceil_mode=int(a["ceil"]),
            **extra,
        )

    return handle


def _mean(b: Builder, n: Node) -> None:
    x = n.inputs[0]
    rank = len(b.shape(x))
    axes, keep = tuple(n.attrs["axes"]), n.attrs["keepdim"]
    if rank < 3 or axes != tuple(range(2, rank)):
        b.node("ReduceMean", [b.read(x), b.integers(axes)], _out(b, n), n.name, keepdims=int(keep))
    elif keep:
        b.node("GlobalAveragePool", [b.read(x)], _out(b, n), n.name)
    else:
        code = b.activations.get(n.outputs[0])
        pooled = b.step(n, "GlobalAveragePool", [b.read(x)], "pooled")
        if code is not None:  # integers through to the next layer, so that pooling runs on them as well
            pooled = b.quantise_between(pooled, b.temporary(n.outputs[0], "pooled_d"), n.outputs[0], code)
        b.node("Flatten", [pooled], _out(b, n), n.name, axis=1)


def _pad(b: Builder, n: Node) -> None:
    pads, rank = n.attrs["pads"], len(b.shape(n.inputs[0]))
    begin, end = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):
        begin[rank - 1 - i], end[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    names = [b.read(n.inputs[0]), b.integers(begin + end)]
    if n.attrs["mode"] == "constant":
        names.append(b.constant(n.attrs["value"]))
    b.node("Pad", names, _out(b, n), n.name, mode=modes[n.attrs["mode"]])


def _upsample(b: Builder, n: Node) -> None:
    scales = b.constant([1.0, 1.0, *(float(s) for s in n.attrs["scale"])])
    names = [b.read(n.inputs[0]), "", scales]
    if n.attrs["mode"] == "nearest":
        attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        where = "align_corners" if n.attrs["align_corners"] else "half_pixel"
        attrs = {"mode": "linear", "coordinate_transformation_mode": where}
    b.node("Resize", names, _out(b, n), n.name, **attrs)


def _split(b: Builder, n: Node) -> None:
    axis = n.attrs["axis"]
    sizes = b.integers([b.shape(t)[axis] for t in n.outputs])
    b.node("Split", [b.read(n.inputs[0]), sizes], [b.write(t) for t in n.outputs], n.name, axis=axis)


def _slice(b: Builder, n: Node) -> None:
    a = n.attrs
    limits = [b.integers([a[k]]) for k in ("start", "end", "axis", "step")]
    b.node("Slice", [b.read(n.inputs[0]), *limits], _out(b, n), n.name)


def _select(b: Builder, n: Node) -> None:
    index = b.constant(n.attrs["index"], np.int64)
    b.node("Gather", [b.read(n.inputs[0]), index], _out(b, n), n.name, axis=n.attrs["axis"])


def _reshape(b: Builder, n: Node) -> None:
    b.node("Reshape", [b.read(n.inputs[0]), b.target_shape(n.outputs[0])], _out(b, n), n.name)


def _expand(b: Builder, n: Node) -> None:
    before, after = b.shape(n.inputs[0]), b.shape(n.outputs[0])
    grown = [
        d
        for i, d in enumerate(after)
        if d < 0 and (before[i - len(after)] if len(after) - i <= len(before) else 1) != d
    ]
    if not grown:
        shape = b.integers([1 if d < 0 else d for d in after])
    else:
        batch = b.batch_size(n.outputs[0])
        parts = []
        for d in after:
            many = batch if d < -1 else ""
            if d < -1:
                many = b.step(n, "Mul", [batch, b.integers([-d])], "sizes")
            parts.append(b.integers([d]) if d >= 0 else many or batch)
        shape = b.step(n, "Concat", parts, "shape", axis=0)
    b.node("Expand", [b.read(n.inputs[0]), shape], _out(b, n), n.name)


def _cat(b: Builder, n: Node) -> None:
    b.node("Concat", [b.read(t) for t in n.inputs], _out(b, n), n.name, axis=n.attrs["axis"])


def _embedding(b: Builder, n: Node) -> None:
    b.node("Gather", [b.read(n.inputs[1]), b.read(n.inputs[0])], _out(b, n), n.name, axis=0)


def _prelu(b: Builder, n: Node) -> None:
    x, w = n.inputs
    wide = (-1, *(1 for _ in b.shape(x)[2:]))
    slope = b.initializer(f"{w}/wide", b.array(w).reshape(wide))
    b.node("PRelu", [b.read(x), slope], _out(b, n), n.name)


def _clip(b: Builder, n: Node) -> None:
    low, high = n.attrs["min"], n.attrs["max"]
    names = [b.read(n.inputs[0])]
    names.append("" if low == -math.inf else b.constant(low))
    if high != math.inf:
        names.append(b.constant(high))
    b.node("Clip", names, _out(b, n), n.name)


def _sdpa(b: Builder, n: Node) -> None:
    q, k, v, mask = n.inputs
    rank = len(b.shape(k))
    perm = [*range(rank - 2), rank - 1, rank - 2]
    turned = b.step(n, "Transpose", [b.read(k)], "k", perm=perm)
    scores = b.step(n, "MatMul", [b.read(q), turned], "scores")
    scores = b.step(n, "Mul", [scores, b.constant(n.attrs["scale"])], "scaled")
    if n.attrs["causal"]:
        rows, columns = b.shape(q)[-2], b.shape(k)[-2]
        if rows < 0 or columns < 0:
            raise UnsupportedOperationError(f"attention {n.name!r}: a causal mask needs fixed lengths")
        allowed = np.tril(np.ones((rows, columns), bool))
        scores = b.step(n, "Add", [scores, b.constant(np.where(allowed, 0.0, -np.inf))], "causal")
    if mask and b.graph.type_of(mask).dtype == "bool":
        zero, never = b.constant(0.0), b.constant(-np.inf)
        added = b.step(n, "Where", [b.read(mask), zero, never], "mask")
        scores = b.step(n, "Add", [scores, added], "masked")
    elif mask:
        scores = b.step(n, "Add", [scores, b.read(mask)], "masked")
    shares = b.step(n, "Softmax", [scores], "shares", axis=-1)
    b.node("MatMul", [shares, b.read(v)], _out(b, n), n.name)


def _silu(b: Builder, n: Node) -> None:
    x = b.read(n.inputs[0])
    b.node("Mul", [x, b.step(n, "Sigmoid", [x], "gate")], _out(b, n), n.name)


def _hardswish(b: Builder, n: Node) -> None:
    x = b.read(n.inputs[0])  # HardSwish itself is expanded to just this, into nodes without names
    gate = b.step(n, "HardSigmoid", [x], "gate", alpha=1 / 6, beta=0.5)
    b.node("Mul", [x, gate], _out(b, n), n.name)


def _mish(b: Builder, n: Node) -> None:
    x = b.read(n.inputs[0])
    gate = b.step(n, "Tanh", [b.step(n, "Softplus", [x], "softplus")], "gate")
    b.node("Mul", [x, gate], _out(b, n), n.name)


def _rsqrt(b: Builder, n: Node) -> None:
    root = b.step(n, "Sqrt", [b.read(n.inputs[0])], "root")
    b.node("Reciprocal", [root], _out(b, n), n.name)


def _hardsigmoid(b: Builder, n: Node) -> None:
    b.node("HardSigmoid", [b.read(n.inputs[0])], _out(b, n), n.name, alpha=1 / 6, beta=0.5)


def _aten(b: Builder, n: Node) -> None:
    from search.emit.aten import inline

    inline(b, n)


OPERATIONS: Mapping[str, Handler] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "linear": linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "max_pool": _pool("MaxPool"),
    "avg_pool": _pool("AveragePool"),
    "mean": _mean,
    "pad": _pad,
    "upsample": _upsample,
    "split": _split,
    "slice": _slice,
    "select": _select,
    "reshape": _reshape,
    "expand": _expand,
    "cat": _cat,
    "embedding": _embedding,
    "prelu": _prelu,
    "clip": _clip,
    "sdpa": _sdpa,
    "silu": _silu,
    "rsqrt": _rsqrt,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "mish": _mish,
    "aten": _aten,
    "permute": _unary("Transpose", perm="perm"),
    "leaky_relu": _unary("LeakyRelu", alpha="alpha"),
    "elu": _unary("Elu", alpha="alpha"),
    "gelu": _unary("Gelu", approximate="approximate"),
    "softmax": _unary("Softmax", axis="axis"),
    "log_softmax": _unary("LogSoftmax", axis="axis"),
    "identity": _unary("Identity"),
    **{
        ours: _unary(theirs)
        for ours, theirs in {
            "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt", "neg": "Neg",
            "abs": "Abs", "erf": "Erf", "log": "Log", "sin": "Sin", "cos": "Cos", "reciprocal": "Reciprocal",
            "floor": "Floor", "softplus": "Softplus",
        }.items()
    },
    **{
        ours: _binary(theirs)
        for ours, theirs in {
            "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow",
            "maximum": "Max", "minimum": "Min", "matmul": "MatMul",
        }.items()
    },
}  # fmt: skip
