"""Kernels: what a runtime executes, as pure values. Shapes of many policies at once are columns.

A kernel is one fused operation as the runtime runs it. A template is a tuple of K kernels in the
order of execution; a `KernelBatch` holds the shapes which P policies give to that template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hw_profiles.errors import BadKernelsError

Array = NDArray[np.float64]

#: Columns of a batch, each float64 of shape (P, K). `in_elements` counts all data inputs together and,
#: like `out_elements`, the whole batch; `weight_elements` counts weights without bias.
COLUMNS: tuple[str, ...] = (
    "batch", "cin", "cout", "groups", "kernel_h", "kernel_w", "stride_h", "stride_w",
    "in_h", "in_w", "out_h", "out_w", "weight_bits", "act_bits",
    "in_elements", "out_elements", "weight_elements",
)  # fmt: skip

TRANSPOSED_OPS = frozenset({
    "ConvTranspose", "Deconvolution", "DeconvolutionDepthWise", "Deconvolution1D", "DeconvolutionDepthWise1D",
})  # fmt: skip
CONV_OPS = TRANSPOSED_OPS | frozenset({
    "Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv",
    "Convolution", "ConvolutionDepthWise", "Convolution1D", "ConvolutionDepthWise1D",  # ncnn's
})  # fmt: skip
MATMUL_OPS = frozenset({
    "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "InnerProduct",
})  # fmt: skip
#: Operations that only change the view of a tensor: they move no data.
VIEW_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})

#: Stands in `fused` of an integer convolution whose weights have an offset (zero point other than 0): such a
#: kernel is up to twice as slow. onnxruntime makes them of float layers that it quantises by itself, with one
#: scale and one offset for all weights; weights quantised beforehand are symmetric.
ASYMMETRIC = "asymmetric-weights"

#: Stands in `fused` of a DequantizeLinear of constants: weights that no kernel takes as integers are made
#: floats in every run, column by column, an order of magnitude slower than activations are.
WEIGHTS = "weights"

_FLOAT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
_ARRAY_PRECISION = re.compile(r"w(\d+)a(\d+)")
#: Operations whose two sides have different element types: (bytes in, bytes out).
_MIXED_BYTES = {
    "QuantizeLinear": (4.0, 1.0),
    "DequantizeLinear": (1.0, 4.0),
    "DynamicQuantizeLinear": (4.0, 1.0),
    "MatMulInteger": (1.0, 4.0),
    "MatMulIntegerToFloat": (1.0, 4.0),
    "ConvInteger": (1.0, 4.0),
    "DynamicQuantizeMatMul": (4.0, 4.0),
    "MatMulNBits": (4.0, 4.0),
}


@dataclass(frozen=True, slots=True)
class KernelKind:
    """What one kernel of a template is, whatever its shapes.

    `op` and `domain` stand as in the runtime's optimised graph; `precision` is "fp32", "fp16", "int8", or
    "w4a8" for arrays with bits of their own (the columns `weight_bits` and `act_bits` then decide).
    `layer` names the source layer or tensor for reports.
    """

    op: str
    domain: str = ""
    precision: str = "fp32"
    layer: str = ""
    fused: tuple[str, ...] = ()
    weight_bearing: bool = False

    @property
    def has_macs(self) -> bool:
        """Whether the kernel multiplies and accumulates (convolutions, Gemm, MatMul)."""
        return self.weight_bearing or self.op in CONV_OPS or self.op in MATMUL_OPS

    @property
    def is_array_precision(self) -> bool:
        """Whether the bits are those of the columns ("w4a8") rather than of a machine type."""
        return _ARRAY_PRECISION.fullmatch(self.precision) is not None


@dataclass(frozen=True, eq=False)
class KernelBatch:
    """Shapes of P policies for one template of K kernels; every column is float64 of shape (P, K).

    ``held``: (P,) bytes that the whole network goes through in a run (`held_bytes`), where the kernels are
    only some of it; None where they are all.
    """

    kinds: tuple[KernelKind, ...]
    columns: Mapping[str, Array] = field(repr=False)
    held: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.columns]
        if missing:
            raise BadKernelsError(f"kernel batch lacks {', '.join(missing)}; `make_batch` fills defaults")
        shape = self.columns["batch"].shape
        wrong = [name for name in COLUMNS if self.columns[name].shape != shape]
        if wrong or len(shape) != 2 or shape[1] != len(self.kinds):
            raise BadKernelsError(
                f"kernel columns must all be (policies, {len(self.kinds)}); wrong: "
                f"{', '.join(f'{n} {self.columns[n].shape}' for n in (wrong or ['batch']))}"
            )

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __len__(self) -> int:
        return int(self.columns["batch"].shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(P policies, K kernels)."""
        return len(self), len(self.kinds)

    def row(self, i: int) -> KernelBatch:
        """The batch of policy i alone, (1, K)."""
        held = None if self.held is None else self.held[i : i + 1]
        return KernelBatch(self.kinds, {name: self.columns[name][i : i + 1] for name in COLUMNS}, held)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> KernelBatch:
        """The batch of the given policies, in the given order."""
        index = np.asarray(rows, dtype=np.intp)
        held = None if self.held is None else self.held[index]
        return KernelBatch(self.kinds, {name: self.columns[name][index] for name in COLUMNS}, held)

    @cached_property
    def _has_macs(self) -> Array:
        return np.array([float(kind.has_macs) for kind in self.kinds])

    def macs(self) -> Array:
        """(P, K) multiply-accumulates of the whole batch; 0 for operations that have none."""
        c = self.columns
        pixels = c["batch"] * np.where(self._transposed, c["in_h"] * c["in_w"], c["out_h"] * c["out_w"])
        window = c["kernel_h"] * c["kernel_w"]
        return np.asarray(self._has_macs * pixels * c["cout"] * window * c["cin"] * self._per_group)

    @cached_property
    def _transposed(self) -> NDArray[np.bool_]:
        return np.array([kind.op in TRANSPOSED_OPS for kind in self.kinds])

    @cached_property
    def _per_group(self) -> Array:
        # A batched MatMul's groups are independent matrices, each with its own cin and cout.
        matmul = np.array([kind.op in MATMUL_OPS for kind in self.kinds])
        groups = self.columns["groups"]
        return np.asarray(np.where(matmul, groups, 1.0 / groups))

    def in_bytes(self) -> Array:
        """(P, K) bytes of activations read."""
        return self.columns["in_elements"] * self._activation_bytes(0)

    def out_bytes(self) -> Array:
        """(P, K) bytes of activations written."""
        return self.columns["out_elements"] * self._activation_bytes(1)

    def weight_bytes(self) -> Array:
        """(P, K) bytes of weights read."""
        fixed = np.array([weight_width(kind) for kind in self.kinds])
        if np.isnan(fixed).any():
            fixed = np.where(np.isnan(fixed), self.columns["weight_bits"] / 8.0, fixed)
        return np.asarray(self.columns["weight_elements"] * fixed)

    def held_bytes(self) -> Array:
        """(P,) bytes that a run goes through: all weights, and the most activations that a kernel moves."""
        if self.held is not None:
            return self.held
        return np.asarray(self.weight_bytes().sum(axis=1) + self.moved_bytes().max(axis=1, initial=0.0))

    def moved_bytes(self) -> Array:
        """(P, K) bytes of activations read and written."""
        return np.asarray(self.in_bytes() + self.out_bytes())

    def _activation_bytes(self, side: int) -> Array:
        fixed = np.array([activation_width(kind)[side] for kind in self.kinds])
        if np.isnan(fixed).any():
            fixed = np.where(np.isnan(fixed), self.columns["act_bits"] / 8.0, fixed)
        return np.asarray(fixed)


