"""BitFusion: a systolic array of fusion units; the simulator's table where it has the shape, else a model.

The array is 64 rows (reduction) by 8 columns (output channels) at 8 x 8 bits; a unit doubles its columns for
4-bit weights, and again for 4-bit activations (Sharma et al., ISCA 2018). The cycles of the table are
``cycles = (compute^q + memory^q)^(1/q)``: compute is the counted one of `compute_cycles` (its factor fits as
1.00), memory a sum of constant x bits, both overlapping softly. Constants by scripts/fit_fpga.py.
"""

from __future__ import annotations

import csv
import gzip
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hw_profiles.costs.base import CLASSES, CostModel, Costs, Features, Index, Shapes
from hw_profiles.costs.cpu import SIMPLE
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, VIEW_OPS, Array, KernelBatch, KernelKind
from hw_profiles.target import DATA_FOLDER

_CLASS = {name: i for i, name in enumerate(CLASSES)}
ROWS, COLUMNS = 64.0, 8.0
#: Table columns that make a key, with how many values each may take.
_KEY = (("cin", 8192), ("cout", 8192), ("in_h", 1024), ("kernel_h", 16), ("stride_h", 8), ("depthwise", 2))
_KEY_BITS = (("weight_bits", 32), ("act_bits", 32))

Keys = NDArray[np.int64]
Mask = NDArray[np.bool_]


def fused_bits(bits: Array) -> Array:
    """Bits as the units take them: 2, 4, 8, then multiples of 8 in passes."""
    return np.asarray(np.where(bits <= 2.0, 2.0, np.where(bits <= 4.0, 4.0, np.ceil(bits / 8.0) * 8.0)))


def is_depthwise(s: Shapes) -> Mask:
    """Whether a convolution has one input channel per group."""
    return np.asarray((s.groups > 1.0) & (s.groups == s.cin))


def compute_cycles(s: Shapes) -> Array:
    """Cycles of the array, (P, k): rows take the reduction, columns the channels, taps come in turn."""
    split = (8.0 / fused_bits(s.weight_bits)) * (8.0 / fused_bits(s.act_bits))
    steps = s.batch * s.out_h * s.out_w * s.kernel_h * s.kernel_w
    depth, outputs = np.ceil(s.cin / s.groups / ROWS), np.ceil(s.cout / s.groups / (COLUMNS * split))
    dense = s.groups * depth * outputs
    return np.asarray(steps * np.where(is_depthwise(s), np.ceil(s.cout / (COLUMNS * split)), dense))


def memory_features(s: Shapes) -> Features:
    """Bits that move: weights, inputs, outputs at activation width and at 32 bits, inputs read again."""
    inputs = s.in_elements * s.act_bits
    return {
        "weights": s.weight_elements * s.weight_bits,
        "inputs": inputs,
        "outputs": s.out_elements * s.act_bits,
        "sums": s.out_elements * 32.0,
        "reread": inputs * s.cout,
        "overhead": np.ones(s.batch.shape),
    }


def energy_features(s: Shapes, cycles: Array) -> Features:
    """What costs energy: bit products, MACs, bits moved, and leakage over time."""
    steps = s.batch * s.out_h * s.out_w * s.kernel_h * s.kernel_w
    macs = steps * s.cout * s.cin / s.groups
    products = macs * fused_bits(s.weight_bits) * fused_bits(s.act_bits) / 64.0
    moved = memory_features(s)
    names = ("weights", "inputs", "outputs", "sums")
    return {"products": products, "macs": macs, "cycles": cycles, **{name: moved[name] for name in names}}


def table_keys(s: Shapes) -> Keys:
    """One integer per kernel, -1 where the table cannot have the shape (not square, a batch, groups)."""
    thin = is_depthwise(s)
    square = (s.kernel_h == s.kernel_w) & (s.in_h == s.in_w) & (s.stride_h == s.stride_w) & (s.batch == 1.0)
    square &= (s.out_h == np.ceil(s.in_h / s.stride_h)) & (thin | (s.groups == 1.0))
    fields = {"depthwise": thin.astype(np.float64)}
    key = np.zeros(s.batch.shape, dtype=np.int64)
    for name, size in (*_KEY, *_KEY_BITS):
        value = fields[name] if name in fields else getattr(s, name)
        square &= (value >= 0) & (value < size) & (value == np.floor(value))
        key = key * size + np.where(square, value, 0.0).astype(np.int64)
    return np.asarray(np.where(square, key, -1))


@lru_cache(maxsize=4)
def read_table(name: str) -> tuple[Keys, Array, Array]:
    """(sorted keys, cycles, millijoules) of a table file under data/."""
    keys, cycles, energies = [], [], []
    with gzip.open(DATA_FOLDER / name, "rt", encoding="utf-8") as file:
        file.readline()
        for record in csv.DictReader(file):
            key = 0
            for column, size in (*_KEY, *_KEY_BITS):
                key = key * size + int(record[column])
            keys.append(key)
            cycles.append(float(record["cycles"]))
            energies.append(float(record["mj"]))
    order = np.argsort(np.array(keys))
    return np.array(keys, dtype=np.int64)[order], np.array(cycles)[order], np.array(energies)[order]


