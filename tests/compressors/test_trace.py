"""Tracing: the graph computes what the network computes, at any batch size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressors.errors import CompressorError, NumericsError, TraceError
from compressors.execute import run
from compressors.trace import trace
from tests.compressors.helpers import ALL, batches, network_of
from tests.compressors.networks import inputs_for


@pytest.mark.parametrize("name", ALL)
def test_graph_computes_what_the_network_computes(name: str) -> None:
    module, _ = ALL[name]()
    network = network_of(name)
    for batch in batches(name):
        x = inputs_for(name, batch, seed=batch)
        with torch.no_grad():
            eager = module(*x)
            traced = run(network.structure.graph, network.weights, x)
        expected = eager if isinstance(eager, tuple) else (eager,)
        assert len(traced) == len(expected)
        for a, b in zip(traced, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_has_the_shape_the_graph_says(name: str) -> None:
    network = network_of(name)
    graph = network.structure.graph
    for batch in batches(name):
        shapes: dict[str, tuple[int, ...]] = {}

        def look(tensor: str, value: Tensor, shapes: dict[str, tuple[int, ...]] = shapes) -> Tensor:
            shapes[tensor] = tuple(value.shape)
            return value

        run(graph, network.weights, inputs_for(name, batch), look)
        said = {t: tuple(d if d >= 0 else -d * batch for d in graph.tensors[t].shape) for t in shapes}
        assert shapes == said
        assert set(shapes) == set(graph.tensors)
    assert {k: tuple(v.shape) for k, v in network.weights.items()} == {
        k: v.shape for k, v in graph.params.items()
    }


def test_convolutions_pad_for_themselves() -> None:
    graph = network_of("padded").structure.graph
    padding = {n.inputs[1]: n.attrs["padding"] for n in graph.nodes if n.op == "conv"}
    assert padding == {
        "stem.1.weight": (0, 0, 1, 1), "depthwise.0.weight": (1, 1), "even.weight": (1, 0, 2, 0),
        "last.weight": (1, 3, 1, 2),
    }  # fmt: skip
    assert [(n.op, n.name) for n in graph.nodes if n.op == "pad"] == [("pad", "pad_1")]  # a pool reads it too


@pytest.mark.parametrize(
    "before", [nn.ConstantPad2d(1, 0.5), nn.ReflectionPad2d(1), nn.ZeroPad2d((-1, 0, 0, 0))], ids=repr
)
def test_other_values_than_zeros_are_padded_before(before: nn.Module) -> None:
    network, x = nn.Sequential(before, nn.Conv2d(2, 4, 3)), torch.randn(2, 2, 6, 6)
    traced = trace(network, (x,))
    assert any(n.op == "pad" for n in traced.graph.nodes)
    torch.testing.assert_close(run(traced.graph, traced.weights, (x,))[0], network(x))


def test_fixed_batch_is_recognised() -> None:
    assert network_of("fixed-batch").structure.graph.fixed_batch == 2
    assert network_of("plain").structure.graph.fixed_batch is None
    assert network_of("two-inputs").structure.graph.inputs == ("image", "vector")
    assert len(network_of("two-outputs").structure.graph.outputs) == 2


def test_shared_weights_are_one_layer() -> None:
    structure = network_of("shared-weights").structure
    assert len(structure.layer["repeat.0"].nodes) == 3
    assert len(structure.layer["square"].nodes) == 2
    tied = network_of("tied-embedding")
    assert tied.structure.layer["embed"].op == "linear"
    assert "out.weight" not in tied.weights


def test_products_with_weights_are_linear_layers() -> None:
    structure = network_of("functional").structure
    ops = {x.name: x.op for x in structure.layers}
    assert list(ops.values()) == ["conv", "linear", "linear", "linear"]
    assert structure.layer["third"].weight_shape == (10, 24)  # `x @ third.t()` reads the parameter itself
    assert not any(n.op == "matmul" for n in structure.graph.nodes)


def test_weights_computed_from_weights_are_layers() -> None:
    network = network_of("reparametrised")
    assert [x.name for x in network.structure.layers] == ["conv1", "conv2.1", "head"] or len(
        network.structure.layers
    ) == 3
    assert all(x.op in ("conv", "linear") for x in network.structure.layers)
    assert not any(n.op == "aten" for n in network.structure.graph.nodes)


def test_tracing_twice_gives_the_same_digest() -> None:
    module, example = ALL["inverted-residual"]()
    first, second = trace(module, example), trace(module, example)
    other, shape = ALL["residual"]()
    assert first.graph.digest == second.graph.digest == network_of("inverted-residual").structure.graph.digest
    assert trace(other, shape).graph.digest != first.graph.digest


class Branching(nn.Module):
    """Python control flow that depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        """Either branch."""
        return x * 2 if float(x.sum()) > 0 else x - 1


def test_untraceable_network_says_why_in_one_line() -> None:
    with pytest.raises(TraceError) as caught:
        trace(Branching(), (torch.ones(2, 3),))
    text = str(caught.value)
    assert "Branching" in text
    assert "\n" not in text
    assert len(text) < 400
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, CompressorError)


def test_wrong_example_says_why_in_one_line() -> None:
    module, _ = ALL["plain"]()
    with pytest.raises(TraceError) as caught:
        trace(module, (torch.ones(2, 3, 16, 16),))
    assert "\n" not in str(caught.value)
    assert "Plain" in str(caught.value)
    with pytest.raises(TraceError):
        trace(module, ())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    module, example = ALL["plain"]()
    with torch.no_grad():
        module.head.weight[0, 0] = bad
    with pytest.raises(NumericsError) as caught:
        trace(module, example)
    assert "head.weight" in str(caught.value)
    assert caught.value.exit_code == 3


def test_unknown_operations_stay_and_are_listed() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cumsum(self.a(x), 1))

    torch.manual_seed(0)
    network = _network(Sorted(), (torch.randn(2, 8),))
    x = torch.randn(5, 8)
    torch.testing.assert_close(run(network.structure.graph, network.weights, (x,))[0].shape, (5, 4))
    notes = dict(network.structure.notes)
    assert "cumsum" in notes["cumsum"]
    assert "cumsum" in network.structure.layer["a"].fixed["prune"]


def _network(module: nn.Module, example: tuple[Tensor, ...]):  # type: ignore[no-untyped-def]
    from compressors.network import Network

    return Network.from_module(module.eval(), example, example)
