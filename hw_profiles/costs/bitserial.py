"""A bit-serial array as HAQ simulated it: the published table where it has the shape, else a model of it.

Weight bits and activation bits count separately (Wang et al., CVPR 2019; the array is BISMO's, Umuroglu et
al., FPL 2018). Cycles of the table are nearly the most of three stages that overlap: activation bits stream
in one plane after the other (192 of the reduction at once, `serial`), sums of every pair of bit planes go out
(256 a cycle, `results`), and weight planes are fetched (`fetched`). Depthwise layers take 16
channels at once.
``cycles = (sum_i (c_i x_i)^q)^(1/q)``, constants by scripts/fit_bitserial.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hw_profiles.costs.base import CLASSES, CostModel, Costs, Features, Index, Shapes, ceil_to
from hw_profiles.costs.cpu import SIMPLE
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, VIEW_OPS, Array, KernelBatch, KernelKind
from hw_profiles.published import read_csv

_CLASS = {name: i for i, name in enumerate(CLASSES)}
REDUCTION, CHANNELS, RESULTS = 192.0, 16.0, 256.0
#: Columns that make a key of the table, with how many values each may take.
_KEY = (
    ("batch", 64), ("cin", 4096), ("cout", 4096), ("kernel", 16), ("stride", 8), ("out", 512),
    ("depthwise", 2),
    ("weight_bits", 16), ("act_bits", 16),
)  # fmt: skip
#: Images that the published table was simulated with.
TABLE_BATCH = 16

Keys = NDArray[np.int64]
Mask = NDArray[np.bool_]


def is_depthwise(s: Shapes) -> Mask:
    """Whether a convolution has one input channel per group."""
    return np.asarray((s.groups > 1.0) & (s.groups == s.cin))


def stages(s: Shapes) -> Features:
    """Cycles that each stage would take alone, (P, k)."""
    pixels = s.batch * s.out_h * s.out_w
    window = s.kernel_h * s.kernel_w
    thin = is_depthwise(s)
    depth = np.ceil(s.cin / s.groups * window / REDUCTION) * np.where(thin, 1.0, s.groups)
    blocks = np.where(thin, np.ceil(s.cout / CHANNELS), depth)
    outputs = np.where(thin, 0.0, s.cout / s.groups * depth)
    planes = s.weight_bits * s.act_bits
    return {
        "serial": s.act_bits * pixels * blocks,
        "results": planes * pixels * outputs / RESULTS,
        "fetched": s.weight_bits * np.where(thin, s.weight_elements, ceil_to(s.weight_elements, REDUCTION)),
    }


def combine(found: Features, constants: dict[str, float]) -> Array:
    """(sum (c x)^q)^(1/q) of the stages."""
    sharpness = constants["sharpness"]
    parts = [
        np.maximum(constants[name] * count, 1e-9) for name, count in found.items() if constants.get(name)
    ]
    most = np.maximum.reduce(parts)
    return np.asarray(most * sum((part / most) ** sharpness for part in parts) ** (1.0 / sharpness))


def table_keys(s: Shapes) -> Keys:
    """One integer per kernel, -1 where the table cannot have the shape."""
    thin = is_depthwise(s)
    fits = (s.kernel_h == s.kernel_w) & (s.stride_h == s.stride_w) & (s.out_h == s.out_w)
    fits &= thin | (s.groups == 1.0)
    renamed = {
        "kernel": s.kernel_h,
        "stride": s.stride_h,
        "out": s.out_h,
        "depthwise": thin.astype(np.float64),
    }
    key = np.zeros(s.batch.shape, dtype=np.int64)
    for name, size in _KEY:
        value = renamed[name] if name in renamed else getattr(s, name)
        fits &= (value >= 0) & (value < size) & (value == np.floor(value))
        key = key * size + np.where(fits, value, 0.0).astype(np.int64)
    return np.asarray(np.where(fits, key, -1))


@lru_cache(maxsize=4)
def read_table(name: str) -> tuple[Keys, Array]:
    """(sorted keys, cycles) of a table under data/; equal layers stand in it once."""
    found: dict[int, float] = {}
    for record in read_csv(name):
        values = {**record, "batch": str(TABLE_BATCH), "depthwise": str(int(float(record["groups"]) > 1.0))}
        key = 0
        for column, size in _KEY:
            key = key * size + int(values[column])
        found[key] = float(record["cycles"])
    keys = np.array(sorted(found), dtype=np.int64)
    return keys, np.array([found[int(key)] for key in keys])


@lru_cache(maxsize=256)
def _members(kinds: tuple[KernelKind, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(kernels with MACs, other kernels that move data)."""
    matrix = tuple(i for i, k in enumerate(kinds) if k.op in CONV_OPS or k.op in MATMUL_OPS)
    return matrix, tuple(i for i, k in enumerate(kinds) if i not in matrix and k.op not in VIEW_OPS)


class BitSerialCost(CostModel):
    """HAQ's table and, off it, the stages fitted to it. Threads mean nothing here."""

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        per_us = 1.0 / (self.target.device.clock_ghz.value * 1e3)
        matrix, others = _members(batch.kinds)
        busy, exact = np.zeros(batch.shape), np.zeros(batch.shape, dtype=np.bool_)
        classes = np.full(len(batch.kinds), _CLASS["memory"], dtype=np.intp)
        if matrix:
            index: Index = np.asarray(matrix, dtype=np.intp)
            s = _shapes(batch, index)
            found, cycles = self.look_up(s)
            busy[:, index] = np.where(found, cycles, self.model_cycles(s)) * per_us
            exact[:, index] = found
            gemm = np.array([batch.kinds[i].op in MATMUL_OPS for i in matrix])
            kinds = np.where(is_depthwise(s)[0], _CLASS["depthwise"], _CLASS["conv_int"])
            classes[index] = np.where(gemm, _CLASS["gemm"], kinds)
        if others:
            s = _shapes(batch, np.asarray(others, dtype=np.intp))
            bits = (s.in_elements + s.out_elements) * s.act_bits
            busy[:, list(others)] = bits * self.value("simple", "bits") * per_us
        unknown = [batch.kinds[i].op for i in others if batch.kinds[i].op not in SIMPLE]
        return Costs(busy, np.zeros(len(batch.kinds)), 0.0, classes, tuple(dict.fromkeys(unknown)), exact)

    def model_cycles(self, s: Shapes) -> Array:
        """Cycles by the stages alone, (P, k)."""
        dense, thin = (
            {name: c.value for name, c in self.constants[table].items()} for table in ("dense", "depthwise")
        )
        found = stages(s)
        return np.asarray(np.where(is_depthwise(s), combine(found, thin), combine(found, dense)))

    def look_up(self, s: Shapes) -> tuple[Mask, Array]:
        """Whether the table has each kernel, and its cycles where it does."""
        if self.target.cost.table is None:
            return np.zeros(s.batch.shape, dtype=np.bool_), np.zeros(s.batch.shape)
        keys, cycles = read_table(self.target.cost.table)
        wanted = table_keys(s)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.asarray(keys[at] == wanted), cycles[at]


def _shapes(batch: KernelBatch, members: Index) -> Shapes:
    nothing = np.zeros((len(batch), 1))
    return Shapes(batch, members, (nothing, nothing))
