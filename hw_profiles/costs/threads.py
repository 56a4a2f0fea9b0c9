"""How onnxruntime divides a kernel among threads: by its own rules, which are steps and not slopes.

Matrix products and convolutions outside the blocked layout take another thread for every 64 Ki multiply-
accumulates (MLAS_SGEMM_THREAD_COMPLEXITY, MLAS_QGEMM_THREAD_COMPLEXITY; QLinearConv alike). Convolutions and
pools in the blocked layout are divided whatever their size, by rows of a set of four filter blocks. Reorders
take a thread for 48 Ki elements, maps over elements follow Eigen's cost model: two threads from 0.21 million
cycles on (0.1 to start, 0.1 for each thread, 11/64 cycle a byte). A kernel takes as long as its longest part.
"""

from __future__ import annotations

import numpy as np

from hw_profiles.costs.base import Shapes, ceil_to
from hw_profiles.costs.cpu import families, simple_table
from hw_profiles.costs.cpu_loops import LANES
from hw_profiles.kernel import Array, KernelBatch, activation_width

#: Multiply-accumulates that make a matrix product or convolution take another thread.
MACS_A_THREAD = 64.0 * 1024.0
#: Elements that make a reorder take another thread.
REORDERED_A_THREAD = 48.0 * 1024.0
#: Eigen's cost model: cycles to start, for each thread more, and a byte read or written.
STARTING, CYCLES_A_THREAD, CYCLES_A_BYTE = 1e5, 1e5, 11.0 / 64.0
#: Cycles an element of maps that compute more than a sum, as onnxruntime tells the cost model.
CYCLES = {
    "special": 30.0,
    "erf": 30.0,
    "gelu": 30.0,
    "softmax": 30.0,
    "quantise": 2.0,
    "quantise_dynamic": 3.0,
    "qadd": 8.0,
}
#: Filter blocks that a convolution in the blocked layout computes together; pixels that an integer one does.
FILTER_BLOCKS, PIXELS = 4.0, 6.0
#: Tables of operations that run on one thread.
_SERIAL = frozenset({"", "transpose", "qtranspose", "concat", "qconcat", "unknown"})
_BLOCKED_POOLS = frozenset({"pool_nchwc", "reduce_nchwc", "pool", "reduce"})


def longest_part(batch: KernelBatch, threads: int) -> Array:
    """(P, K) share of a kernel that its busiest thread does: 1 where it is not divided, else 1/threads up."""
    found = np.ones(batch.shape)
    if threads > 1:
        for name, members in families(batch.kinds).items():
            index = np.asarray(members, dtype=np.intp)
            none = np.zeros((batch.shape[0], 1))
            s = Shapes(batch, index, (none, none))
            if name == "simple":
                found[:, index] = _simple(batch, s, members, threads)
            else:
                found[:, index] = _bearing(name, s, batch.macs()[:, index], threads)
    return found


def _bearing(name: str, s: Shapes, macs: Array, threads: int) -> Array:
    """Convolutions and matrix products."""
    if name == "nchwc":
        together = np.where((s.groups > 1.0) & (s.groups == s.cin), 1.0, FILTER_BLOCKS)
        units = s.batch * np.ceil(s.cout / (LANES * together)) * s.out_h
        return _part(units, np.full(units.shape, float(threads)))
    wanted = np.minimum(np.floor(macs / MACS_A_THREAD) + 1.0, threads)
    if name.startswith("int8"):
        pixels = np.maximum(s.out_h * s.out_w, 1.0)
        return np.minimum(ceil_to(pixels / wanted, PIXELS), pixels) / pixels
    if name.startswith("gemm") and bool((s.groups > 1.0).any()):
        return _part(s.groups, np.full(s.groups.shape, float(threads)))
    pixels = s.batch * s.out_h * s.out_w
    columns = np.ceil(s.cout / LANES)
    return np.asarray(np.where(s.cout > pixels, _part(columns, wanted), _part(pixels, wanted)))


def _simple(batch: KernelBatch, s: Shapes, members: list[int], threads: int) -> Array:
    """Operations without multiply-accumulates."""
    found = np.ones(s.out_elements.shape)
    for j, i in enumerate(members):
        table = simple_table(batch.kinds[i])
        written, read = s.out_elements[:, j], s.in_elements[:, j]
        if table in _SERIAL:
            continue
        if table in _BLOCKED_POOLS:
            wanted = np.full(written.shape, float(threads))
            units = s.batch[:, j] * np.ceil(s.cin[:, j] / LANES) * s.out_h[:, j]
            found[:, j] = _part(np.maximum(units, 1.0), wanted)
            continue
        if table in ("reorder_in", "reorder_out"):
            wanted = np.clip(np.floor(written / REORDERED_A_THREAD), 1.0, threads)
        else:
            width_in, width_out = activation_width(batch.kinds[i])
            taps = s.kernel_h[:, j] * s.kernel_w[:, j]
            cycles = written * CYCLES.get(table, 1.0) * np.maximum(taps, 1.0)
            cycles = cycles + CYCLES_A_BYTE * (read * width_in + written * width_out)
            wanted = np.clip(np.floor((cycles - STARTING) / CYCLES_A_THREAD + 0.9), 1.0, threads)
        found[:, j] = 1.0 / wanted
    return found


def _part(units: Array, wanted: Array) -> Array:
    """Share of the longest of ``wanted`` parts of so many units."""
    whole = np.maximum(units, 1.0)
    return np.asarray(np.ceil(whole / wanted) / whole)


__all__ = ["longest_part"]
