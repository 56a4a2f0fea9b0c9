"""How each operation of the graph becomes ncnn layers. Parameter ids are those of ncnn's wiki,
"operation-param-weight-table"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compressors.graph import Node
from search.emit.builder import UnsupportedOperationError
from search.emit_ncnn.builder import Builder, Size, Value, shape_params
from search.emit_ncnn.weighted import conv, conv_transpose, linear

Handler = Callable[[Builder, Node], None]


def refuse(n: Node, why: str) -> UnsupportedOperationError:
    """What is raised for an operation that ncnn has, but not like this."""
    return UnsupportedOperationError(f"operation {n.op!r} (node {n.name!r}) has no ncnn form: {why}")


def _out(b: Builder, n: Node) -> list[str]:
    return [b.blob(t) for t in n.outputs]


def _axis(b: Builder, n: Node, axis: int, tensor: str = "") -> int:
    """An axis of the graph's tensor as ncnn counts it, without the batch."""
    tensor = tensor or n.inputs[0]
    kept = b.axes(tensor)
    axis %= len(b.graph.type_of(tensor).shape)
    if axis not in kept:
        raise refuse(n, "it works along the batch")
    return kept.index(axis)


def _unary(kind: str, ids: Mapping[int, str | float] | None = None) -> Handler:
    """An operation that is one layer; ``ids`` by parameter: the attribute's name, or the value."""

    def handle(b: Builder, n: Node) -> None:
        params = {i: float(n.attrs[v]) if isinstance(v, str) else v for i, v in (ids or {}).items()}
        b.layer(kind, n, [n.inputs[0]], _out(b, n), params)

    return handle


def _pointwise(code: int) -> Handler:
    def handle(b: Builder, n: Node) -> None:
        b.layer("UnaryOp", n, [n.inputs[0]], _out(b, n), {0: code})

    return handle


#: BinaryOp's code of each operation, and of the same with its operands exchanged.
_BINARY = {
    "add": (0, 0), "sub": (1, 7), "mul": (2, 2), "div": (3, 8), "maximum": (4, 4), "minimum": (5, 5),
    "pow": (6, 9),
}  # fmt: skip


def _binary(b: Builder, n: Node) -> None:
    first, second = n.inputs
    code, exchanged = _BINARY[n.op]
    if first in b.graph.params:
        first, second, code = second, first, exchanged
    if second in b.graph.params and math.prod(b.graph.params[second].shape) == 1:
        b.layer("BinaryOp", n, [first], _out(b, n), {0: code, 1: 1, 2: b.scalar(second)})
        return
    rank = len(b.sample(n.outputs[0])[0])
    b.layer("BinaryOp", n, [_operand(b, n, t, rank) for t in (first, second)], _out(b, n), {0: code})


def _operand(b: Builder, n: Node, tensor: str, rank: int) -> str:
    """An operand of the given rank: where ranks differ, ncnn aligns sizes from the front, not the back."""
    if tensor in b.graph.params:
        return b.memory(tensor, rank)
    shape = b.shape(tensor)
    if len(shape) == rank:
        return tensor
    wide = (*(1 for _ in range(rank - len(shape))), *shape)
    sizes = (*(1 for _ in range(rank - len(shape))), *b.blobs[b.read(tensor)].sizes)
    made = b.inner(n, "wide", wide, sizes)
    b.layer("Reshape", n, [tensor], [made], shape_params(wide, 0, 1, 11, 2))
    return made


def _matmul(b: Builder, n: Node) -> None:
    rank = max(len(b.sample(n.outputs[0])[0]), 2)
    b.layer("MatMul", n, [_operand(b, n, t, rank) for t in n.inputs], _out(b, n))


def _batch_norm(b: Builder, n: Node) -> None:
    x, w, bias, mean, var = n.inputs
    channels = b.shape(x)[0]
    data = b.raw(w, 1.0, channels) + b.raw(mean) + b.raw(var) + b.raw(bias, 0.0, channels)
    b.layer("BatchNorm", n, [x], _out(b, n), {0: channels, 1: float(n.attrs["eps"])}, data)


