from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors.apply import folded_network
from compressors.execute import compute
from compressors.graph import Graph, Node
from compressors.network import Network, batched
from compressors.policy import FLOAT
from compressors.recalibrate import recalibrate
from compressors.resolve import Numerics
from compressors.sensitivity import first_order_losses, measured_losses, second_order_losses
from compressors.sensitivity.changes import Changes
from compressors.sensitivity.deltas import product, weight_changes
from compressors.sensitivity.divergence import WORST, divergence, outputs_of
from compressors.sensitivity.plan import Plan
from compressors.sensitivity.sampling import distances, interpolated, sampled
from compressors.sensitivity.suffix import Reference, kept_bytes
from compressors.space import Abilities, Choice, PolicySpace
from tests.compressors.helpers import EIGHT, MIXED, network_of, space_of

#: Integers at reads only, as ncnn; and a target that executes nothing in float.
READS = replace(EIGHT, numerics=Numerics(activations="s8-symmetric", at_reads=True, narrow=True))
ARRAY = replace(MIXED, float_kernels=False)
TARGETS = {"eight": EIGHT, "mixed": MIXED, "reads": READS, "array": ARRAY}
SAMPLES = 8


def reference_of(plan: Plan, reuse: bool = True) -> Reference:
    """The uncompressed network on a plan's first chunk."""
    numerics = plan.space.abilities.numerics
    return Reference(plan.network.structure, plan.changes.nothing, plan.chunks[0], numerics, reuse)


@pytest.mark.parametrize("target", ["eight", "mixed", "reads", "array"])
@pytest.mark.parametrize(
    "name",
    [
        "residual", "inception", "depthwise-separable", "grouped", "decoder", "shared-weights", "transformer",
        "pre-activation", "two-inputs", "two-outputs", "tied-embedding", "fixed-batch", "grouped-transposed",
    ],
)  # fmt: skip
def test_what_follows_a_change_is_all_that_differs(name: str, target: str) -> None:
    network, space = network_of(name), space_of(name, TARGETS[target])
    kept = measured_losses(network, space, SAMPLES, points=2)
    anew = measured_losses(network, space, SAMPLES, points=2, reuse=False)
    assert kept.keys() == {c.name for c in space.choices}
    for choice in space.choices:
        found = kept[choice.name]
        assert found.shape == (len(choice.values),)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert found[-1] == 0
        np.testing.assert_allclose(found, anew[choice.name], rtol=0, atol=1e-9)
    assert max(float(v[0]) for v in kept.values()) > 0


def test_only_what_follows_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(network_of("residual"), space_of("residual"), samples=SAMPLES)
    reference, nodes = reference_of(plan), len(plan.changes.graph.nodes)
    ran: list[str] = []

    def noted(graph: Graph, node: Node, *rest: Any) -> Sequence[Tensor]:
        ran.append(node.name)
        return compute(graph, node, *rest)

    monkeypatch.setattr("compressors.sensitivity.suffix.compute", noted)
    names = [c.name for c in plan.space.choices]
    counts = []
    for name in ("rank:units.0.conv1.0", "rank:units.1.conv1.0", "rank:units.3.conv2.0"):
        i = names.index(name)
        change = plan.changes.of(i, plan.open[i][0])
        assert change is not None
        ran.clear()
        assert reference.answers(change) is not None
        counts.append(len(ran))
    assert counts == sorted(counts, reverse=True)
    assert counts[1] < nodes
    assert 6 <= counts[-1] <= 7  # two or three factors, addition, ReLU, mean, the last layer


def test_a_change_without_effect_ends_where_it_is() -> None:
    """A block whose branch is exactly zero: removing it changes a node, and no tensor."""
    network = network_of("residual")
    weights = dict(network.weights)
    for key in [k for k in weights if "units.3.conv2" in k]:
        weights[key] = torch.zeros_like(weights[key]) if "running_var" not in key else weights[key]
    silent = Network(network.structure, weights, network.calibration, network.skeletons)
    losses = measured_losses(silent, space_of("residual"), SAMPLES)
    blocks = {k: v for k, v in losses.items() if k.startswith("removed:")}
    assert blocks["removed:units.3"][0] == 0
    assert max(float(v[0]) for v in blocks.values()) > 0


