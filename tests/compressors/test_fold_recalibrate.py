"""Batch-norm: folding is exact, recalibration is what torch itself would count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.apply import fold, reduced, shrunk
from compressors.execute import run
from compressors.graph import Node
from compressors.network import Network
from compressors.policy import Policy, ResolvedPolicy
from compressors.prune import kept_indices, prune
from compressors.recalibrate import recalibrate
from compressors.skeleton import concrete, skeleton_of, unknowns
from tests.compressors.helpers import ALL, MIXED, network_of, random_policy, space_of
from tests.compressors.networks import inputs_for


@pytest.mark.parametrize("name", ALL)
def test_folding_changes_no_answer(name: str) -> None:
    network = network_of(name)
    skeleton = skeleton_of(network.structure, (), {})
    folded = fold(skeleton, network.weights)
    x = inputs_for(name, network.structure.graph.fixed_batch or 3)
    expected = run(network.structure.graph, network.weights, x)
    found = run(skeleton.graph, folded, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    left = {n.name for n in skeleton.graph.nodes if n.op == "batch_norm"}
    assert left == set(skeleton.unfoldable)
    before = sum(n.op == "batch_norm" for n in network.structure.graph.nodes)
    assert before == len(left) + sum(len(f.into) for f in skeleton.foldings)


def test_what_folds_and_what_does_not() -> None:
    assert skeleton_of(network_of("residual").structure, (), {}).unfoldable == ()
    assert len(skeleton_of(network_of("shared-weights").structure, (), {}).foldings) == 2
    odd = skeleton_of(network_of("pre-activation").structure, (), {})
    assert len(odd.unfoldable) == 2  # norm2 follows conv1; norm1 and norm3 follow what others read too
    assert len(odd.foldings) == 1


@pytest.mark.parametrize("name", ["residual", "decoder", "shared-weights", "pre-activation", "conv1d"])
@pytest.mark.parametrize("seed", [0, 1])
def test_folding_a_compressed_network_is_exact(name: str, seed: int) -> None:
    network = network_of(name)
    policy = random_policy(space_of(name, MIXED), seed)
    skeleton = network.skeletons.of(policy)
    values = unknowns(policy, network.structure)
    weights = reduced(network, policy)
    x = inputs_for(name, 4)
    expected = run(concrete(skeleton.unfolded, skeleton, values), weights, x)
    found = run(concrete(skeleton.graph, skeleton, values), fold(skeleton, weights), x)
    assert policy.kept
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def halved(name: str) -> tuple[Network, ResolvedPolicy]:
    """A network and the policy that halves every group, floats only."""
    space = space_of(name)
    return network_of(name), space.resolve(space.uniform(0.5))


def settled(network: Network) -> Network:
    """The network as if trained on its calibration data."""
    weights = recalibrate(network.structure.graph, dict(network.weights), network, {}, absolute=True)
    return replace(network, weights=weights, _seen=None)


def counted_anew(network: Network, policy: ResolvedPolicy) -> dict[str, Tensor]:
    """Weights with the statistics of the calibration data themselves."""
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    kept = kept_indices(network.evidence, policy.kept, policy.criterion)
    return recalibrate(graph, shrunk(network, policy), network, kept, absolute=True)


@pytest.mark.parametrize("name", ["residual", "depthwise-separable", "conv1d", "inception"])
def test_statistics_change_as_far_as_the_data_change(name: str) -> None:
    """Behind the statistics that were found: trained mean plus difference, trained variance times ratio."""
    network, policy = halved(name)
    network = settled(network).on_other_calibration(tuple(1.3 * x for x in network.calibration))
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    weights, plain = reduced(network, policy), shrunk(network, policy)
    kept = kept_indices(network.evidence, policy.kept, policy.criterion)
    checked = 0

    def look(node: Node, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        nonlocal checked
        scale, offset, mean, var = node.inputs[1:]
        was = network.norm_moments()[node.name]
        sliced = [prune(network.structure, {t: m}, kept)[t] for t, m in zip((mean, var), was, strict=True)]
        dims = [d for d in range(x.dim()) if d != 1]
        found = x.mean(dims), x.var(dims, correction=0)
        torch.testing.assert_close(given[mean], plain[mean] + found[0] - sliced[0], rtol=1e-3, atol=1e-4)
        usual = sliced[1] > 0.2 * plain[var]
        ratio = (plain[var] * found[1] / sliced[1])[usual]
        torch.testing.assert_close(given[var][usual], ratio, rtol=1e-3, atol=1e-4)
        checked += int(usual.sum())
        return F.batch_norm(x, given[mean], given[var], given[scale], given[offset], False, 0.0, 1e-5)

    run(graph, weights, network.calibration, norm_hook=look)
    assert checked > 20


def test_data_unlike_those_of_the_training_do_no_harm() -> None:
    """A network that loses next to nothing answers as before, whatever its calibration data are."""
    network = settled(network_of("residual"))
    space = space_of("residual")
    policy = space.resolve(Policy(keep={space.structure.groups[-1].name: 0.9}))
    assert not network.strange_data
    strange = network.on_other_calibration(tuple(0.3 * x[:24] + 1.0 for x in network.calibration))
    assert strange.strange_data
    wanted = run(network.structure.graph, network.weights, network.calibration)[0]
    off = []
    for weights in (reduced(strange, policy), counted_anew(strange, policy)):
        skeleton = network.skeletons.of(policy)
        graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
        found = run(graph, weights, network.calibration)[0]
        off.append(float((found - wanted).square().mean() / wanted.var()))
    assert off[0] < 0.25 * off[1]


@pytest.mark.parametrize("name", ["residual", "depthwise-separable", "conv1d", "inception"])
def test_statistics_are_those_torch_counts_on_the_same_batch(name: str) -> None:
    network, policy = halved(name)
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    weights = counted_anew(network, policy)
    checked = 0

    def count(node: Node, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        nonlocal checked
        scale, offset, mean, var = node.inputs[1:]
        m, v = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        y = F.batch_norm(x, m, v, given[scale], given[offset], True, 1.0, node.attrs["eps"])
        n = x.numel() / x.shape[1]
        torch.testing.assert_close(given[mean], m, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(given[var] * n / (n - 1), v, rtol=1e-4, atol=1e-5)
        checked += 1
        return y

    trained = run(graph, weights, network.calibration, norm_hook=count)
    plain = run(graph, weights, network.calibration)
    assert checked == sum(n.op == "batch_norm" for n in graph.nodes) > 2
    for a, b in zip(plain, trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["fire", "gated", "shared-weights", "transformer", "decoder"])
def test_biases_take_up_the_shift_of_the_mean(name: str) -> None:
    """On calibration data every channel of a layer that has a bias keeps the mean it had."""
    network, policy = halved(name)
    structure = network.structure
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, structure))
    weights = reduced(network, policy)
    after: dict[str, Tensor] = {}

    def look(tensor: str, value: Tensor) -> Tensor:
        after[tensor] = value
        return value

    run(graph, weights, network.calibration, look)
    checked = 0
    for layer in structure.layers:
        node = structure.graph.by_name[layer.nodes[0]]
        if not layer.bias or "prune" not in layer.fixed:
            continue  # layers that lose no channel: their means are compared position by position
        before = network.channel_means()[node.outputs[0]]
        axis = -1 if node.op == "linear" else 1
        value = after[node.outputs[0]].movedim(axis, -1).flatten(0, -2).mean(0)
        torch.testing.assert_close(value, before, rtol=1e-3, atol=1e-4)
        checked += 1
    assert checked >= 1


def test_nothing_compressed_means_nothing_changed() -> None:
    network = network_of("residual")
    weights = reduced(network, space_of("residual").resolve(Policy()))
    assert set(weights) == set(network.structure.graph.params)
    assert all(torch.equal(weights[k], network.weights[k]) for k in weights)
    mean = "stem.1.running_mean"
    assert mean in weights
    _, policy = halved("residual")
    assert not torch.equal(reduced(network, policy)[mean][:4], weights[mean][:4])


def test_a_batch_norm_called_several_times_gets_the_statistics_of_all_calls() -> None:
    network, policy = halved("shared-weights")
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    weights = counted_anew(network, policy)
    seen: list[Tensor] = []

    def look(node: Node, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if "repeat" in node.inputs[1]:
            seen.append(x)
        return F.batch_norm(x, None, None, given[node.inputs[1]], given[node.inputs[2]], True, 0.0, 1e-5)

    run(graph, weights, network.calibration, norm_hook=look)
    everything = torch.cat(seen)
    assert len(seen) == 3
    torch.testing.assert_close(
        weights["repeat.1.running_mean"], everything.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        weights["repeat.1.running_var"], everything.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5
    )
