"""Kernels of any ONNX file, also of files made elsewhere, for pricing on a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, VIEW_OPS, KernelBatch, KernelKind, make_batch
from hw_profiles.target import Target
from search.errors import InputError
from search.kernels_found import FoundKernel, read_kernels
from search.onnx_input import check_onnx

if TYPE_CHECKING:
    import onnx

#: Integer kernels whose result is float.
_TO_FLOAT = frozenset({"DequantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def predict_onnx(path: Path, target: Target, batch: int = 1) -> tuple[KernelBatch, float, float]:
    """(kernels of one network as a batch of one row, peak bytes of live activations, bytes of weights).

    Kernels are those of this machine's onnxruntime, without its blocked layout where the target has none.
    On a target whose runtime cannot be asked they stand in for its own, in its base precision where they
    are float. Raises InputError for a file that cannot be read or run.
    """
    model = check_onnx(path)
    method = target.runtime.templates
    asked = method if method.startswith("host") else "host-without-nchwc"
    found = read_kernels(path, asked, batch=batch)
    if not found:
        raise InputError(f"{str(path)!r} executes no operation at all.")
    kinds = [_kind(k, target) for k in found]
    rows = [row_of(k) for k in found]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return make_batch(kinds, columns), float(_peak_bytes(found)), float(weight_bytes(model))


def kind_of(k: FoundKernel) -> KernelKind:
    """What a found kernel is, under its node's name."""
    return KernelKind(k.op, k.domain, k.precision, k.name, k.fused, k.weight_bearing)


def _kind(k: FoundKernel, target: Target) -> KernelKind:
    kind = kind_of(k)
    if target.runtime.templates == "program" and k.precision == "fp32" and k.op in CONV_OPS:
        return replace(kind, domain=target.runtime.name)  # its own loops, not onnxruntime's
    if target.runtime.templates != "rules":
        return kind
    array = target.base_precision.startswith("w")
    precision = target.base_precision if array or k.precision != "int8" else "int8"
    return replace(kind, precision=precision)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all stored tensors of a network, those beside its file included."""
    total = 0
    for tensor in model.graph.initializer:
        size = _ELEMENT_BITS.get(tensor.data_type, 32)
        total += (math.prod(tensor.dims) * size + 7) // 8
    return total


#: Bits by onnx.TensorProto element type (onnx.proto3).
_ELEMENT_BITS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    21: 4,
    22: 4,
}


def row_of(k: FoundKernel) -> dict[str, float]:
    """Columns of a found kernel."""
    x = k.inputs[0] if k.inputs else (1,)
    y = k.outputs[0] if k.outputs else x
    row = {
        "batch": float(x[0]) if x else 1.0,
        "in_elements": float(k.in_elements),
        "out_elements": float(k.out_elements),
        "weight_elements": float(math.prod(k.weight_shape)) if k.weight_bearing else 0.0,
    }
    if k.op in MATMUL_OPS:
        return row | _product(k, x, y)
    cin, in_h, in_w = _planes(x, k.channels_last)
    cout, out_h, out_w = _planes(y, k.channels_last)
    window = (*(k.window or (k.weight_shape[2:] if k.op in CONV_OPS else ())), 1, 1)
    strides = (*k.strides, 1, 1)
    return row | {
        "cin": cin, "cout": cout, "groups": float(k.groups) if k.op in CONV_OPS else 1.0,
        "kernel_h": float(window[0]), "kernel_w": float(window[1]),
        "stride_h": float(strides[0]), "stride_w": float(strides[1]),
        "in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w,
    }  # fmt: skip


def _planes(shape: Sequence[int], last: bool) -> tuple[float, float, float]:
    """(channels, height, width) of an activation; missing sizes are 1."""
    if last and len(shape) >= 3:
        spatial = (*shape[1:-1], 1)
        return float(shape[-1]), float(spatial[0]), float(spatial[1])
    rest = (*shape[1:], 1, 1, 1)
    return float(rest[0]), float(rest[1]), float(rest[2])


def _product(k: FoundKernel, x: Sequence[int], y: Sequence[int]) -> dict[str, float]:
    columns = y[-1] if y else 1
    depth = math.prod(k.weight_shape) / columns if k.weight_bearing else (x[-1] if x else 1)
    batch = float(y[0]) if len(y) > 1 else 1.0
    groups = 1.0 if k.weight_bearing else float(math.prod(y[1:-2]))
    rows = math.prod(y) / max(columns, 1) / batch / groups
    return {
        "batch": batch, "cin": float(depth), "cout": float(columns), "groups": groups,
        "kernel_h": 1.0, "kernel_w": 1.0, "stride_h": 1.0, "stride_w": 1.0,
        "in_h": rows, "in_w": 1.0, "out_h": rows, "out_w": 1.0,
    }  # fmt: skip


def _peak_bytes(kernels: Sequence[FoundKernel]) -> int:
    """Largest sum of live activations over the kernels in order; views share their source."""
    root: dict[str, str] = {}
    size: dict[str, int] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, k in enumerate(kernels):
        for t, shape in zip(k.reads, k.inputs, strict=False):
            name = root.get(t, t)
            size.setdefault(name, math.prod(shape) * 4)
            first.setdefault(name, 0)
            last[name] = i
        width = 4 if k.op in _TO_FLOAT else _BYTES[k.precision]
        for t, shape in zip(k.writes, k.outputs, strict=False):
            if k.op in VIEW_OPS and k.reads:
                root[t] = root.get(k.reads[0], k.reads[0])
                continue
            size[t] = math.prod(shape) * width
            first[t] = last[t] = i
    return max(
        (sum(size[t] for t in size if first[t] <= i <= last[t]) for i in range(len(kernels))), default=0
    )