def _layer_norm(b: Builder, n: Node) -> None:
    x, w, bias = n.inputs
    shape = b.shape(x)
    if n.attrs["dims"] > 2 or (n.attrs["dims"] == 2 and len(shape) != 3):
        raise refuse(n, "it normalises over more than a row or a map")
    size = math.prod(shape[len(shape) - n.attrs["dims"] :])
    affine = bool(w or bias)
    data = b.raw(w, 1.0, size) + b.raw(bias, 0.0, size) if affine else b""
    params = {0: size, 1: float(n.attrs["eps"]), 2: int(affine)}
    b.layer("LayerNorm", n, [x], _out(b, n), params, data)


def _group_norm(b: Builder, n: Node) -> None:
    x, w, bias = n.inputs
    channels = b.shape(x)[0]
    affine = bool(w or bias)
    data = b.raw(w, 1.0, channels) + b.raw(bias, 0.0, channels) if affine else b""
    params = {0: int(n.attrs["groups"]), 1: channels, 2: float(n.attrs["eps"]), 3: int(affine)}
    b.layer("GroupNorm", n, [x], _out(b, n), params, data)


def _pool(average: int) -> Handler:
    def handle(b: Builder, n: Node) -> None:
        a = n.attrs
        if max(a.get("dilation", (1,))) > 1 or len(a["kernel"]) > 2:
            raise refuse(n, "dilated or three-dimensional")
        params: dict[int, int] = {0: average, 1: a["kernel"][-1], 2: a["stride"][-1], 3: a["padding"][-1]}
        params |= {14: a["padding"][-1], 5: 0 if a["ceil"] else 1}
        if len(a["kernel"]) == 2:
            params |= {11: a["kernel"][0], 12: a["stride"][0], 13: a["padding"][0], 15: a["padding"][0]}
        if average:
            params[6] = int(a["count_include_pad"] and not a["ceil"])  # what hangs over is never counted
            if a["ceil"] and a["count_include_pad"] and max(a["padding"]) > 0:
                raise refuse(n, "padding counts in the mean, and the last window hangs over")
        kind = "Pooling" if len(a["kernel"]) == 2 else "Pooling1D"
        b.layer(kind, n, [n.inputs[0]], _out(b, n), dict(sorted(params.items())))

    return handle


def _mean(b: Builder, n: Node) -> None:
    x = n.inputs[0]
    shape = b.shape(x)
    axes = [_axis(b, n, a) for a in n.attrs["axes"]]
    if len(shape) != 3 or sorted(axes) != [1, 2]:
        params: dict[int, Value] = {0: 3, 1: 0, 3: axes, 4: int(n.attrs["keepdim"]), 5: 1}
        b.layer("Reduction", n, [x], _out(b, n), params)
        return
    pooled = {0: 1, 4: 1}
    if not n.attrs["keepdim"]:
        b.layer("Pooling", n, [x], _out(b, n), pooled)
        return
    inner = b.inner(n, "pooled", shape[:1], b.blobs[b.read(x)].sizes[:1])
    b.layer("Pooling", n, [x], [inner], pooled)
    b.layer("Reshape", n, [inner], _out(b, n), shape_params(b.sample(n.outputs[0])[0], 0, 1, 11, 2))


def _pad(b: Builder, n: Node) -> None:
    kinds = {"constant": 0, "replicate": 1, "reflect": 2}
    if n.attrs["mode"] not in kinds:
        raise refuse(n, f"mode {n.attrs['mode']!r}")
    pads = (*n.attrs["pads"], 0, 0, 0, 0, 0, 0)
    if any(pads[6:]) or any(p < 0 for p in pads) or any(pads[2 * len(b.shape(n.inputs[0])) :]):
        raise refuse(n, "negative, or along the batch")
    ids = {2: pads[0], 3: pads[1], 0: pads[2], 1: pads[3], 7: pads[4], 8: pads[5]}
    params = {**ids, 4: kinds[n.attrs["mode"]], 5: float(n.attrs["value"] or 0.0)}
    b.layer("Padding", n, [n.inputs[0]], _out(b, n), dict(sorted(params.items())))


def _upsample(b: Builder, n: Node) -> None:
    a = n.attrs
    scale = [float(s) for s in a["scale"]]
    if len(scale) > 2 or a["mode"] not in ("nearest", "bilinear", "linear"):
        raise refuse(n, f"mode {a['mode']!r} over {len(scale)} dimensions")
    params: dict[int, int | float] = {0: 1 if a["mode"] == "nearest" else 2, 2: scale[-1]}
    params |= {1: scale[0] if len(scale) == 2 else 1.0, 6: int(bool(a["align_corners"]))}
    b.layer("Interp", n, [n.inputs[0]], _out(b, n), dict(sorted(params.items())))


