"""Single layers for ``scripts/bench_emulated.py``: fp32, and integers with u8 activations, s8 weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: fp32 / int8 instructions, counted by hand with a probe of the same kind (onnxruntime 1.32, qemu 7.2).
_A72, _A76 = "cortex-a72", "cortex-a76"


@dataclass(frozen=True)
class OneLayer:
    """A convolution of `kernel` (0: fully connected) at `side` x `side` positions."""

    name: str
    cin: int
    cout: int
    side: int
    kernel: int
    groups: int
    known: Mapping[str, float]


LAYERS = (
    OneLayer("3x3 128 at 28", 128, 128, 28, 3, 1, {_A72: 1.09, _A76: 3.24}),
    OneLayer("1x1 64 to 256 at 56", 64, 256, 56, 1, 1, {_A72: 0.92, _A76: 1.85}),
    OneLayer("1x1 32 to 192 at 28", 32, 192, 28, 1, 1, {_A72: 0.74, _A76: 1.30}),
    OneLayer("Gemm 512 to 1000", 512, 1000, 1, 0, 1, {_A72: 0.86, _A76: 1.10}),
    OneLayer("depthwise 3x3 128 at 28", 128, 128, 28, 3, 128, {_A72: 1.16, _A76: 1.16}),
)


def layer_models(layer: OneLayer) -> dict[str, bytes]:
    """ONNX files: "fp32", "int8" between u8 tensors, and "int8 between floats", which converts both ends."""
    return {
        "fp32": _model(layer, False),
        "int8": _model(layer, True),
        "int8 between floats": _model(layer, True, float_ends=True),
    }


def _model(layer: OneLayer, integer: bool, float_ends: bool = False) -> bytes:
    rng = np.random.default_rng(0)
    window = (layer.kernel, layer.kernel) if layer.kernel else ()
    shape = (layer.cout, layer.cin // layer.groups, *window)
    weights = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    bias = (0.1 * rng.standard_normal(layer.cout)).astype(np.float32)
    x = [1, layer.cin, layer.side, layer.side] if layer.kernel else [1, layer.cin]
    y = [1, layer.cout, layer.side, layer.side] if layer.kernel else [1, layer.cout]
    attributes = {"pads": [layer.kernel // 2] * 4, "group": layer.groups} if layer.kernel else {"transB": 1}
    node = helper.make_node("Conv" if layer.kernel else "Gemm", ["x", "w", "b"], ["y"], "layer", **attributes)
    constants, nodes = {"w": weights, "b": bias}, [node]
    if integer:
        constants, nodes = _quantised(node, weights, bias)
    if float_ends:
        nodes.insert(0, helper.make_node("QuantizeLinear", ["x_f", "x_s", "x_z"], ["x_q"], "x_quantise"))
        nodes.append(helper.make_node("DequantizeLinear", ["y_q", "y_s", "y_z"], ["y_f"], "y_dq"))
    kind = TensorProto.UINT8 if integer and not float_ends else TensorProto.FLOAT
    suffix = "_f" if float_ends else "_q" if integer else ""
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(f"x{suffix}", kind, x)],
        [helper.make_tensor_value_info(f"y{suffix}", kind, y)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _quantised(
    node: onnx.NodeProto, weights: np.ndarray, bias: np.ndarray
) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """Quantise/dequantise around a layer: per-channel s8 weights, u8 activations, s32 bias."""
    scale = (np.abs(weights).reshape(len(weights), -1).max(axis=1) / 127.0).astype(np.float32)
    codes = np.round(weights / scale.reshape(-1, *[1] * (weights.ndim - 1))).astype(np.int8)
    x_scale, y_scale = np.float32(0.03), np.float32(0.1)
    constants = {
        "w_q": codes,
        "w_s": scale,
        "w_z": np.zeros(len(weights), np.int8),
        "b_q": np.round(bias / (scale * x_scale)).astype(np.int32),
        "b_s": (scale * x_scale).astype(np.float32),
        "b_z": np.zeros(len(weights), np.int32),
        "x_s": np.asarray(x_scale),
        "x_z": np.asarray(128, np.uint8),
        "y_s": np.asarray(y_scale),
        "y_z": np.asarray(128, np.uint8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x_q", "x_s", "x_z"], ["x"], "x_dq"),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], "w_dq", axis=0),
        helper.make_node("DequantizeLinear", ["b_q", "b_s", "b_z"], ["b"], "b_dq", axis=0),
        node,
        helper.make_node("QuantizeLinear", ["y", "y_s", "y_z"], ["y_q"], "y_quantise"),
    ]
    return constants, nodes