@lru_cache(maxsize=256)
def _matrix_members(kinds: tuple[KernelKind, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(kernels with MACs, other kernels that move data)."""
    matrix = tuple(i for i, k in enumerate(kinds) if k.op in CONV_OPS or k.op in MATMUL_OPS)
    return matrix, tuple(i for i, k in enumerate(kinds) if i not in matrix and k.op not in VIEW_OPS)


class BitFusionCost(CostModel):
    """The simulator's table and, off the table, the overlap model fitted to it."""

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        per_us = 1.0 / (self.target.device.clock_ghz.value * 1e3)
        cycles, exact, _ = self._matrix(batch)
        busy = cycles * per_us
        classes = np.full(len(batch.kinds), _CLASS["memory"], dtype=np.intp)
        matrix, others = _matrix_members(batch.kinds)
        if matrix:
            thin = is_depthwise(_shapes(batch, matrix))[0]
            gemm = np.array([batch.kinds[i].op in MATMUL_OPS for i in matrix])
            kinds = np.where(thin, _CLASS["depthwise"], np.where(gemm, _CLASS["gemm"], _CLASS["conv_int"]))
            classes[list(matrix)] = kinds
        if others:
            s = _shapes(batch, others)
            bits = (s.in_elements + s.out_elements) * s.act_bits
            busy[:, list(others)] = (
                bits * self.value("simple", "bits") + self.value("simple", "overhead")
            ) * per_us
        unknown = [batch.kinds[i].op for i in others if batch.kinds[i].op not in SIMPLE]
        overhead = np.zeros(len(batch.kinds))
        return Costs(busy, overhead, 0.0, classes, tuple(dict.fromkeys(unknown)), exact)

    def energy_mj(self, batch: KernelBatch) -> Array | None:
        """(P,) millijoules by the simulator's table, or its model, of the kernels that have MACs."""
        return np.asarray(self._matrix(batch)[2].sum(axis=1))

    def model_cycles(self, s: Shapes) -> Array:
        """Cycles by the overlap model alone, (P, k)."""
        compute, thin = compute_cycles(s), is_depthwise(s)
        features = memory_features(s)
        dense = self._overlap("dense", compute, features)
        return np.where(thin, self._overlap("depthwise", compute, features), dense) if thin.any() else dense

    def _overlap(self, table: str, compute: Array, features: Features) -> Array:
        constants = self.constants[table]
        memory = sum(constants[name].value * count for name, count in features.items() if name in constants)
        return overlap(compute * constants["compute"].value, np.asarray(memory), constants["sharpness"].value)

    def _matrix(self, batch: KernelBatch) -> tuple[Array, Mask, Array]:
        """(P, K) cycles, whether from the table, and millijoules; zero for kernels without MACs."""
        cycles, energy = np.zeros(batch.shape), np.zeros(batch.shape)
        exact = np.zeros(batch.shape, dtype=np.bool_)
        members = _matrix_members(batch.kinds)[0]
        if not members:
            return cycles, exact, energy
        index: Index = np.asarray(members, dtype=np.intp)
        s = _shapes(batch, members)
        modelled = self.model_cycles(s)
        joules = self._model_energy(s, modelled)
        found, table_cycles, table_energy = self._look_up(s)
        cycles[:, index] = np.where(found, table_cycles, modelled)
        energy[:, index] = np.where(found, table_energy, joules)
        exact[:, index] = found
        return cycles, exact, energy

    def _model_energy(self, s: Shapes, cycles: Array) -> Array:
        features, thin = energy_features(s, cycles), is_depthwise(s)
        tables = [self.constants["energy.dense"], self.constants["energy.depthwise"]]
        dense, narrow = (sum(t[n].value * c for n, c in features.items() if n in t) for t in tables)
        return np.asarray(np.where(thin, narrow, dense) * 1e-9)

    def _look_up(self, s: Shapes) -> tuple[Mask, Array, Array]:
        """Whether the table has each kernel, and its cycles and millijoules where it does."""
        zero = np.zeros(s.batch.shape)
        if self.target.cost.table is None:
            return zero.astype(np.bool_), zero, zero
        keys, cycles, energies = read_table(self.target.cost.table)
        wanted = table_keys(s)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return keys[at] == wanted, cycles[at], energies[at]


def overlap(compute: Array, memory: Array, sharpness: float) -> Array:
    """(compute^q + memory^q)^(1/q): between their sum (q = 1) and their maximum (q large)."""
    most = np.maximum(np.maximum(compute, memory), 1e-12)
    ratio = np.minimum(compute, memory) / most
    return np.asarray(most * (1.0 + ratio**sharpness) ** (1.0 / sharpness))


def _shapes(batch: KernelBatch, members: tuple[int, ...]) -> Shapes:
    nothing = np.zeros((len(batch), 1))
    return Shapes(batch, members, (nothing, nothing))