@pytest.mark.parametrize("name", ["residual", "depthwise-separable", "decoder", "transformer", "grouped"])
def test_losses_are_those_of_real_policies(name: str) -> None:
    """The same policies through `compress`'s own steps, statistics and reconstruction found by themselves."""
    wild, space = network_of(name), space_of(name)
    settled = recalibrate(
        wild.structure.graph, dict(wild.weights), wild, {}, absolute=True
    )  # as of a trained network
    network = Network(wild.structure, settled, wild.calibration, wild.skeletons)
    changes, top = Changes(network, space), space.cardinalities - 1
    inputs = tuple(x[:16] for x in network.calibration)
    plain = batched(changes.graph, changes.weights, inputs)
    outputs = outputs_of(changes.graph, plain)
    losses = measured_losses(network, space, 16)
    ours, theirs = [], []
    for i, choice in enumerate(space.choices):
        if choice.kind in ("keep", "rank", "removed") and changes.alters(i, 0):
            indices = top.copy()
            indices[i] = 0
            policy = space.resolve(space.at(indices))
            policy = replace(policy, act_bits=dict.fromkeys(policy.act_bits, FLOAT))
            found = batched(*folded_network(network, policy), inputs)
            ours.append(float(losses[choice.name][0]))
            theirs.append(divergence(outputs, plain, found) / 16)
    a, b = np.log(np.array(ours) + 1e-9), np.log(np.array(theirs) + 1e-9)
    assert len(ours) > 5
    assert np.corrcoef(a, b)[0, 1] > 0.8


def test_losses_fall_towards_the_uncompressed_value() -> None:
    network = network_of("plain")
    losses = measured_losses(network, space_of("plain", MIXED), 16, points=9)
    for name, found in losses.items():
        if name.startswith(("weight_bits:", "act_bits:", "keep:")):
            steps = np.diff(found)
            assert steps.max(initial=0.0) <= 0.1 * found[0], name
            assert found[0] > 0, name
    bits = losses["weight_bits:head"]
    assert bits[0] > 4 * bits[1] > 16 * bits[2]  # the square of a step that quarters every two bits


def test_the_last_value_counts_nothing_where_it_is_an_integer() -> None:
    network = network_of("plain")
    floats = measured_losses(network, space_of("plain", MIXED), SAMPLES)
    array = measured_losses(network, space_of("plain", ARRAY), SAMPLES)
    name = next(k for k in array if k.startswith("weight_bits:"))
    choice = next(c for c in space_of("plain", ARRAY).choices if c.name == name)
    assert choice.values[-1] == 8
    eight = next(c for c in space_of("plain", MIXED).choices if c.name == name).values.index(8)
    assert array[name][0] == pytest.approx(floats[name][0] - floats[name][eight], rel=1e-6)


def test_weights_without_bits_of_their_own_follow_what_they_read() -> None:
    changes = Changes(network_of("residual"), space_of("residual"))
    names = [c.name for c in changes.space.choices]
    change = changes.of(names.index("act_bits:stem.0"), 0)
    assert change is not None
    assert change.where.params
    assert change.where.tensors
    apart = Changes(network_of("residual"), space_of("residual", MIXED))
    alone = apart.of([c.name for c in apart.space.choices].index("act_bits:stem.0"), 0)
    assert alone is not None
    assert alone.where.params == {}


def test_weights_that_did_not_change_are_the_same_tensors() -> None:
    changes = Changes(network_of("residual"), space_of("residual"))
    for i, choice in enumerate(changes.space.choices):
        change = changes.of(i, 0)
        if change is None or choice.kind not in ("keep", "rank"):
            continue
        same = [n for n, w in change.weights.items() if w is changes.weights.get(n)]
        assert len(same) > len(changes.weights) / 3, choice.name
        for n, w in change.weights.items():
            if n in changes.weights and n not in same and w.dim() > 1:
                assert w.shape != changes.weights[n].shape or not torch.equal(w, changes.weights[n])


