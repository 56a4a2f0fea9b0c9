"""Arm cores: time = sum of constant x count, a handful of counts shared by all kernels of a network.

Unlike `costs.cpu`, whose constants belong to kernels measured one by one, these were fitted to published
times of *whole* networks on some ninety boards (scripts/fit_boards.py), so that there are only as many
counts as twenty-odd networks can tell apart. A target has one table of constants for each precision and
thread count that was fitted, "float@1", "float@4", "int8@1", "int8@4": nanoseconds per count. Other thread
counts lie between them, linear in 1/threads, as Amdahl's law has it.

Convolutions are the matrix products that the Arm kernels of ncnn, XNNPACK and onnxruntime make of them:
channels and pixels are rounded up to the registers' tiles. ncnn runs 3x3 convolutions of stride 1 by
Winograd's algorithm (Lavin and Gray, CVPR 2016) where both sides have eight channels; onnxruntime does not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hw_profiles.costs.base import CLASSES, CostModel, Costs, Index, Shapes, ceil_to
from hw_profiles.costs.cpu import SIMPLE
from hw_profiles.errors import BadTargetError
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, VIEW_OPS, Array, KernelBatch, KernelKind
from hw_profiles.target import Target

_CLASS = {name: i for i, name in enumerate(CLASSES)}
#: Counts of the model and what one unit is.
COUNTS: dict[str, str] = {
    "pointwise": "multiply-accumulate of a 1x1 convolution, channels and pixels rounded up to tiles",
    "winograd": "multiply of a 3x3 convolution in the transformed domain",
    "dense": "multiply-accumulate of any other dense convolution",
    "grouped": "multiply-accumulate of a grouped convolution",
    "product": "multiply-accumulate of a matrix product of several rows",
    "taps": "multiply-accumulate of a depthwise 3x3 convolution of stride 1",
    "taps_strided": "the same of larger stride",
    "taps_wide": "the same of a larger window",
    "read": "element that a 1x1 convolution packs",
    "written": "element that a convolution or product writes",
    "moved": "element read or written by a grouped convolution",
    "spread": "element read or written by a depthwise convolution",
    "element": "element read or written by an operation without MACs",
    "special": "element of an operation with exponentials or a normalisation",
    "transform": "element transformed for Winograd",
    "gather": "element gathered for a window",
    "weights": "weight of a convolution",
    "weights_winograd": "weight of a 3x3 convolution in the transformed domain",
    "weights_row": "weight of a product of one row: read once, used once",
    "overhead": "kernel with MACs; one without counts for 0.3",
    "groups": "group of a grouped convolution",
    "detection": "comparison while detected boxes are sorted (n log2 n per class)",
}
#: Tiles of the matrix kernels: pixels by eight, output channels by eight, input channels by four.
_PIXELS, _OUTPUTS, _INPUTS = 8.0, 8.0, 4.0
_LIGHT = 0.3
#: Share of the fitted overhead that is launch, which a kernel pays whatever it does. The rest stands for how
#: badly small kernels use a core, and is at most what the kernel's own work takes: published kernels take
#: 0.1 ms and more, and a fit to their networks knows nothing of kernels of some microseconds.
LAUNCH = 0.125
_WINOGRAD_CHANNELS = 8.0
_SPECIAL = frozenset({"special", "softmax", "erf", "norm", "skipnorm", "qtable"})
#: Counts whose cost is arithmetic rather than memory, by class of cost for explanations and corrections.
_REORDERS = frozenset({"reorder_in", "reorder_out", "quantise", "dequantise", "transpose", "qtranspose"})

Counts = dict[str, Array]


def conv_counts(s: Shapes, winograd: bool) -> Counts:
    """Counts of convolutions, (P, k) each; `winograd` tells whether the runtime has that algorithm."""
    window, groups = s.kernel_h * s.kernel_w, s.groups
    pixels = s.batch * s.out_h * s.out_w
    thin = (groups > 1.0) & (groups == s.cin) & (groups == s.cout)
    grouped = (groups > 1.0) & ~thin
    row = (pixels == 1.0) & (window == 1.0) & (groups == 1.0)
    point = (window == 1.0) & (groups == 1.0) & ~row
    mults, share = winograd_tiles(s)
    fast = np.asarray(
        winograd & (window == 9.0) & (s.kernel_h == 3.0) & (s.stride_h == 1.0) & (groups == 1.0)
    )
    fast &= np.minimum(s.cin, s.cout) >= _WINOGRAD_CHANNELS
    rest = (groups == 1.0) & ~row & ~point & ~fast
    area, columns = ceil_to(pixels, _PIXELS), ceil_to(s.cout, _OUTPUTS)
    depth = np.where(s.cin < _INPUTS, s.cin, ceil_to(s.cin, _INPUTS))
    small = thin & (window <= 9.0)
    taps = pixels * ceil_to(s.cout, _INPUTS) * window
    moved = s.in_elements + s.out_elements
    return {
        "pointwise": np.where(point, area * columns * depth, 0.0),
        "read": np.where(point, pixels * s.cin, 0.0),
        "written": np.where(point | rest, s.out_elements, 0.0),
        "weights": np.where(point | rest | grouped, s.weight_elements, 0.0),
        "weights_row": np.where(row, s.weight_elements, 0.0),
        "winograd": np.where(fast, mults * columns * depth, 0.0),
        "transform": np.where(fast, mults * (s.cin + s.cout), 0.0),
        "weights_winograd": np.where(fast, s.weight_elements * share, 0.0),
        "dense": np.where(rest, area * columns * depth * window, 0.0),
        "gather": np.where(rest & (s.cin >= _INPUTS), pixels * s.cin * window, 0.0),
        "grouped": np.where(grouped, pixels * s.cout * s.cin / groups * window, 0.0),
        "groups": np.where(grouped, groups, 0.0),
        "moved": np.where(grouped, moved, 0.0),
        "taps": np.where(small & (s.stride_h == 1.0), taps, 0.0),
        "taps_strided": np.where(small & (s.stride_h != 1.0), taps, 0.0),
        "taps_wide": np.where(thin & ~small, taps, 0.0),
        "spread": np.where(thin, moved, 0.0),
    }


def winograd_tiles(s: Shapes) -> tuple[Array, Array]:
    """(multiplies per channel pair, transformed weights per weight) of the best of F(2,3), F(4,3), F(6,3)."""
    best, share = np.full(s.batch.shape, np.inf), np.ones(s.batch.shape)
    for tile in (2.0, 4.0, 6.0):
        mults = s.batch * np.ceil(s.out_h / tile) * np.ceil(s.out_w / tile) * (tile + 2.0) ** 2
        share = np.where(mults < best, (tile + 2.0) ** 2 / 9.0, share)
        best = np.minimum(best, mults)
    return best, share


def product_counts(s: Shapes) -> Counts:
    """Counts of matrix products: one row is bound by its weights, several by arithmetic."""
    rows = s.batch * s.out_h * s.out_w * s.groups
    one = (rows <= 1.0) & (s.weight_elements > 0.0)
    return {
        "weights_row": np.where(one, s.weight_elements, 0.0),
        "product": np.where(one, 0.0, rows * s.cout * s.cin),
        "written": np.where(one, 0.0, s.out_elements),
    }


def simple_counts(s: Shapes, special: NDArray[np.bool_]) -> Counts:
    """Counts of operations without MACs."""
    return {
        "special": np.where(special, s.out_elements, 0.0),
        "element": np.where(special, 0.0, s.in_elements + s.out_elements),
    }


def form_of(kind: KernelKind) -> str:
    """conv, product, simple, or view."""
    if kind.op in VIEW_OPS:
        return "view"
    return "conv" if kind.op in CONV_OPS else ("product" if kind.op in MATMUL_OPS else "simple")


def is_special(kind: KernelKind) -> bool:
    """Whether an operation without MACs takes exponentials or normalises."""
    return SIMPLE.get(kind.op, "") in _SPECIAL


@lru_cache(maxsize=256)
def _members(kinds: tuple[KernelKind, ...]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Kernels by (form, "float" or "int8"); views left out."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, kind in enumerate(kinds):
        form = form_of(kind)
        if form != "view":
            integer = kind.precision == "int8" or kind.op.startswith("Q")
            found.setdefault((form, "int8" if integer else "float"), []).append(i)
    return {key: tuple(value) for key, value in found.items()}


def counts_of(batch: KernelBatch, winograd: bool) -> dict[tuple[str, str], tuple[Index, Counts]]:
    """By (form, precision): the kernels' positions and their counts, (P, k) each; views cost nothing."""
    nothing = np.zeros((len(batch), 1))
    found: dict[tuple[str, str], tuple[Index, Counts]] = {}
    for (form, precision), members in _members(batch.kinds).items():
        index: Index = np.asarray(members, dtype=np.intp)
        s = Shapes(batch, index, (nothing, nothing))
        if form == "conv":
            counts = conv_counts(s, winograd)
        elif form == "product":
            counts = product_counts(s)
        else:
            counts = simple_counts(s, np.array([is_special(batch.kinds[i]) for i in members]))
        found[form, precision] = (index, counts)
    return found


