"""Loop counts of the CPU kernels: what onnxruntime's float, blocked and integer kernels do how often.

Every function takes shapes and returns counts by feature, (P, k) arrays. Channels, pixels and depth are
rounded up as the kernel rounds them: that is the staircase. Costs multiply the counts with constants.
"""

from __future__ import annotations

import numpy as np

from hw_profiles.costs.base import FeatureFunction, Features, Shapes, ceil_to
from hw_profiles.kernel import Array

LANES = 16.0  # fp32 lanes of a 512-bit register; the int8 kernels pack 16 output channels too
_ROWS = 6.0  # output rows one pass of the matrix kernels keeps in registers


def _weights(s: Shapes, width: float) -> Features:
    held = s.weight_elements * width
    return {"weight": held, "weight_core": held * s.cold_core, "weight_last": held * s.cold_last}


def _pixels(s: Shapes) -> Array:
    return np.asarray(s.batch * s.out_h * s.out_w)


def _moved(s: Shapes, width: float) -> Features:
    return {"moved": (s.in_elements + s.out_elements) * width}


def nchwc_dense(s: Shapes) -> Features:
    """Blocked convolution: 16 output channels a block, four blocks and six pixels held in registers."""
    window = s.kernel_h * s.kernel_w
    blocks = np.ceil(s.cout / s.groups / LANES) * s.groups
    cin = s.cin / s.groups
    cin = np.where(cin < LANES, cin, ceil_to(cin, LANES))
    passes = np.ceil(cin / LANES)
    pixels = _pixels(s)
    quads = np.ceil(blocks / 4.0)
    rows = s.batch * s.out_h
    return {
        "macs": pixels * blocks * LANES * cin * window,
        "broadcast": pixels * cin * window * quads,
        "accumulate": pixels * blocks * LANES * passes,
        "edge": rows * blocks * LANES * cin * window * (s.kernel_w - 1.0),
        "rows": rows * quads * passes,
        **_moved(s, 4.0),
        **_weights(s, 4.0),
    }


def nchwc_depthwise(s: Shapes) -> Features:
    """Blocked depthwise: one multiply per output and tap, channels in blocks of 16."""
    channels = ceil_to(s.cout, LANES)
    taps = channels * s.kernel_h * s.kernel_w
    rows = s.batch * s.out_h
    return {
        "taps": _pixels(s) * taps,
        "edge": rows * taps,
        "rows": rows * channels / LANES,
        **_moved(s, 4.0),
    }


def plain_dense(s: Shapes) -> Features:
    """im2col and a float matrix product per image and group."""
    window = s.kernel_h * s.kernel_w
    depth = s.cin / s.groups * window
    columns = ceil_to(s.out_h * s.out_w, LANES)
    matrices = s.batch * s.groups
    direct = (window == 1.0) & (s.stride_h == 1.0)
    return {
        "macs": matrices * columns * depth * s.cout / s.groups,
        "tiles": matrices * columns * depth * np.ceil(s.cout / s.groups / 12.0),
        "gather": np.where(direct, 0.0, matrices * columns * depth),
        "gather_strided": np.where(s.stride_w > 1.0, matrices * columns * depth, 0.0),
        "gather_rows": np.where(direct, 0.0, matrices * s.out_h * depth),
        "matrices": matrices,
        **_moved(s, 4.0),
        **_weights(s, 4.0),
    }


def plain_depthwise(s: Shapes) -> Features:
    """Depthwise outside the blocked layout: a tiny product per channel."""
    taps = s.cout * s.kernel_h * s.kernel_w
    return {
        "taps": _pixels(s) * taps,
        "taps_strided": np.where(s.stride_w > 1.0, _pixels(s) * taps, 0.0),
        "row_taps": s.batch * s.out_h * taps,
        "rows": s.batch * s.out_h * s.cout,
        "matrices": s.batch * s.cout,
        **_moved(s, 4.0),
    }


