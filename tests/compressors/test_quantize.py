"""Quantisation: codes in range, error bounds, the arithmetic of torch and onnxruntime."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressors.apply import compress
from compressors.compressed import ActivationCode
from compressors.errors import NumericsError, PolicyError
from compressors.execute import run
from compressors.network import Network
from compressors.policy import Policy
from compressors.quantize import (
    RANGES,
    activation_code,
    fake_quantize,
    find_code,
    quantize_bias,
    quantize_weight,
)
from compressors.resolve import Numerics
from compressors.simulate import simulate
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import network_of, space_of

SCHEMES = ("u8-affine", "s8-symmetric", "power-of-two")
BITS = tuple(range(2, 9))


def values(n: int = 4000, seed: int = 0, shift: float = 0.3) -> Tensor:
    """Values of an activation, a little off centre."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
def test_activation_codes_are_in_range_and_close(scheme: str, bits: int) -> None:
    x = values()
    numerics = Numerics(activations=scheme)
    code = find_code(x, bits, numerics, "minmax")
    y = fake_quantize(x, code)
    codes = torch.round(y.double() / code.scale) + code.zero_point
    assert (code.low, code.high) == (
        (0, 2**bits - 1) if scheme == "u8-affine" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    assert float(codes.min()) >= code.low
    assert float(codes.max()) <= code.high
    assert code.low <= code.zero_point <= code.high
    assert float(fake_quantize(torch.zeros(1), code)) == 0.0  # padding with zero is exact
    assert float((y - x).abs().max()) <= code.scale * (1.0 if scheme == "u8-affine" else 0.5) + 1e-6
    assert len(torch.unique(y)) <= 2**bits
    if scheme == "power-of-two":
        assert math.log2(code.scale) == int(math.log2(code.scale))
    if scheme != "u8-affine":
        assert code.zero_point == 0


@given(
    low=st.floats(-1e4, 1e4, width=32),
    high=st.floats(-1e4, 1e4, width=32),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(SCHEMES),
)
@settings(max_examples=200, deadline=None)
def test_any_range_gives_a_usable_code(low: float, high: float, bits: int, scheme: str) -> None:
    ends = (min(low, high), max(low, high))
    code = activation_code(ends, bits, Numerics(activations=scheme))
    assert code.scale > 0
    assert math.isfinite(code.scale)
    assert code.scale == float(np.float32(code.scale))
    assert code.low <= code.zero_point <= code.high
    reached = [(c - code.zero_point) * code.scale for c in (code.low, code.high)]
    assert reached[0] <= min(ends[0], 0.0) + code.scale * 0.51 + 1e-6
    assert reached[1] >= max(ends[1], 0.0) - code.scale * 0.51 - 1e-6


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
def test_weight_codes_are_in_range_and_close(scheme: str, bits: int) -> None:
    weight = torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(bits))
    weight[3] = 0.0
    for reserve in (0, 1):
        numerics = Numerics(activations=scheme, weight_reserve=reserve)
        for axis in (0, 1):
            rounded, code = quantize_weight(weight, bits, axis, numerics)
            shape = [1, 1, 1, 1]
            shape[axis] = -1
            codes = rounded / code.scale.reshape(shape)
            assert torch.allclose(codes, codes.round(), atol=1e-3)
            assert float(codes.abs().max()) <= code.high + 1e-3
            assert code.high == max(1, 2 ** (bits - 1 - reserve) - 1)
            assert code.scale.shape == (weight.shape[axis],)
            top = weight.abs().amax([d for d in range(4) if d != axis])
            covering = torch.round(weight / (top / code.high).clamp_min(1e-12).reshape(shape))
            naive = covering * (top / code.high).reshape(shape)
            assert float((rounded - weight).square().sum()) <= float((naive - weight).square().sum()) + 1e-5
    assert bool((quantize_weight(weight, bits, 0, Numerics())[0][3] == 0).all())