def overhead_count(form: str) -> float:
    """Overheads that a kernel of a form counts for."""
    return _LIGHT if form == "simple" else 1.0


class ArmCost(CostModel):
    """Additive model of whole networks on Arm cores; see the module."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._winograd = target.runtime.name == "ncnn"
        self._tables = {threads: self._mixed(threads) for threads in range(1, target.device.cores + 1)}

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        busy, overhead = np.zeros(batch.shape), np.zeros(len(batch.kinds))
        classes = np.full(len(batch.kinds), _CLASS["memory"], dtype=np.intp)
        tables = self._tables[threads]
        for (form, precision), (index, counts) in counts_of(batch, self._winograd).items():
            constants = tables[precision]
            total: Array | float = 0.0
            for name, count in counts.items():
                if constants.get(name):
                    total = total + constants[name] * count
            whole = constants["overhead"] * overhead_count(form)
            busy[:, index] = total + np.minimum(total, (1.0 - LAUNCH) * whole)
            overhead[index] = LAUNCH * whole
            classes[index] = self._classes(batch, form, precision, index)
        unknown = [k.op for k in batch.kinds if form_of(k) == "simple" and k.op not in SIMPLE]
        network = tables["float"].get("network", 0.0) * 1e-3
        return Costs(busy * 1e-3, overhead * 1e-3, network, classes, tuple(dict.fromkeys(unknown)))

    def _classes(self, batch: KernelBatch, form: str, precision: str, index: Index) -> Index:
        if form == "product":
            return np.full(len(index), _CLASS["gemm"], dtype=np.intp)
        if form == "simple":
            tables = [SIMPLE.get(batch.kinds[i].op, "") for i in index]
            return np.array(
                [_CLASS["reorder" if t in _REORDERS else "memory"] for t in tables], dtype=np.intp
            )
        groups, cin = batch["groups"][0, index], batch["cin"][0, index]
        dense = _CLASS["conv_int" if precision == "int8" else "conv_float"]
        return np.asarray(
            np.where((groups > 1.0) & (groups == cin), _CLASS["depthwise"], dense), dtype=np.intp
        )

    def _mixed(self, threads: int) -> dict[str, dict[str, float]]:
        """Constants at a number of threads: the fitted ones, or between them, linear in 1/threads."""
        out: dict[str, dict[str, float]] = {}
        for precision in ("float", "int8"):
            fitted = sorted(int(t.split("@")[1]) for t in self.constants if t.startswith(f"{precision}@"))
            if not fitted:
                if precision == "int8":
                    out[precision] = out["float"]
                    continue
                raise BadTargetError(f"target {self.target.name!r}: cost constants lack the table float@1")
            low = max((t for t in fitted if t <= threads), default=fitted[0])
            high = min((t for t in fitted if t >= threads), default=fitted[-1])
            share = 1.0 if low == high else (1.0 / threads - 1.0 / high) / (1.0 / low - 1.0 / high)
            one, other = (self.constants[f"{precision}@{t}"] for t in (low, high))
            names = sorted({*one, *other})
            pairs = [
                (n, one[n].value if n in one else 0.0, other[n].value if n in other else 0.0) for n in names
            ]
            out[precision] = {n: share * a + (1.0 - share) * b for n, a, b in pairs}
        return out