def activation_width(kind: KernelKind) -> tuple[float, float]:
    """Bytes per activation read and written; NaN where the bits of the columns decide."""
    if kind.op in _MIXED_BYTES:
        return _MIXED_BYTES[kind.op]
    if kind.is_array_precision:
        return float("nan"), float("nan")
    width = _FLOAT_BYTES.get(kind.precision, 1.0)
    return width, width


def weight_width(kind: KernelKind) -> float:
    """Bytes per weight; NaN where the bits of the columns decide."""
    if kind.op == "MatMulNBits" or kind.is_array_precision:
        return float("nan")
    return _FLOAT_BYTES.get(kind.precision, 1.0)


def make_batch(kinds: Sequence[KernelKind], columns: Mapping[str, object]) -> KernelBatch:
    """A batch from some columns: anything broadcastable to (P, K); a 1-d array of K values is one policy.

    Missing columns get what follows from the others: batch, groups, kernel, stride 1; bits from the
    precision; sizes from stride; element counts from channels, sizes and kernel.
    """
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise BadKernelsError(f"unknown kernel columns {', '.join(unknown)}; known: {', '.join(COLUMNS)}")
    given = {name: np.atleast_2d(np.asarray(value, dtype=np.float64)) for name, value in columns.items()}
    shape = np.broadcast_shapes((1, len(kinds)), *(value.shape for value in given.values()))
    full = {name: np.array(np.broadcast_to(value, shape)) for name, value in given.items()}

    def put(name: str, value: Array | float) -> None:
        if name not in full:
            full[name] = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), shape))

    for name in ("batch", "cin", "groups", "kernel_h", "kernel_w", "stride_h", "stride_w", "out_h", "out_w"):
        put(name, 1.0)
    put("cout", full["cin"])
    put("in_h", full["out_h"] * full["stride_h"])
    put("in_w", full["out_w"] * full["stride_w"])
    put("weight_bits", np.array([default_bits(kind)[0] for kind in kinds]))
    put("act_bits", np.array([default_bits(kind)[1] for kind in kinds]))
    matmul = np.array([kind.op in MATMUL_OPS for kind in kinds])
    many = np.where(matmul, full["groups"], 1.0)
    put("in_elements", full["batch"] * full["cin"] * full["in_h"] * full["in_w"] * many)
    put("out_elements", full["batch"] * full["cout"] * full["out_h"] * full["out_w"] * many)
    bearing = np.array([float(kind.weight_bearing) for kind in kinds])
    dense = full["cin"] * full["cout"] * full["kernel_h"] * full["kernel_w"]
    put("weight_elements", bearing * dense / np.where(matmul, 1.0, full["groups"]))
    return KernelBatch(tuple(kinds), full)


def default_bits(kind: KernelKind) -> tuple[float, float]:
    """(weight bits, activation bits) of a precision: fp32 32/32, fp16 16/16, int8 8/8, w4a8 4/8."""
    match = _ARRAY_PRECISION.fullmatch(kind.precision)
    if match:
        return float(match[1]), float(match[2])
    bits = 8.0 * _FLOAT_BYTES.get(kind.precision, 1.0)
    return bits, bits


def concat(batches: Sequence[KernelBatch]) -> KernelBatch:
    """Batches of one template, policies one after the other."""
    if not batches:
        raise BadKernelsError("nothing to concatenate: no kernel batches given")
    kinds = batches[0].kinds
    if any(batch.kinds != kinds for batch in batches):
        raise BadKernelsError("batches of different templates cannot be joined; group them by template")
    return KernelBatch(kinds, {name: np.concatenate([b.columns[name] for b in batches]) for name in COLUMNS})


def rename_layers(batch: KernelBatch, layers: Sequence[str]) -> KernelBatch:
    """The same kernels under other layer names."""
    kinds = tuple(replace(kind, layer=layer) for kind, layer in zip(batch.kinds, layers, strict=True))
    return KernelBatch(kinds, batch.columns)
