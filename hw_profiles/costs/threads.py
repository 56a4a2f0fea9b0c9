"""How onnxruntime divides a kernel among threads: by its own rules, which are steps and not slopes.

Matrix products and convolutions outside the blocked layout take another thread for every 64 Ki multiply-
accumulates (MLAS_SGEMM_THREAD_COMPLEXITY, MLAS_QGEMM_THREAD_COMPLEXITY; QLinearConv alike); grouped ones are
divided by groups. Convolutions and pools in the blocked layout are divided whatever their size, by rows of a
set of four filter blocks; what leaves the layout by blocks of channels (MlasReorderOutputNchw). What enters
it takes a thread for 48 Ki elements, maps over elements follow Eigen's cost model: two threads from 0.21
million cycles on (0.1 to start, 0.1 for each thread, 11/64 cycle a byte). A kernel takes as long as its
longest part.

Where the source says little, the rule is what kernels were measured to do with one and two threads (x86-64,
onnxruntime 1.32): a divided one takes 0.52 of the time and 3.5 us under the profiler, another 1.03 and 1.
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
#: Elements beyond which what leaves the blocked layout is divided.
LEAST_REORDERED = 1024.0
#: Eigen's cost model: cycles to start, for each thread more, and a byte read or written.
STARTING, CYCLES_A_THREAD, CYCLES_A_BYTE = 1e5, 1e5, 11.0 / 64.0
#: Cycles an element of maps that compute more than a sum, as onnxruntime tells the cost model or as measured.
CYCLES = {
    "special": 30.0,
    "erf": 30.0,
    "gelu": 30.0,
    "softmax": 30.0,
    "norm": 8.0,
    "quantise": 2.0,
    "quantise_dynamic": 3.0,
    "qadd": 0.8,
    "qpool": 1.3,
}
#: The same of sums along an axis, for each element read.
CYCLES_SUMMED = 10.0
#: Elements from which copies are divided, as measured; the transposition of three channels is not.
COPIED, TRANSPOSED, CHANNELS_TRANSPOSED = 2e5, 1e5, 4.0
#: Filter blocks that a convolution in the blocked layout computes together; pixels that an integer one does.
FILTER_BLOCKS, PIXELS = 4.0, 6.0
#: Tables of operations that run on one thread.
_SERIAL = frozenset({"", "transpose", "qconcat", "dequantise", "qpool_nhwc", "unknown"})
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
    pixels = s.batch * s.out_h * s.out_w
    columns = np.ceil(s.cout / LANES)
    found = np.where(s.cout > pixels, _part(columns, wanted), _part(pixels, wanted))
    several = _part(s.batch * s.groups, np.full(s.groups.shape, float(threads)))
    return np.asarray(np.where(s.groups > 1.0, several, found))


def _simple(batch: KernelBatch, s: Shapes, members: list[int], threads: int) -> Array:
    """Operations without multiply-accumulates."""
    found = np.ones(s.out_elements.shape)
    for j, i in enumerate(members):
        table = simple_table(batch.kinds[i])
        written, read = s.out_elements[:, j], s.in_elements[:, j]
        if table in _SERIAL:
            continue
        if table in _BLOCKED_POOLS:
            units = s.batch[:, j] * np.ceil(s.cin[:, j] / LANES) * s.out_h[:, j]
            found[:, j] = _part(units, np.full(written.shape, float(threads)))
            continue
        if table == "reorder_out":
            positions = s.batch[:, j] * s.out_h[:, j] * s.out_w[:, j]
            blocks = s.batch[:, j] * np.ceil(written / np.maximum(positions, 1.0) / LANES)
            found[:, j] = np.where(
                written > LEAST_REORDERED, _part(blocks, np.full(written.shape, float(threads))), 1.0
            )
            continue
        if table == "skipnorm":  # by rows, which are (batch, tokens)
            wanted = np.minimum(np.maximum(s.batch[:, j] * s.cin[:, j], 1.0), threads)
        elif table == "reorder_in":
            wanted = np.clip(np.floor(written / REORDERED_A_THREAD), 1.0, threads)
        elif table in ("concat", "qtranspose"):
            least = COPIED if table == "concat" else TRANSPOSED
            large = (written >= least) & ((table == "concat") | (s.cin[:, j] >= CHANNELS_TRANSPOSED))
            wanted = np.where(large, threads, 1.0)
        elif table == "reduce_axis":
            wanted = np.clip(
                np.floor((CYCLES_SUMMED * read - STARTING) / CYCLES_A_THREAD + 0.9), 1.0, threads
            )
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