@pytest.mark.parametrize("name", ["plain", "decoder", "conv1d", "transformer"])
def test_a_product_of_factors_is_the_layer(name: str) -> None:
    """The composed weight does what the chain of factors does."""
    network, space = network_of(name), space_of(name, Abilities(methods=frozenset({"factorize", "cp"})))
    changes = Changes(network, space)
    seen = set()
    for i, choice in enumerate(space.choices):
        for v, value in enumerate(choice.values):
            change = changes.of(i, v)
            if change is None or not isinstance(value, tuple):
                continue
            names = network.skeletons.of(change.policy).factor_weights[choice.subject]
            nodes = [next(n for n in change.graph.nodes if n.inputs[1:2] == (w,)) for w in names]
            layer = network.structure.layer[choice.subject]
            before = changes.weights[layer.weight]
            made = product(change.graph, nodes, [change.weights[w] for w in names])
            assert made.shape == before.shape
            moved = weight_changes(changes, change)
            assert set(moved) == {layer.weight}
            if value[1] >= 0.75:  # near to full rank the product is near to the weight
                assert float(moved[layer.weight].norm()) < 0.8 * float(before.norm())
            seen.add(value[0])
    assert len(seen) >= 1


@pytest.mark.parametrize("name", ["residual", "decoder", "transformer", "two-outputs", "shared-weights"])
@pytest.mark.parametrize("estimate", [first_order_losses, second_order_losses])
def test_estimates_have_the_shape_of_measured_losses(name: str, estimate: object) -> None:
    assert callable(estimate)
    for abilities in (EIGHT, MIXED, READS):
        network, space = network_of(name), space_of(name, abilities)
        found = estimate(network, space, SAMPLES, 3)
        again = estimate(network, space, SAMPLES, 3)
        assert found.keys() == {c.name for c in space.choices}
        for choice in space.choices:
            row = found[choice.name]
            assert row.shape == (len(choice.values),)
            assert np.isfinite(row).all()
            assert row[-1] == 0
            np.testing.assert_array_equal(row, again[choice.name])
        assert max(float(r[0]) for r in found.values()) > 0


def test_second_order_is_the_divergence_of_small_changes() -> None:
    """One linear layer: the Fisher matrix of its weights is known, and so is the trace."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 6)).eval()
    x = torch.randn(128, 12)
    network = Network.from_module(module, (x[:1],), (x,))
    space = PolicySpace(network.structure, Abilities(precisions=((4, 8), (6, 8), (8, 8))))
    measured = measured_losses(network, space, 128, classes=[1])
    second = second_order_losses(network, space, 128, classes=[1])
    for name in (c.name for c in space.choices if c.kind == "weight_bits"):
        ratio = second[name][:2] / measured[name][:2]
        assert (ratio > 0.3).all()
        assert (ratio < 3.0).all()


# -- what outputs hold


class Ends(nn.Module):
    """One linear layer with a given end."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(8, 8), end

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.end(self.layer(x))
        return found


class Long(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x / x.norm(dim=1, keepdim=True)
        return found


@pytest.mark.parametrize(
    ("end", "scale", "kind"),
    [
        (nn.Identity(), 6.0, "scores"),
        (nn.Identity(), 0.01, "values"),
        (nn.Softmax(1), 1.0, "probabilities"),
        (nn.LogSoftmax(1), 1.0, "scores"),
        (nn.Sigmoid(), 1.0, "independent"),
        (Long(), 1.0, "values"),
    ],
)
def test_outputs_are_told_by_shape_and_values(end: nn.Module, scale: float, kind: str) -> None:
    torch.manual_seed(1)
    module = Ends(end).eval()
    with torch.no_grad():
        module.layer.weight.mul_(scale)
        module.layer.bias.mul_(scale)
    x = torch.randn(32, 8)
    network = Network.from_module(module, (x[:1],), (x,))
    graph = network.structure.graph
    answers = batched(graph, network.weights, (x,))
    (output,) = outputs_of(graph, answers)
    assert output.kind == kind
    assert divergence((output,), answers, answers) == pytest.approx(0.0, abs=1e-12)
    shift = {k: torch.randn_like(v) * scale for k, v in network.weights.items()}
    small, large = (
        divergence(
            (output,),
            answers,
            batched(graph, {k: v + s * shift[k] for k, v in network.weights.items()}, (x,)),
        )
        for s in (0.01, 0.1)
    )
    assert 0 < 10 * small < large < 32 * WORST


def test_divergences_are_those_of_the_book() -> None:
    graph = network_of("plain").structure.graph
    old, new = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, -1.0]])
    scores = outputs_of(graph, (old,), [1])
    temperature = max(1.0, float((old - old.mean()).square().mean().sqrt()))
    assert temperature > 1.2
    p, q = ((x.double() / temperature).softmax(1) for x in (old, new))
    assert divergence(scores, (old,), (new,)) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    rows = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    values = outputs_of(graph, (rows,), [None])
    variance = (1.0 + 4.0) / 2
    shift = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert divergence(values, (rows,), (rows + shift,)) == pytest.approx(0.5 / variance)
    whole = torch.tensor([[3, 4], [5, 6]])
    labels = outputs_of(graph, (whole,))
    assert divergence(labels, (whole,), (torch.tensor([[3, 4], [5, 7]]),)) == pytest.approx(0.5)
    broken = torch.tensor([[float("nan"), 0.0, 0.0]])
    assert divergence(scores, (old,), (broken,)) == WORST


