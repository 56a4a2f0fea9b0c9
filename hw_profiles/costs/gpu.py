"""GPU kernels: waves of output tiles over the multiprocessors, memory traffic, and a launch per kernel.

time = launch + sum of constant x feature. A convolution is a matrix product of M = batch x pixels rows,
N = output channels columns and depth K; tiles of it are dealt to the multiprocessors in waves, which is
where the staircase comes from. Constants are nanoseconds per unit on the reference GPU of the fit, scaled
to the target by the ratios of data-sheet peaks (`scale` table).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hw_profiles.costs.base import CLASSES, CostModel, Costs, Features, Index, Shapes, ceil_to
from hw_profiles.costs.cpu import SIMPLE
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, VIEW_OPS, Array, KernelBatch, KernelKind

_CLASS = {name: i for i, name in enumerate(CLASSES)}
#: Output tiles (rows, columns) of the matrix kernels that the library chooses among.
TILES = ((128.0, 128.0), (64.0, 64.0), (32.0, 32.0))
_WIDTHS = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
#: Channels that one vector load or tensor-core step takes.
_CHANNEL_STEP = {"fp32": 1.0, "fp16": 8.0, "int8": 16.0}


def matrix_features(s: Shapes, precision: str, processors: float) -> Features:
    """Waves of tiles, depth, padded MACs and bytes of a convolution or product, (P, k) each."""
    step, width = _CHANNEL_STEP[precision], _WIDTHS[precision]
    rows = s.batch * s.out_h * s.out_w
    columns = ceil_to(s.cout / s.groups, step)
    depth = ceil_to(s.cin / s.groups, step) * s.kernel_h * s.kernel_w
    waves = [
        np.ceil(np.ceil(rows / m) * np.ceil(columns / n) * s.groups / processors) * (m * n) * depth
        for m, n in TILES
    ]
    best = np.minimum(np.minimum(waves[0], 1.3 * waves[1]), 2.0 * waves[2])
    return {
        "waves": best * processors,
        "macs": rows * columns * s.groups * depth,
        "depth": depth,
        "read": s.in_elements * width,
        "written": s.out_elements * width,
        "weights": s.weight_elements * width,
    }


def depthwise_features(s: Shapes, precision: str) -> Features:
    """Taps and bytes of a depthwise convolution."""
    width = _WIDTHS[precision]
    taps = s.out_elements * s.kernel_h * s.kernel_w
    return {"taps": taps, "read": s.in_elements * width, "written": s.out_elements * width}


def precision_of(kind: KernelKind) -> str:
    """fp32, fp16 or int8; arrays with bits of their own count as int8."""
    return kind.precision if kind.precision in _WIDTHS else "int8"


@lru_cache(maxsize=256)
def _groups(kinds: tuple[KernelKind, ...]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Kernels by (matrix or simple, precision)."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, kind in enumerate(kinds):
        matrix = kind.op in CONV_OPS or kind.op in MATMUL_OPS
        if matrix or kind.op not in VIEW_OPS:
            found.setdefault(("matrix" if matrix else "simple", precision_of(kind)), []).append(i)
    return {key: tuple(members) for key, members in found.items()}


class GpuCost(CostModel):
    """Wave model of a GPU under a graph compiler. Threads mean nothing here."""

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        busy = np.zeros(batch.shape)
        overhead = np.zeros(len(batch.kinds))
        classes = np.full(len(batch.kinds), _CLASS["memory"], dtype=np.intp)
        nothing = np.zeros((len(batch), 1))
        for (form, precision), members in _groups(batch.kinds).items():
            index = np.asarray(members, dtype=np.intp)
            s = Shapes(batch, index, (nothing, nothing))
            overhead[index] = self.value("launch", "overhead") * self.value("scale", "launch", 1.0)
            if form == "matrix":
                busy[:, index] = self._matrix(s, precision)
                classes[index] = _classes(s, precision)
            else:
                width = _WIDTHS[precision]
                rate = self.value("simple", "moved") * self.value("scale", "memory", 1.0)
                busy[:, index] = (s.in_elements + s.out_elements) * width * rate
        unknown = [k.op for k in batch.kinds if not _is_known(k)]
        network = self.value("network", "overhead", 0.0) * 1e-3
        return Costs(busy * 1e-3, overhead * 1e-3, network, classes, tuple(dict.fromkeys(unknown)))

    def _matrix(self, s: Shapes, precision: str) -> Array:
        window, stride = s.kernel_h * s.kernel_w, s.stride_h
        features = matrix_features(s, precision, self.value("scale", "processors"))
        dense = np.zeros(s.batch.shape)
        forms = {"pointwise": window == 1.0, "square": (window == 9.0) & (stride == 1.0)}
        forms["window"] = ~(forms["pointwise"] | forms["square"])
        for form, mask in forms.items():
            if mask.any():
                dense = np.where(mask, self._weigh(f"{form}.{precision}", precision, features), dense)
        thin = (s.groups > 1.0) & (s.groups == s.cin)
        if thin.any():
            taps = self._weigh(f"depthwise.{precision}", precision, depthwise_features(s, precision))
            dense = np.where(thin, taps, dense)
        return dense

    def _weigh(self, table: str, precision: str, features: Features) -> Array:
        constants = self.constants[table]
        compute = self.value("scale", f"compute_{precision}", 1.0)
        memory = self.value("scale", "memory", 1.0)
        total: Array | float = 0.0
        for name, count in features.items():
            if name in constants:
                scale = compute if name in ("waves", "macs", "depth", "taps") else memory
                total = total + constants[name].value * scale * count
        return np.asarray(total)


def _classes(s: Shapes, precision: str) -> Index:
    dense = _CLASS["conv_int" if precision == "int8" else "conv_float"]
    thin = (s.groups[0] > 1.0) & (s.groups[0] == s.cin[0])
    return np.asarray(np.where(thin, _CLASS["depthwise"], dense), dtype=np.intp)


def _is_known(kind: KernelKind) -> bool:
    return kind.op in CONV_OPS or kind.op in MATMUL_OPS or kind.op in VIEW_OPS or kind.op in SIMPLE