def test_eight_bit_weights_follow_torch_per_channel() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    rounded, code = quantize_weight(weight, 8, 0, Numerics())
    theirs = torch.fake_quantize_per_channel_affine(
        weight, code.scale, torch.zeros(6, dtype=torch.int32), 0, -127, 127
    )
    torch.testing.assert_close(rounded, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(code.scale, weight.abs().amax((1, 2, 3)) / 127)
    assert float((rounded - weight).abs().max()) <= float(code.scale.max()) / 2 + 1e-6


def test_activations_follow_onnxruntime() -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    x = values(5000, seed=3)
    x = torch.cat([x, torch.tensor([1e6, -1e6])])
    for scheme in ("u8-affine", "s8-symmetric"):
        code = find_code(x[:5000], 8, Numerics(activations=scheme), "percentile")
        ties = (torch.arange(-200, 200) + 0.5) * code.scale
        sample = torch.cat([x, ties])
        kind = np.uint8 if scheme == "u8-affine" else np.int8
        helper = onnx.helper
        constants = [
            onnx.numpy_helper.from_array(np.array(code.scale, np.float32), "s"),
            onnx.numpy_helper.from_array(np.array(code.zero_point, kind), "z"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        io = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None]) for n in "xy"]
        model = helper.make_model(
            helper.make_graph(nodes, "g", [io[0]], [io[1]], constants),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=9,
        )
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        theirs = session.run(None, {"x": sample.numpy()})[0]
        ours = fake_quantize(sample, code)
        close = np.abs(ours.numpy() - theirs) <= 1e-6 * np.abs(theirs) + 1e-9
        assert close[: len(x)].mean() >= 0.9995
        assert close[len(x) :].mean() >= 0.75  # x / s there, x * (1 / s) here: ties can fall to either side
        assert float(np.abs(ours.numpy() - theirs).max()) <= code.scale * 1.001
        assert float(ours.max()) == pytest.approx((code.high - code.zero_point) * code.scale, rel=1e-6)


def test_activations_follow_torch_observers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import MinMaxObserver

        x = values(2000, seed=4)
        observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
        observer(x)
        scale, zero = observer.calculate_qparams()
    code = find_code(x, 8, Numerics(), "minmax")
    assert code.scale == pytest.approx(float(scale), rel=1e-6)
    assert code.zero_point == int(zero)
    assert isinstance(code, ActivationCode)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_range_methods_give_ranges_inside_the_values(method: str) -> None:
    x = values(3000, seed=5)
    for bits in (2, 4, 8):
        low, high = RANGES[method](x, bits, Numerics())
        assert float(x.min()) - 1e-6 <= low <= high <= float(x.max()) + 1e-6
    loss = {m: _error(x, m, 4) for m in RANGES}
    assert loss["mse"] <= loss["minmax"] + 1e-9
    assert loss["mse"] <= loss["percentile"] * 1.2


def _error(x: Tensor, method: str, bits: int) -> float:
    return float((fake_quantize(x, find_code(x, bits, Numerics(), method)) - x).square().sum())


def test_bad_values_are_refused() -> None:
    with pytest.raises(NumericsError, match="empty"):
        find_code(torch.zeros(0), 8, Numerics(), "minmax")
    with pytest.raises(NumericsError, match="NaN"):
        find_code(torch.tensor([1.0, float("nan")]), 8, Numerics(), "minmax")
    with pytest.raises(PolicyError, match="Did you mean 'minmax'"):
        find_code(torch.ones(3), 8, Numerics(), "minmaxx")
    with pytest.raises(NumericsError, match="infinite"):
        quantize_weight(torch.full((2, 2), float("inf")), 8, 0, Numerics())


def test_biases_are_integers_of_the_product_scale() -> None:
    weight, bias = torch.randn(5, 7), torch.linspace(-3, 3, 5)
    _, code = quantize_weight(weight, 8, 0, Numerics())
    rounded, scale = quantize_bias(bias, 0.02, code, 32)
    torch.testing.assert_close(scale, code.scale * 0.02)
    codes = rounded.double() / scale.double()
    assert torch.allclose(codes, codes.round(), atol=1e-2)
    assert float((rounded - bias).abs().max()) <= float(scale.max())
    clipped, _ = quantize_bias(torch.full((5,), 1e9), 1e-6, code, 16)
    assert float((clipped / (code.scale * 1e-6)).max()) <= 2**15


def quantised(network: Network, weight_bits: int, scheme: str) -> tuple[PolicySpace, Policy]:
    """Everything to 8-bit activations and the given weight bits."""
    abilities = Abilities(
        precisions=tuple((w, 8) for w in BITS),
        numerics=Numerics(activations=scheme),
        methods=frozenset({"quantize"}),
    )
    space = PolicySpace(network.structure, abilities)
    return space, space.uniform(1.0, act_bits=8, weight_bits=weight_bits)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["plain", "residual", "decoder", "shared-weights", "transformer"])