# -- which values are measured


def test_ends_of_every_family_are_measured() -> None:
    values = (*(("svd" if i % 2 else "tucker2", 0.1 * (i + 1)) for i in range(8)), None)
    choice = Choice("rank", "layer", values)
    chosen = sampled(choice, range(8), 4)
    assert {0, 1, 6, 7} <= set(chosen)
    assert len(chosen) == 4
    assert sampled(choice, [2, 4], 4) == [2, 4]
    keep = Choice("keep", "group", tuple(range(4, 68, 4)))
    assert sampled(keep, range(15), 5) == [0, 4, 7, 10, 14]


def test_interpolation_is_exact_for_quadratic_losses_and_monotone() -> None:
    structure = network_of("plain").structure
    group = structure.groups[0]
    choice = Choice("keep", group.name, tuple(range(1, group.size + 1)))
    far = distances(choice, structure)
    last = len(choice.values) - 1
    measured = {i: 3.0 * far[i] ** 2 for i in (0, last // 2, last - 1)}
    found = interpolated(choice, structure, range(last), measured)
    np.testing.assert_allclose(found, 3.0 * far**2, atol=1e-12)
    crooked = {0: 1.0, last // 2: 1e-6, last - 1: 1e-7}
    found = interpolated(choice, structure, range(last), crooked)
    assert (np.diff(found) <= 1e-15).all()
    assert found[0] == 1.0
    bits = Choice("weight_bits", structure.layers[0].name, (2, 4, 6, 8, FLOAT))
    assert (np.diff(distances(bits, structure)) < 0).all()


def test_samples_fit_the_memory_and_the_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    from compressors.sensitivity import plan as module

    network, space = network_of("residual"), space_of("residual")
    whole = Plan(network, space, samples=16)
    assert [len(c[0]) for c in whole.chunks] == [16]
    one = measured_losses(network, space, 16)
    monkeypatch.setattr(module, "CHUNK_BYTES", 6 * kept_bytes(whole.changes.graph))
    parts = Plan(network, space, samples=16)
    assert [len(c[0]) for c in parts.chunks] == [6, 6, 4]
    several = measured_losses(network, space, 16)
    a, b = (np.array([v[0] for v in x.values()]) for x in (one, several))
    assert np.corrcoef(np.log(a + 1e-9), np.log(b + 1e-9))[0, 1] > 0.95
    monkeypatch.setattr(module, "EFFORT", 0.0)
    assert sum(len(c[0]) for c in Plan(network, space).chunks) == module.LEAST_SAMPLES


def test_the_samples_are_those_the_network_is_least_sure_of() -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(200, 6) * 4
    network = Network.from_module(module, (x[:1],), (x,))
    space = PolicySpace(network.structure, Abilities())
    (chunk,) = Plan(network, space, samples=25, classes=[1]).chunks
    top = module(x).topk(2, 1).values
    margin = top[:, 0] - top[:, 1]
    chosen = torch.argsort(margin)[:25].sort().values
    assert torch.equal(chunk[0], x[chosen])
    (even,) = Plan(network, space, samples=25, classes=[None]).chunks
    assert torch.equal(even[0], x[torch.linspace(0, 199, 25).long()])
