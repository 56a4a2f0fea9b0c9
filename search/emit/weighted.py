"""Weight-bearing operations: float, or with integer weights and biases between quantised activations."""

from __future__ import annotations

import numpy as np

from compressors.compressed import ActivationCode, WeightCode
from compressors.graph import Node
from compressors.padding import begins_and_ends
from compressors.resolve import fused_output
from search.emit.builder import ArrayLike, Builder, as_array, element_type


def conv(b: Builder, n: Node) -> None:
    """Convolution of one, two or three spatial dimensions."""
    _convolution(b, n, "Conv")


def conv_transpose(b: Builder, n: Node) -> None:
    """Transposed convolution."""
    _convolution(b, n, "ConvTranspose", output_padding=n.attrs["output_padding"])


def _convolution(b: Builder, n: Node, op: str, **extra: object) -> None:
    x, w, bias = n.inputs
    a = n.attrs
    names = [b.read(x), _weight(b, n, transposed=False)]
    last = b.write(n.outputs[0])
    guarded = _stays_float(b, n)
    if bias and not guarded:
        names.append(_bias(b, n))
    b.node(
        op,
        names,
        [b.temporary(n.outputs[0], "product") if guarded else last],
        n.name,
        kernel_shape=b.shape(w)[2:],
        strides=a["stride"],
        pads=[p for side in begins_and_ends(a) for p in side],
        dilations=a["dilation"],
        group=a["groups"],
        **extra,
    )
    if guarded:
        wide = (-1, *(1 for _ in a["stride"]))
        values = b.array(bias) if bias else np.zeros(b.shape(n.outputs[0])[1], np.float32)
        added = b.initializer(f"{bias or n.name}/wide", values.reshape(wide))
        b.node("Add", [f"{n.outputs[0]}/product", added], [last], f"{n.name}/bias")


def _stays_float(b: Builder, n: Node) -> bool:
    """Whether the runtime has to be kept from rounding the weights of a float operation.

    onnxruntime (WeightBiasQuantization) quantises the weights of what stands between dequantise and
    quantise, also where it has no integer kernel: the values change and codes are dequantised in every run.
    An addition behind the operation breaks the pattern. Plain convolutions do become integer: those the
    policy makes integer itself.
    """
    if n.op != "conv_transpose" or is_integer(b, n) or n.inputs[0] not in b.activations:
        return False
    return fused_output(b.graph, n) in b.activations


def linear(b: Builder, n: Node) -> None:
    """Gemm for a matrix; MatMul and Add for more dimensions; integers with dynamic ranges."""
    x, _, bias = n.inputs
    if x in b.dynamic and n.inputs[1] in b.codes:
        _dynamic(b, n)
        return
    last = [b.write(n.outputs[0])]
    if len(b.shape(x)) == 2:
        names = [b.read(x), _weight(b, n, transposed=False), *([_bias(b, n)] if bias else [])]
        b.node("Gemm", names, last, n.name, transB=1)
        return
    names = [b.read(x), _weight(b, n, transposed=True)]
    if not bias:
        b.node("MatMul", names, last, n.name)
        return
    product = b.node("MatMul", names, [b.temporary(n.outputs[0], "product")], n.name)
    b.node("Add", [product, b.read(bias)], last, f"{n.name}/bias")


def _dynamic(b: Builder, n: Node) -> None:
    """Product of codes, to float by both scales, and a float bias: what onnxruntime fuses into one kernel."""
    x, w, bias = n.inputs
    out, code = n.outputs[0], b.codes[w]
    codes, scale, zero = b.dynamic_codes(x)
    name = f"{w}/transposed"
    weight = b.initializer(f"{name}/codes", np.ascontiguousarray(b.weight_codes(w, code).T))
    theirs = b.initializer(f"{name}/scale", as_array(code.scale).astype(np.float32))
    sums = b.step(n, "MatMulInteger", [codes, weight, zero], "sums")
    sums = b.step(n, "Cast", [sums], "cast", to=element_type("float32"))
    both = b.step(n, "Mul", [scale, theirs], "scales")
    last = b.write(out) if not bias else b.temporary(out, "product")
    b.node("Mul", [sums, both], [last], n.name)
    if bias:
        b.node("Add", [last, b.read(bias)], [b.write(out)], f"{n.name}/bias")


def is_integer(b: Builder, n: Node) -> bool:
    """Whether the operation reads codes: quantised input and quantised weight."""
    return n.inputs[0] in b.activations and n.inputs[1] in b.codes


def _weight(b: Builder, n: Node, transposed: bool) -> str:
    """The weight as the operation reads it: int8 codes and DequantizeLinear, or float values.

    Rounded weights of an operation on float activations are stored as floats: no kernel would read codes,
    and dequantising them anew in every run is slower.
    """
    w = n.inputs[1]
    if not is_integer(b, n):
        if not transposed:
            return b.read(w)
        return b.initializer(f"{w}/transposed", np.ascontiguousarray(b.array(w).T))
    code = b.codes[w]
    suffix, axis = ("/transposed", 1 - code.axis) if transposed else ("", code.axis)
    name = f"{w}{suffix}"
    if f"{name}/codes" not in b.initializers:
        values = b.weight_codes(w, code)
        b.initializer(f"{name}/codes", np.ascontiguousarray(values.T) if transposed else values)
        scale = as_array(code.scale).astype(np.float32)
        b.initializer(f"{name}/scale", scale)
        b.initializer(f"{name}/zero", np.zeros(scale.shape, np.int8))
        b.node("DequantizeLinear", [f"{name}/codes", f"{name}/scale", f"{name}/zero"], [name], axis=axis)
    return name


def _bias(b: Builder, n: Node) -> str:
    """The bias: float, or int32 codes whose scale is that of input times weight, per channel."""
    bias = n.inputs[2]
    if not is_integer(b, n):
        return b.read(bias)
    scale = bias_scale(b.activations[n.inputs[0]], b.codes[n.inputs[1]])
    known = b.biases.get(bias)
    name = bias
    if known is not None and not np.allclose(as_array(known), scale, rtol=1e-5, atol=0.0):
        name = f"{bias}/{n.name}"  # a shared bias: this call's input has another scale
    if f"{name}/codes" not in b.initializers:
        b.initializer(f"{name}/codes", b.bias_codes(bias, scale))
        b.initializer(f"{name}/scale", scale.astype(np.float32))
        b.initializer(f"{name}/zero", np.zeros(scale.shape, np.int32))
        b.node("DequantizeLinear", [f"{name}/codes", f"{name}/scale", f"{name}/zero"], [name], axis=0)
    return name


def bias_scale(x: ActivationCode, w: WeightCode) -> ArrayLike:
    """(channels,) float64 scale of the integer bias."""
    return np.asarray(np.float64(np.float32(x.scale)) * as_array(w.scale).astype(np.float64))