def test_answers_come_closer_with_more_bits(name: str, scheme: str) -> None:
    network = network_of(name)
    exact = run(network.structure.graph, network.weights, network.calibration)[0]
    errors = {}
    for bits in (2, 4, 8):
        space, policy = quantised(network, bits, scheme)
        resolved = space.resolve(policy)
        small = compress(network, resolved, space.abilities.numerics)
        errors[bits] = float((simulate(small, network.calibration)[0] - exact).norm() / exact.norm())
        assert {c.bits for c in small.codes.values()} == {bits}
        assert all(code.low <= code.zero_point <= code.high for code in small.activations.values())
        for param, code in small.codes.items():
            shape = [1] * small.weights[param].dim()
            shape[code.axis] = -1
            integers = small.weights[param] / code.scale.reshape(shape)
            assert torch.allclose(integers, integers.round(), atol=2e-3)
            assert float(integers.abs().max()) <= code.high + 1e-2
    assert errors[8] < errors[4] < errors[2]
    assert errors[8] < 0.12


def test_bias_correction_takes_the_shift_of_the_mean_out() -> None:
    """With weights at 3 bits, the mean of every channel of the last layer stays where it was."""
    network = network_of("plain")
    space, policy = quantised(network, 3, "u8-affine")
    resolved = space.resolve(policy)
    small = compress(network, resolved, Numerics())
    exact = run(network.structure.graph, network.weights, network.calibration)[0]
    found = simulate(small, network.calibration)[0]
    biases = {p: network.weights[p] for p in ("head.bias",)}
    uncorrected = dict(small.weights) | biases
    from compressors.compressed import Compressed

    plain = Compressed(**{**small.__dict__, "weights": uncorrected})
    before = simulate(plain, network.calibration)[0]
    shift_after = (found.mean(0) - exact.mean(0)).abs().mean()
    shift_before = (before.mean(0) - exact.mean(0)).abs().mean()
    assert "head.bias" in small.biases
    assert not torch.equal(small.weights["head.bias"], network.weights["head.bias"])
    assert float(shift_after) < float(shift_before)


def test_views_and_pooling_keep_their_input_quantiser() -> None:
    network = network_of("plain")
    space, policy = quantised(network, 8, "u8-affine")
    small = compress(network, space.resolve(policy), Numerics())
    for n in small.graph.nodes:
        if n.op in ("max_pool", "reshape") and n.outputs[0] in small.activations:
            assert small.activations[n.outputs[0]] == small.activations[n.inputs[0]]
    assert sum(n.op == "max_pool" for n in small.graph.nodes) == 2
    assert len(small.activations) >= 7
    assert space_of("plain").abilities.act_bits == (8,)


class _Shared(torch.nn.Module):
    """One tensor that a convolution and an addition read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2, 6, 6) to (n, 8, 6, 6)."""
        y = torch.relu(self.first(x))
        return y + torch.relu(self.second(y))


def test_rounding_at_reads_leaves_the_rest_exact() -> None:
    """Codes of convolutions' inputs only: the sum is of what the first wrote, not of what the second read."""
    torch.manual_seed(0)
    x = torch.randn(16, 2, 6, 6)
    network = Network.from_module(_Shared().eval(), (x[:1],), (x,))
    numerics = Numerics("s8-symmetric", quantises_between=False, at_reads=True, narrow=True)
    space = PolicySpace(network.structure, Abilities(numerics=numerics))
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), numerics)
    codes, weights = compressed.activations, compressed.weights
    assert len(codes) == 2
    assert {c.low for c in codes.values()} == {-127}
    assert numerics.key != Numerics("s8-symmetric").key
    (read,) = [t for t in codes if t.endswith("/read")]
    (given,) = set(codes) - {read}
    assert given in compressed.graph.inputs

    def layer(name: str, value: Tensor) -> Tensor:
        return torch.relu(torch.conv2d(value, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))

    y = layer("first", fake_quantize(x, codes[given]))
    wanted = y + layer("second", fake_quantize(y, codes[read]))
    (found,) = simulate(compressed, (x,))
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(fake_quantize(y, codes[read]), y)