def int8_dense(s: Shapes) -> Features:
    """Gather of pixels, then an integer product: depth in fours, columns in sixteens, rows in sixes.

    Rounding back to 8 bits goes by sixteen channels, then by four, then one by one.
    """
    window = s.kernel_h * s.kernel_w
    depth = ceil_to(s.cin / s.groups * window, 4.0)
    outputs = s.cout / s.groups
    columns = ceil_to(outputs, LANES)
    pixels = _pixels(s) * s.groups
    direct = (window == 1.0) & (s.stride_h == 1.0)
    left = np.mod(outputs, LANES)
    return {
        "macs": pixels * columns * depth,
        "tiles": np.ceil(pixels / _ROWS) * columns * depth,
        "broadcast": pixels * depth * np.ceil(columns / 48.0),
        "depth": pixels * depth,
        "ragged": np.where(np.mod(s.cin / s.groups, 4.0) == 0.0, 0.0, pixels * depth),
        "gather": np.where(direct, 0.0, pixels * window),
        "copies": np.where(direct, 0.0, pixels * s.kernel_h),
        "pixels": pixels,
        "sixteens": pixels * (outputs - left),
        "fours": pixels * np.floor(left / 4.0),
        "ones": pixels * np.mod(outputs, 4.0),
        "any_ones": np.where(np.mod(outputs, 4.0) == 0.0, 0.0, pixels),
        "narrow": np.where(outputs < LANES, pixels, 0.0),
        **_moved(s, 1.0),
        **_weights(s, 1.0),
    }


def int8_depthwise(s: Shapes) -> Features:
    """Integer depthwise, channels last: 16 channels a step, what is left over one by one."""
    window = s.kernel_h * s.kernel_w
    pixels = _pixels(s)
    left = np.mod(s.cout, LANES)
    return {
        "taps": pixels * (s.cout - left) * window,
        "left_taps": pixels * left * window,
        "left": np.where(left > 0.0, pixels * window, 0.0),
        "gather": pixels * window,
        "outputs": pixels * s.cout,
        "fours": pixels * np.floor(left / 4.0),
        "ones": pixels * np.mod(s.cout, 4.0),
        "any_ones": np.where(np.mod(s.cout, 4.0) == 0.0, 0.0, pixels),
        **_moved(s, 1.0),
    }


def float_gemm(s: Shapes) -> Features:
    """Float matrix product; a single row is bound by the weights."""
    rows = s.batch * s.out_h * s.out_w * s.groups
    columns = ceil_to(s.cout, LANES)
    return {
        "macs": rows * columns * s.cin,
        "tiles": np.ceil(rows / 12.0) * columns * s.cin,
        "inputs": rows * s.cin,
        "outputs": rows * s.cout,
        "matrices": s.batch * s.groups,
        **_weights(s, 4.0),
    }


def int8_gemm(s: Shapes) -> Features:
    """Integer matrix product."""
    rows = s.batch * s.out_h * s.out_w * s.groups
    columns = ceil_to(s.cout, LANES)
    depth = ceil_to(s.cin, 4.0)
    return {
        "macs": rows * columns * depth,
        "tiles": np.ceil(rows / _ROWS) * columns * depth,
        "inputs": rows * s.cin,
        "outputs": rows * s.cout,
        "matrices": s.batch * s.groups,
        **_weights(s, 1.0),
    }


#: Matrix work by family and variant. The variant is told from the shapes, see `_variant`.
MODELS: dict[str, FeatureFunction] = {
    "nchwc.dense": nchwc_dense,
    "nchwc.pointwise": nchwc_dense,
    "nchwc.first": nchwc_dense,
    "nchwc.wide": nchwc_dense,
    "nchwc.depthwise": nchwc_depthwise,
    "plain.dense": plain_dense,
    "plain.pointwise": plain_dense,
    "plain.depthwise": plain_depthwise,
    "int8.dense": int8_dense,
    "int8.pointwise": int8_dense,
    "int8.depthwise": int8_depthwise,
    "int8.grouped": int8_dense,
    "int8.gathered": int8_dense,
    "int8.pointwise_gathered": int8_dense,
    "int8.depthwise_gathered": int8_depthwise,
    "plain.grouped": plain_dense,
    "gemm.float": float_gemm,
    "gemm.int8": int8_gemm,
    "gemm.int8_dynamic": int8_gemm,
}
