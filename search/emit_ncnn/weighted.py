"""Weight-bearing operations: convolutions and products, with the activation behind them inside."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compressors.graph import Node
from compressors.padding import begins_and_ends
from search.emit.builder import UnsupportedOperationError, as_array
from search.emit_ncnn.builder import Builder, Value, shape_params


def activation(b: Builder, n: Node) -> tuple[Node, dict[int, Value], tuple[str, ...]]:
    """(last node inside the layer, parameters of the fused activation, its name) behind ``n``."""
    t = n.outputs[0]
    readers = b.graph.consumers.get(t, ())
    if len(readers) != 1 or t in b.graph.outputs or readers[0].inputs[0] != t:
        return n, {}, ()
    reader = readers[0]
    found = _fused(reader)
    if found is None:
        return n, {}, ()
    code, values = found
    b.taken.add(reader.name)
    params: dict[int, Value] = {9: code}
    if values:
        params[10] = values
    return reader, params, (reader.op,)


def _fused(n: Node) -> tuple[int, list[float]] | None:
    """Code and parameters under which ncnn's layers take in an activation (ncnn, fused_activation.h)."""
    if n.op == "clip":
        if not all(map(math.isfinite, (n.attrs["min"], n.attrs["max"]))):
            return None
        return 3, [float(n.attrs["min"]), float(n.attrs["max"])]
    return {
        "relu": (1, []),
        "leaky_relu": (2, [float(n.attrs.get("alpha", 0.0))]),
        "sigmoid": (4, []),
        "mish": (5, []),
        "hardswish": (6, [1 / 6, 0.5]),
    }.get(n.op)


def is_integer(b: Builder, n: Node) -> bool:
    """Whether the operation reads codes: quantised input and quantised weight."""
    return n.inputs[0] in b.activations and n.inputs[1] in b.codes


def stays_integer(b: Builder, tensor: str) -> bool:
    """Whether a tensor is handed on as codes: it is quantised, and none but integer layers read it."""
    return tensor in b.activations and tensor not in b.graph.outputs


def integer_data(b: Builder, n: Node, last: Node | None = None) -> bytes:
    """Codes of the weights, float bias, then scales: of weights by channel, of the input, of the output.

    ncnn multiplies by its scales where ours divide, and rounds halves away from zero; ``last`` is the node
    whose output is handed on as codes.
    """
    if b.weights is None:
        return b""
    code, bias = b.codes[n.inputs[1]], n.inputs[2]
    scale = as_array(code.scale).astype(np.float64)
    values = as_array(b.weights[n.inputs[1]])
    rounded = np.rint(values / scale.reshape(-1, *(1 for _ in values.shape[1:])))
    data = b.whole(np.clip(rounded, -code.high, code.high).astype(np.int8))
    data += b.raw(bias) if bias else b""
    data += b.floats(1.0 / scale) + b.floats([1.0 / b.activations[n.inputs[0]].scale])
    if last is not None and stays_integer(b, last.outputs[0]):
        data += b.floats([1.0 / b.activations[last.outputs[0]].scale])
    return data


def conv(b: Builder, n: Node) -> None:
    """Convolution of one or two spatial dimensions."""
    w = n.inputs[1]
    values = b.array(w)
    _convolution(b, n, "Convolution", b.graph.params[w].shape[0], values, {})


def conv_transpose(b: Builder, n: Node) -> None:
    """Transposed convolution; ncnn wants weights with the output channels first, group by group."""
    w, groups = n.inputs[1], n.attrs["groups"]
    cin, cout = b.graph.params[w].shape[:2]
    values = b.array(w)
    if values is not None:
        values = values.reshape(groups, cin // groups, *values.shape[1:]).swapaxes(1, 2)
    extra = n.attrs["output_padding"]
    params: dict[int, Value] = {18: extra[-1]}
    if len(extra) == 2:
        params[19] = extra[0]
    _convolution(b, n, "Deconvolution", cout * groups, values, params)


def _convolution(
    b: Builder, n: Node, kind: str, channels: int, values: NDArray[np.float32] | None, more: dict[int, Value]
) -> None:
    x, w, bias = n.inputs
    a = n.attrs
    rank = len(a["stride"])
    if rank > 2:
        raise UnsupportedOperationError(
            f"{n.op} {n.name!r}: ncnn's convolutions here have one or two dimensions"
        )
    shape = b.graph.params[w].shape
    params: dict[int, Value] = {0: channels, 1: shape[-1], 2: a["dilation"][-1], 3: a["stride"][-1]}
    begins, ends = begins_and_ends(a)
    params |= {4: begins[-1], 15: ends[-1], 5: int(bool(bias)), 6: math.prod(shape), **more}
    if rank == 2:
        params |= {11: shape[-2], 12: a["dilation"][0], 13: a["stride"][0], 14: begins[0], 16: ends[0]}
    if a["groups"] > 1:
        kind, params[7] = f"{kind}DepthWise", a["groups"]
    last, fused, names = activation(b, n)
    data = b.tagged(values) + (b.raw(bias) if bias else b"")
    precision = "fp32"
    if is_integer(b, n):
        if kind.startswith("Deconvolution") or rank != 2 or (a["groups"] > 1 and shape[1] > 1):
            raise UnsupportedOperationError(f"{n.op} {n.name!r}: ncnn has no integer kernel for it")
        data, precision = integer_data(b, n, last), "int8"
        params[8] = 101 if stays_integer(b, last.outputs[0]) else 1
    b.layer(
        kind if rank == 2 else f"{kind}1D", n, [x], [b.blob(last.outputs[0])],
        dict(sorted({**params, **fused}.items())), data, weight=w, fused=names, precision=precision,
    )  # fmt: skip


def linear(b: Builder, n: Node) -> None:
    """InnerProduct; it takes rows of a matrix, so that higher ranks are reshaped around it."""
    x, w, bias = n.inputs
    rows, columns = b.graph.params[w].shape
    last, fused, names = activation(b, n)
    out = b.blob(last.outputs[0])
    params: dict[int, Value] = {0: rows, 1: int(bool(bias)), 2: rows * columns, **fused}
    data = b.tagged(b.array(w)) + (b.raw(bias) if bias else b"")
    precision = "fp32"
    if is_integer(b, n):
        data, precision, params[8] = integer_data(b, n), "int8", 1
    params = dict(sorted(params.items()))
    source = b.blobs[b.read(x)]
    if len(source.shape) <= 2:
        b.layer("InnerProduct", n, [x], [out], params, data, weight=w, fused=names, precision=precision)
        return
    count = math.prod(source.shape[:-1])
    flat = b.inner(n, "rows", (count, columns), (count, source.sizes[-1]))
    product = b.inner(n, "product", (count, rows), (count, b.blobs[out].sizes[-1]))
    b.layer("Reshape", n, [x], [flat], shape_params((count, columns), 0, 1, 11, 2))
    b.layer("InnerProduct", n, [flat], [product], params, data, weight=w, fused=names, precision=precision)
    b.layer("Reshape", n, [product], [out], shape_params(b.sample(out)[0], 0, 1, 11, 2))
