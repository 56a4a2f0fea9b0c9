"""Kernel templates of ncnn: the layers of the program that is written, since ncnn runs them as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressors.compressed import ActivationCode, WeightCode
from compressors.graph import WEIGHT_OPS, Graph
from compressors.skeleton import Placement, Skeleton, at_reads
from hw_profiles.kernel import KernelKind
from search.emit_ncnn import Layer, Program, emit_ncnn
from search.emit_ncnn.builder import BOOKKEEPING
from search.errors import UsageError
from search.lowering_shapes import Source
from search.lowering_template import ONE, Cell, Dim, SymbolicKernel, Template, cell, count

Sizes = tuple[Dim, ...]


def program_template(
    graph: Graph, skeleton: Skeleton, where: Placement, batch: int, constants: Mapping[str, Any]
) -> Template:
    """The template of a concrete graph: its program without weights, sizes as formulas.

    Raises UsageError for more than one sample, UnsupportedOperationError for what ncnn has no layer for.
    """
    if batch != 1:
        raise UsageError(f"ncnn runs one sample at a time, not {batch=}.", "Use --batch 1.")
    graph, where = at_reads(graph, where)
    activations = {t: ActivationCode(1.0, 0, bits, -127, 127) for t, bits in where.tensors.items()}
    codes = {p: WeightCode(None, 0, bits, 127) for p, bits in where.params.items()}  # type: ignore[arg-type]
    program = emit_ncnn(graph, None, activations, codes, constants)
    reading = _Reading(program, Source(graph, skeleton.sizes, skeleton.layer_of, 1))
    kernels = tuple(reading.kernel(x) for x in program.layers if x.type not in BOOKKEEPING)
    tensors = {t: count(reading.sizes(t)) for k in kernels for t in (*k.reads, *k.writes)}
    outputs = tuple(reading.source(t) for t in program.outputs)
    codes_only = {t: 1.0 for x in program.layers if _integer(x, 8, 0) > 100 for t in x.outputs}
    return Template(kernels, tensors, program.inputs, outputs, "program", widths=codes_only)


class _Reading:
    """A program and where the sizes of its blobs come from."""

    def __init__(self, program: Program, source: Source) -> None:
        self.program = program
        self.network = source
        self._origin = {t: x.inputs[0] for x in program.layers if x.type == "Split" for t in x.outputs}
        self._constant = {t for x in program.layers if x.type == "MemoryData" for t in x.outputs}

    def source(self, blob: str) -> str:
        """The blob that a copy shares its values with."""
        return self._origin.get(blob, blob)

    def sizes(self, blob: str) -> Sizes:
        """Sizes of a blob as formulas."""
        return tuple(
            Dim(float(s)) if isinstance(s, int) else self.network.formula(s[0])[s[1]]
            for s in self.program.blobs[blob].sizes
        )

    def kernel(self, x: Layer) -> SymbolicKernel:
        """One layer as a kernel."""
        node = self.network.graph.by_name[x.node]
        layer = self.network.layer_of.get(node.name, node.outputs[0])
        bearing = node.op in WEIGHT_OPS and bool(x.weight)
        kind = KernelKind(x.type, "ncnn", x.precision, layer, x.fused, bearing)
        reads = tuple(self.source(t) for t in x.inputs if self.source(t) not in self._constant)
        return SymbolicKernel(kind, self._cells(x, bearing), reads, x.outputs)

    def _cells(self, x: Layer, bearing: bool) -> dict[str, Cell]:
        ins = [self.sizes(t) for t in x.inputs if self.source(t) not in self._constant]
        outs = [self.sizes(t) for t in x.outputs]
        a, y = ins[0] if ins else (ONE,), outs[0]
        weight = self.network.formula(x.weight) if bearing else ()
        found: dict[str, Cell] = {
            "in_elements": tuple(term for sizes in ins for term in count(sizes)),
            "out_elements": count(y),
            "weight_elements": count(weight) if bearing else cell(0.0),
            "weight_bits": cell(8.0 if x.precision == "int8" else 32.0),
            "act_bits": cell(8.0 if x.precision == "int8" else 32.0),
        }
        if x.type == "InnerProduct":
            rows = tuple(y[:-1]) or (ONE,)
            return found | {"cin": cell(weight[1]), "cout": cell(y[-1]), "in_h": (rows,), "out_h": (rows,)}
        if x.type == "MatMul":
            matrices, rows = tuple(y[:-2]) or (ONE,), (y[-2],)
            return found | {
                "cin": cell(a[-1]), "cout": cell(y[-1]), "groups": (matrices,),
                "in_h": (rows,), "out_h": (rows,),
            }  # fmt: skip
        return found | _window(x, a, y, weight)


def _window(x: Layer, a: Sizes, y: Sizes, weight: Sizes) -> dict[str, Cell]:
    wide_a, wide_y = _planes(a), _planes(y)
    window, strides = _kernel_and_stride(x)
    groups = cell(float(_integer(x, 7, 1)) if weight else 1.0)
    if weight and _integer(x, 7, 1) > 1 and weight[1] == ONE and weight[0] == wide_a[0]:
        groups = cell(wide_a[0])
    return {
        "cin": cell(wide_a[0]), "cout": cell(wide_y[0]), "groups": groups,
        "kernel_h": cell(window[0]), "kernel_w": cell(window[1]),
        "stride_h": cell(strides[0]), "stride_w": cell(strides[1]),
        "in_h": cell(wide_a[1]), "in_w": cell(wide_a[2]), "out_h": cell(wide_y[1]), "out_w": cell(wide_y[2]),
    }  # fmt: skip


def _planes(sizes: Sizes) -> Sizes:
    """(channels, height, width) of a blob, missing sizes 1."""
    return (*sizes, ONE, ONE)[:3]


def _kernel_and_stride(x: Layer) -> tuple[Sequence[float], Sequence[float]]:
    pooling = x.type in ("Pooling", "Pooling1D")
    if not (x.weight and x.type.startswith(("Convolution", "Deconvolution"))) and not (
        pooling and not _integer(x, 4, 0)
    ):
        return (1.0, 1.0), (1.0, 1.0)
    stride = 2 if pooling else 3
    if x.type.endswith("1D"):
        return (float(_integer(x, 1, 1)), 1.0), (float(_integer(x, stride, 1)), 1.0)
    return (
        (float(_integer(x, 11, 1)), float(_integer(x, 1, 1))),
        (float(_integer(x, 10 + stride, 1)), float(_integer(x, stride, 1))),
    )


def _integer(x: Layer, key: int, default: int) -> int:
    value = x.params.get(key, default)
    return int(value) if isinstance(value, int | float) else default