def _split(b: Builder, n: Node) -> None:
    axis = _axis(b, n, n.attrs["axis"])
    outs = _out(b, n)
    b.layer("Slice", n, [n.inputs[0]], outs, {0: [b.shape(t)[axis] for t in outs], 1: axis})


def _slice(b: Builder, n: Node) -> None:
    a = n.attrs
    if a["step"] != 1:
        raise refuse(n, f"step {a['step']}")
    _crop(b, n, _axis(b, n, a["axis"]), a["start"], a["end"], _out(b, n)[0])


def _crop(b: Builder, n: Node, axis: int, start: int, end: int, out: str) -> None:
    size = b.shape(n.inputs[0])[axis]
    low, high = (min(max(i + size if i < 0 else i, 0), size) for i in (start, end))
    b.layer("Crop", n, [n.inputs[0]], [out], {9: [low], 10: [high], 11: [axis]})


def _select(b: Builder, n: Node) -> None:
    axis = _axis(b, n, n.attrs["axis"])
    index = n.attrs["index"] % b.shape(n.inputs[0])[axis]
    source = b.blobs[b.read(n.inputs[0])]
    shape = tuple(1 if i == axis else s for i, s in enumerate(source.shape))
    sizes: list[Size] = [1 if i == axis else s for i, s in enumerate(source.sizes)]
    inner = b.inner(n, "row", shape, sizes)
    _crop(b, n, axis, index, index + 1, inner)
    b.layer("Reshape", n, [inner], _out(b, n), shape_params(b.sample(n.outputs[0])[0], 0, 1, 11, 2))


def _reshape(b: Builder, n: Node) -> None:
    shape = b.sample(n.outputs[0])[0]
    if shape == b.shape(n.inputs[0]):
        b.alias(n.outputs[0], n.inputs[0])
        return
    b.layer("Reshape", n, [n.inputs[0]], _out(b, n), shape_params(shape, 0, 1, 11, 2))


def _identity(b: Builder, n: Node) -> None:
    b.alias(n.outputs[0], n.inputs[0])


