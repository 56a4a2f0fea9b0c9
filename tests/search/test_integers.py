"""Integer products of this machine's onnxruntime: what saturates is known, and what has to be exact is."""

import platform
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressors.apply import compress
from compressors.network import Network
from compressors.resolve import Numerics
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.doctor import examine, processor_flags
from search.exporters import exporter_of
from search.integers import exact, saturates, shift
from search.verify import verify

EIGHT, SEVEN = (abilities_of(load_target(name)).numerics for name in ("raspberry-pi-4", "x86-avx2"))


def product(numerics: Numerics, weight: int) -> int:
    """64 products of 255 and the weight, added up by a session for these numerics."""
    weights = numpy_helper.from_array(np.full((64, 8), weight, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 8])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(
        exact(model.SerializeToString(), numerics), providers=["CPUExecutionProvider"]
    )
    return int(session.run(None, {"x": np.full((1, 64), 255, np.uint8)})[0][0, 0])


def test_eight_bits_are_exact_for_targets_that_are_and_seven_for_the_others() -> None:
    assert (EIGHT.weight_reserve, SEVEN.weight_reserve) == (0, 1)
    assert product(EIGHT, 127) == 64 * 255 * 127
    assert product(SEVEN, 63) == 64 * 255 * 63
    assert (product(SEVEN, 127) == 64 * 255 * 127) == (not saturates())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86")
def test_what_saturates_is_what_has_no_vnni() -> None:
    assert saturates() == processor_flags().isdisjoint({"avx512_vnni", "avx_vnni"})
    (found,) = [f for f in examine() if f.name == "integers"]
    assert ("saturate" in found.text) == saturates()


def test_shifted_weights_are_the_same_numbers() -> None:
    """Whatever this machine is: codes and zero points move together, shared and dynamic ones as well."""
    codes = np.arange(-128, 128, dtype=np.int8).reshape(32, 8)
    tensors = {"w/codes": codes, "w/scale": np.full(8, 0.5, np.float32), "w/zero": np.zeros(8, np.int8),
               "d/codes": codes, "x/zero": np.uint8(3)}  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w/codes", "w/scale", "w/zero"], ["w"], axis=1),
            helper.make_node("DequantizeLinear", ["w/codes", "w/scale", "w/zero"], ["again"], axis=1),
            helper.make_node("MatMulInteger", ["x", "d/codes", "x/zero"], ["first"]),
            helper.make_node("MatMulInteger", ["x", "d/codes", "x/zero"], ["second"]),
        ],
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 32])],
        [helper.make_tensor_value_info(n, t, None) for n, t in (
            ("w", TensorProto.FLOAT), ("again", TensorProto.FLOAT), ("first", TensorProto.INT32),
            ("second", TensorProto.INT32))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    shift(model)
    assert not [t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(64, dtype=np.uint8).reshape(2, 32)
    w, again, first, second = session.run(None, {"x": x})
    assert np.array_equal(w, 0.5 * codes)
    assert np.array_equal(again, w)
    assert np.array_equal(first, (x.astype(np.int32) - 3) @ codes.astype(np.int32))
    assert np.array_equal(second, first)


@pytest.mark.parametrize("numerics", [EIGHT, SEVEN])
def test_a_file_for_another_processor_is_verified_on_this_one(numerics: Numerics) -> None:
    """Weights that all are as large as they can be: nothing saturates more."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    for layer in (m for m in module if isinstance(m, nn.Conv2d | nn.Linear)):
        layer.weight.data = layer.weight.data.abs().clamp_min(0.05)
    x = torch.rand(64, 8, 8, 8)
    network = Network.from_module(module, (x[:1],), (x,))
    abilities = replace(abilities_of(load_target("raspberry-pi-4")), numerics=numerics)
    space = PolicySpace(network.structure, abilities)
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), numerics)
    exporter = exporter_of("onnxruntime")
    found = verify(compressed, exporter.write(compressed), (x,), exporter)
    assert found.agree == found.samples == 64
    assert ("shifted" in found.runtime) == (saturates() and not numerics.weight_reserve)
