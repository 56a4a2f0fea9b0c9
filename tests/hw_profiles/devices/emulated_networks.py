"""Networks for tests of emulated processors, and what the integer one must answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hw_profiles.devices import sysroot
from hw_profiles.devices.sysroot import BUILD_COMMAND, SYSROOT_VERSION


def float_network(channels: int = 16, seed: int = 0) -> bytes:
    """Convolution, ReLU, convolution, pooling on (1, 3, 16, 16)."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (channels, 3, 3, 3), "v": (channels, channels, 3, 3)}
    weights = {n: (0.2 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["c"], "second", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], "pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 1, 1])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def weight_codes(limit: int) -> np.ndarray:
    """Weights of the integer network."""
    return np.random.default_rng(0).integers(-limit, limit + 1, (32, 32, 3, 3)).astype(np.int8)


def integer_network(limit: int = 127) -> bytes:
    """One 3x3 convolution between u8 tensors, as quantise/dequantise: y = x * w * 2^-11, zero points 128."""
    constants = {
        "w_q": weight_codes(limit),
        "w_s": np.full(32, 2.0**-6, np.float32), "w_z": np.zeros(32, np.int8),
        "s": np.asarray(2.0**-5, np.float32), "t": np.asarray(1.0, np.float32),
        "z": np.asarray(128, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"], "x_dq"),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], "w_dq", axis=0),
        helper.make_node("Conv", ["xf", "w"], ["yf"], "conv", pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["yf", "t", "z"], ["y"], "y_q"),
    ]
    graph = helper.make_graph(
        nodes,
        "integer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 32, 14, 14])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 32, 14, 14])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def convolved(x: np.ndarray, limit: int) -> np.ndarray:
    """What the integer network is to answer, in whole numbers."""
    padded = np.pad(x.astype(np.int64) - 128, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums = np.einsum("bcyxhw,ochw->boyx", windows, weight_codes(limit).astype(np.int64))
    return np.clip(np.rint(sums / 2**11) + 128, 0, 255).astype(np.uint8)


def built_sysroot() -> Path:
    """The user's sysroot: tests have a cache of their own, which has none. Skips the test without it."""
    folder = Path.home() / ".cache" / "tailorbird" / f"arm64-sysroot-{SYSROOT_VERSION}"
    for place in (sysroot.default_sysroot(), folder):
        if (place / "manifest.json").exists() and shutil.which("qemu-aarch64"):
            return place
    pytest.skip(f"no qemu-aarch64 or no arm64 sysroot; build it with: {BUILD_COMMAND}")