def _expand(b: Builder, n: Node) -> None:
    before, after = b.shape(n.inputs[0]), b.sample(n.outputs[0])[0]
    if before == after:
        b.alias(n.outputs[0], n.inputs[0])
        return
    wide = b.read(_operand(b, n, n.inputs[0], len(after)))
    repeats = [w // s for s, w in zip(b.shape(wide), after, strict=True)]
    b.layer("Tile", n, [wide], _out(b, n), {2: repeats})


_ORDERS = {
    2: ["wh", "hw"],
    3: ["whc", "hwc", "wch", "cwh", "hcw", "chw"],
    4: [
        "whdc", "hwdc", "wdhc", "dwhc", "hdwc", "dhwc", "whcd", "hwcd", "wchd", "cwhd", "hcwd", "chwd",
        "wdch", "dwch", "wcdh", "cwdh", "dcwh", "cdwh", "hdcw", "dhcw", "hcdw", "chdw", "dchw", "cdhw",
    ],
}  # fmt: skip


def _permute(b: Builder, n: Node) -> None:
    kept = b.axes(n.inputs[0])
    order = [kept.index(p) for p in n.attrs["perm"] if p in kept]
    rank = len(order)
    if rank != len(b.axes(n.outputs[0])):
        raise refuse(n, "it moves the batch")
    if order == list(range(rank)):
        b.alias(n.outputs[0], n.inputs[0])
        return
    letters = {2: "hw", 3: "chw", 4: "cdhw"}[rank]
    code = _ORDERS[rank].index("".join(letters[p] for p in reversed(order)))
    b.layer("Permute", n, [n.inputs[0]], _out(b, n), {0: code})


def _cat(b: Builder, n: Node) -> None:
    names = [t for t in n.inputs if t]
    rank = len(b.sample(n.outputs[0])[0])
    reads = [b.memory(t, rank) if t in b.graph.params else t for t in names]
    b.layer("Concat", n, reads, _out(b, n), {0: _axis(b, n, n.attrs["axis"], n.outputs[0])})


def _embedding(b: Builder, n: Node) -> None:
    ids, w = n.inputs
    rows, columns = b.graph.params[w].shape
    if len(b.shape(ids)) != 1:
        raise refuse(n, "more than one row of indices")
    params = {0: columns, 1: rows, 2: 0, 3: rows * columns}
    b.layer("Embed", n, [ids], _out(b, n), params, b.tagged(b.array(w)), weight=w)


def _prelu(b: Builder, n: Node) -> None:
    x, w = n.inputs
    b.layer("PReLU", n, [x], _out(b, n), {0: math.prod(b.graph.params[w].shape)}, b.raw(w))


def _clip(b: Builder, n: Node) -> None:
    limit = float(np.finfo(np.float32).max)
    low, high = (min(max(float(n.attrs[k]), -limit), limit) for k in ("min", "max"))
    b.layer("Clip", n, [n.inputs[0]], _out(b, n), {0: low, 1: high})


def _softmax(b: Builder, n: Node) -> None:
    params = {0: _axis(b, n, n.attrs["axis"]), 1: 1}
    if n.op == "softmax":
        b.layer("Softmax", n, [n.inputs[0]], _out(b, n), params)
        return
    source = b.blobs[b.read(n.inputs[0])]
    inner = b.inner(n, "shares", source.shape, source.sizes)
    b.layer("Softmax", n, [n.inputs[0]], [inner], params)
    b.layer("UnaryOp", n, [inner], _out(b, n), {0: 8})


def _sdpa(b: Builder, n: Node) -> None:
    q, k, v, mask = n.inputs
    a, c = b.blobs[b.read(q)], b.blobs[b.read(k)]
    if n.attrs["causal"] or (mask and b.graph.type_of(mask).dtype == "bool"):
        raise refuse(n, "a causal or boolean mask")
    shape, sizes = (*a.shape[:-1], c.shape[-2]), (*a.sizes[:-1], c.sizes[-2])
    scores, scaled, shares = (b.inner(n, hint, shape, sizes) for hint in ("scores", "scaled", "shares"))
    b.layer("MatMul", n, [q, k], [scores], {0: 1})
    b.layer("BinaryOp", n, [scores], [scaled], {0: 2, 1: 1, 2: float(n.attrs["scale"])})
    if mask:
        masked = b.inner(n, "masked", shape, sizes)
        b.layer("BinaryOp", n, [scaled, _operand(b, n, mask, len(shape))], [masked], {0: 0})
        scaled = masked
    b.layer("Softmax", n, [scaled], [shares], {0: len(shape) - 1, 1: 1})
    b.layer("MatMul", n, [shares, v], _out(b, n))


OPERATIONS: Mapping[str, Handler] = {
    "conv": conv, "conv_transpose": conv_transpose, "linear": linear, "matmul": _matmul,
    "batch_norm": _batch_norm, "layer_norm": _layer_norm, "group_norm": _group_norm,
    "max_pool": _pool(0), "avg_pool": _pool(1), "mean": _mean, "pad": _pad, "upsample": _upsample,
    "split": _split, "slice": _slice, "select": _select, "reshape": _reshape, "identity": _identity,
    "expand": _expand, "permute": _permute, "cat": _cat, "embedding": _embedding, "prelu": _prelu,
    "clip": _clip, "softmax": _softmax, "log_softmax": _softmax, "sdpa": _sdpa,
    **dict.fromkeys(_BINARY, _binary),
    "relu": _unary("ReLU"), "leaky_relu": _unary("ReLU", {0: "alpha"}), "elu": _unary("ELU", {0: "alpha"}),
    "sigmoid": _unary("Sigmoid"), "tanh": _unary("TanH"), "silu": _unary("Swish"), "mish": _unary("Mish"),
    "softplus": _unary("Softplus"), "erf": _unary("Erf"),
    "gelu": lambda b, n: _unary("GELU", {0: int(n.attrs["approximate"] == "tanh")})(b, n),
    "hardsigmoid": _unary("HardSigmoid", {0: 1 / 6, 1: 0.5}),
    "hardswish": _unary("HardSwish", {0: 1 / 6, 1: 0.5}),
    **{
        ours: _pointwise(code)
        for ours, code in {
            "abs": 0, "neg": 1, "floor": 2, "sqrt": 5, "rsqrt": 6, "exp": 7, "log": 8, "sin": 9, "cos": 10,
            "reciprocal": 15,
        }.items()
    },
}  # fmt: skip


def permutations(rank: int) -> Sequence[str]:
    """ncnn's codes of a permutation, by position, as the source axes of (w, h, [d,] c)."""
    return _ORDERS[rank]
