"""Emission: values of the file in onnxruntime against torch, float and quantised."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from compressors.apply import compress
from compressors.compressed import ActivationCode
from compressors.execute import run
from compressors.network import Network
from compressors.policy import Policy
from compressors.resolve import Numerics
from compressors.simulate import simulate
from compressors.space import Abilities, PolicySpace
from compressors.trace import trace
from search.emit import UnsupportedOperationError, emit
from search.emit.builder import idle_activations
from search.export_onnx import export_model
from search.integers import exact
from tests.search import lowering_networks as nets


def _run(model: bytes, x: torch.Tensor) -> list[np.ndarray]:
    model = exact(model, Numerics())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


@pytest.mark.parametrize(("make", "shape"), [(nets.Residual, (1, 16, 16)), (nets.Zoo, (3, 8, 8))])
def test_float_values_and_batch(make, shape):
    torch.manual_seed(0)
    network = nets.prepared(make())
    traced = trace(network, (torch.randn(1, *shape),))
    model = emit(traced.graph, traced.weights)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 5):
        x = torch.randn(batch, *shape)
        (found,) = _run(model.SerializeToString(), x)
        with torch.no_grad():
            np.testing.assert_allclose(found, network(x).numpy(), atol=1e-5)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.producer_name == "tailorbird"


_OPERATIONS = {
    "mish": nn.functional.mish,
    "softplus": nn.functional.softplus,
    "elu": nn.functional.elu,
    "leaky": lambda x: nn.functional.leaky_relu(x, 0.2),
    "gelu tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "clip": lambda x: torch.clamp(x, -0.5, 0.25),
    "clip one side": lambda x: torch.clamp(x, min=-0.5),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1.0),
    "powers": lambda x: (x.abs() + 0.1) ** 1.5,
    "log softmax": lambda x: torch.log_softmax(x, 2),
    "bilinear": lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "reflect": lambda x: nn.functional.pad(x, (1, 2, 0, 1), mode="reflect"),
    "ceil pool": lambda x: nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool": lambda x: nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "unbind and stack": lambda x: torch.stack(torch.unbind(x, 1)[::-1], 2),
    "step": lambda x: x[:, :, ::2, 1:5],
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4) * 2.0,
    "maximum": lambda x: torch.maximum(x, -x) - torch.minimum(x, x * 0.5),
    "unknown to the trace": lambda x: torch.cumsum(x, 2),
}


@pytest.mark.parametrize("name", sorted(_OPERATIONS))
def test_operations(name):
    class Single(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _OPERATIONS[name](x)

    x = torch.randn(3, 4, 7, 6, generator=torch.Generator().manual_seed(1))
    traced = trace(Single(), (x[:2],))
    (found,) = _run(emit(traced.graph, traced.weights).SerializeToString(), x)
    expected = Single()(x)
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x * 0.5, x + 1.0, is_causal=causal)

    x = torch.randn(2, 2, 5, 4)
    traced = trace(Attend(), (x,))
    assert any(n.op == "sdpa" for n in traced.graph.nodes)
    (found,) = _run(emit(traced.graph, traced.weights).SerializeToString(), x)
    np.testing.assert_allclose(found, Attend()(x).numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    x = torch.randn(48, 1, 16, 16)
    return Network.from_module(nets.prepared(nets.Residual()), (x[:1],), (x,)), x


def _policies(space: PolicySpace, count: int) -> list[Policy]:
    rng = np.random.default_rng(0)
    dense = rng.random(space.dimension) < 0.4
    return [space.decode(np.where(dense, 1.0, rng.random(space.dimension))) for _ in range(count)]


def test_quantised_values_equal_the_simulation(residual):
    network, x = residual
    space = PolicySpace(network.structure, Abilities())
    for policy in [space.uniform(1.0, 8), *_policies(space, 6)]:
        compressed = compress(network, space.resolve(policy), Numerics())
        (found,) = _run(export_model(compressed), x)
        (expected,) = simulate(compressed, (x,))
        error = np.sqrt(np.mean((found - expected.numpy()) ** 2)) / expected.numpy().std()
        assert error < 0.03
        assert (found.argmax(1) == expected.numpy().argmax(1)).mean() > 0.9


def test_zeros_around_integers_take_no_kernel():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 16, 3, stride=2), nn.ReLU6(), nn.ZeroPad2d((1, 2, 1, 2)),
        nn.Conv2d(16, 16, 5, stride=2, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.Flatten(),
        nn.Linear(24 * 9, 10),
    )  # fmt: skip
    x = torch.randn(48, 1, 12, 12)
    network = Network.from_module(net.eval(), (x[:1],), (x,))
    space = PolicySpace(network.structure, Abilities())
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), Numerics())
    model = export_model(compressed)
    assert not {"Pad"} & {n.op_type for n in onnx.load_from_string(model).graph.node}
    np.testing.assert_allclose(_run(model, x)[0], simulate(compressed, (x,))[0].numpy(), atol=0.05)


def test_chains_of_integer_layers_give_the_runtime_s_codes():
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2), nn.ReLU(),
                nn.Conv2d(48, 48, 3, groups=48), nn.ReLU(), nn.Conv2d(48, 64, 1), nn.Flatten(),
                nn.Linear(64 * 25, 10),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    torch.manual_seed(1)
    x = torch.randn(64, 1, 16, 16)
    network = Network.from_module(Chain().eval(), (x[:1],), (x,))
    space = PolicySpace(network.structure, Abilities())
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), Numerics())
    (found,) = _run(export_model(compressed), x)
    with torch.no_grad():
        (integers,) = simulate(compressed, (x,))
    (floats,) = simulate(compressed, (x,))  # where gradients are wanted: float arithmetic on rounded values
    equal = float((found == integers.numpy()).mean())
    assert equal > 0.99
    assert equal > float((found == floats.detach().numpy()).mean())
    np.testing.assert_allclose(floats.detach().numpy(), found, atol=0.05 * np.abs(found).max())


def test_few_bits_keep_their_values_and_say_so(residual):
    network, x = residual
    space = PolicySpace(network.structure, Abilities(precisions=((4, 4), (4, 8), (8, 8))))
    resolved = space.resolve(space.uniform(1.0, 4, 4))
    for activations in ("u8-affine", "s8-symmetric", "power-of-two"):
        compressed = compress(network, resolved, Numerics(activations=activations))
        model = onnx.load_from_string(export_model(compressed))
        (found,) = _run(model.SerializeToString(), x)
        (expected,) = simulate(compressed, (x,))
        error = np.sqrt(np.mean((found - expected.numpy()) ** 2)) / expected.numpy().std()
        assert error < 0.1
        facts = {p.key: p.value for p in model.metadata_props}
        assert "stem.0 w4" in facts["values_only"]
        assert facts["policy"] == resolved.digest
        codes = [
            onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith("weight/codes")
        ]
        assert codes
        assert max(int(np.abs(c).max()) for c in codes) <= 7


def test_activations_are_dropped_only_where_the_quantiser_does_the_same(residual):
    network, _ = residual
    graph = network.structure.graph
    relu = next(n for n in graph.nodes if n.op == "relu" and graph.producer[n.inputs[0]].op != "conv")
    tensor = relu.outputs[0]
    from_zero = ActivationCode(0.1, 0, 8, 0, 255)
    assert relu.name in idle_activations(graph, {tensor: from_zero})
    assert not idle_activations(graph, {tensor: ActivationCode(0.1, 3, 8, 0, 255)})
    assert not idle_activations(graph, {tensor: from_zero, relu.inputs[0]: from_zero})


def test_an_operation_without_onnx_form_is_named(residual):
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    traced = trace(Odd(), (torch.randn(2, 3),))
    with pytest.raises(UnsupportedOperationError, match="bessel_j0"):
        emit(traced.graph, traced.weights)
    assert run(traced.graph, traced.weights, (torch.zeros(2, 3),))[0].shape == (2, 3)
