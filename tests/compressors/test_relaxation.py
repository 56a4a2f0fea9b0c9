"""The relaxed network: a one-hot mixture is a policy, and gradients are those of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compressors.apply import compress, shrunk
from compressors.errors import PolicyError
from compressors.execute import run
from compressors.mixed_bits import MixedBits
from compressors.mixed_weights import anchored
from compressors.network import Network
from compressors.policy import FLOAT
from compressors.prune import kept_indices, prune
from compressors.recalibrate import fitted, recalibrate
from compressors.relaxation import RelaxedNetwork, divergence
from compressors.resolve import Numerics
from compressors.simulate import simulate
from compressors.skeleton import concrete, skeleton_of, unknowns
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import ALL, EIGHT, MIXED, inputs_for, network_of, space_of

#: Residual, concat, depthwise, grouped, transposed, shared weights, attention, and odd readers of weights.
FAMILIES = (
    "residual",
    "inception",
    "inverted-residual",
    "grouped",
    "decoder",
    "shared-weights",
    "transformer",
    "grouped-transposed",
    "tied-embedding",
    "two-outputs",
    "fixed-batch",
)
COARSE = Abilities(precisions=((4, 8), (8, 8)))

Gates = list[NDArray[np.float64]]


def one_hot(space: PolicySpace, indices: Sequence[int] | NDArray[np.int64]) -> Gates:
    """The mixture that is one policy."""
    return [np.eye(len(c.values))[i] for c, i in zip(space.choices, indices, strict=True)]


def drawn(space: PolicySpace, kinds: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Random values at coordinates of some kinds, everything else as it is."""
    top = space.cardinalities - 1
    of_kind = np.isin([c.kind for c in space.choices], kinds)
    return np.where(of_kind, np.random.default_rng(seed).integers(0, space.cardinalities), top)


def data(name: str) -> tuple[Tensor, ...]:
    """The calibration inputs as one batch, cut to what a fixed batch takes."""
    network = network_of(name)
    return fitted(network.structure.graph, network.calibration)


@cache
def bare(name: str) -> tuple[PolicySpace, RelaxedNetwork]:
    """Without reconstruction and recalibration."""
    space = space_of(name, COARSE)
    return space, RelaxedNetwork(network_of(name), space, Numerics(), [data(name)], corrected=False)


@cache
def settled(name: str) -> tuple[Network, PolicySpace, RelaxedNetwork]:
    """The network with the batch-norm statistics that its calibration data has, relaxed on these data."""
    base = network_of(name)
    with torch.no_grad():
        weights = recalibrate(base.structure.graph, dict(base.weights), base, {}, absolute=True)
    network = Network(base.structure, weights, base.calibration, base.skeletons)
    space = PolicySpace(network.structure, EIGHT)
    return network, space, RelaxedNetwork(network, space, Numerics(), [base.calibration])


def far(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest relative distance of two sets of outputs."""
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in pairs if b.is_floating_point())


@pytest.mark.parametrize("name", ALL)
def test_masked_channels_are_removed_channels(name: str) -> None:
    network, (space, relaxed) = network_of(name), bare(name)
    graph = network.structure.graph
    for seed in range(2):
        indices = drawn(space, ["keep"], seed)
        policy = space.resolve(space.at(indices))
        units = kept_indices(network.evidence, policy.kept, policy.criterion)
        small = concrete(graph, skeleton_of(network.structure, (), {}), policy.kept)
        wanted = run(small, prune(network.structure, network.weights, units), data(name))
        assert far(relaxed.answers(one_hot(space, indices), 0), wanted) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["rank", "removed"])
def test_one_rank_or_block_is_what_compression_makes_of_it(name: str, kind: str) -> None:
    network, (space, relaxed) = network_of(name), bare(name)
    changed = 0
    for seed in range(2):
        indices = drawn(space, [kind], seed)
        policy = space.resolve(space.at(indices))
        changed += len(policy.factors) + len(policy.removed)
        skeleton = network.skeletons.of(policy)
        graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
        wanted = run(graph, shrunk(network, policy), data(name))
        assert far(relaxed.answers(one_hot(space, indices), 0), wanted) < 1e-5
    assert changed or not any(c.kind == kind for c in space.choices)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "numerics", [Numerics(), Numerics(at_reads=True, narrow=True)], ids=["writes", "reads"]
)
def test_bits_are_near_what_compression_makes_of_them(name: str, numerics: Numerics) -> None:
    network, space = (
        network_of(name),
        space_of(name, Abilities(precisions=((4, 8), (8, 8)), numerics=numerics)),
    )
    relaxed = RelaxedNetwork(network, space, numerics, [data(name)])
    dense = run(network.structure.graph, network.weights, data(name))
    for seed in range(3):
        indices = drawn(space, ["act_bits", "weight_bits"], seed)
        compressed = compress(network, space.resolve(space.at(indices)), numerics)
        with torch.no_grad():
            wanted = simulate(compressed, data(name))
        found = relaxed.answers(one_hot(space, indices), 0)
        # ranges and statistics are found with what came before rounded, or not: a part of the change
        assert far(found, wanted) < 0.5 * far(dense, wanted) + 0.02


def test_rounded_weights_of_one_layer_are_exact() -> None:
    network, (space, relaxed) = network_of("plain"), bare("plain")
    names = [c.name for c in space.choices]
    at = dict(enumerate(names))
    layer = network.structure.layer["hidden"]
    indices = space.cardinalities - 1
    indices[names.index("weight_bits:hidden")] = 0
    for i, name in at.items():
        if name.startswith("act_bits"):
            indices[i] = 0
    shares = relaxed.bits.weights(
        [torch.tensor(g, dtype=torch.float32) for g in one_hot(space, indices)], "hidden"
    )
    resolved = space.resolve(space.at(indices))
    assert {b: float(s) for b, s in shares.items()} == {4: 1.0, 8: 0.0}
    assert resolved.weight_bits["hidden"] == 4
    mixed, _ = relaxed.mixed.of([torch.tensor(g, dtype=torch.float32) for g in one_hot(space, indices)])
    compressed = compress(network, resolved, Numerics())
    torch.testing.assert_close(mixed[layer.weight], compressed.weights[layer.weight])


@pytest.mark.parametrize("name", ["plain", "residual", "transformer", "decoder", "grouped", "two-inputs"])
def test_bits_of_every_policy_are_the_resolved_ones(name: str) -> None:
    structure = network_of(name).structure
    for able in (
        MIXED,
        Abilities(precisions=((8, 8),)),
        Abilities(precisions=((8, 8),), float_kernels=False),
    ):
        space = PolicySpace(structure, able)
        bits = MixedBits(space)
        for seed in range(6):
            indices = drawn(space, ["act_bits", "weight_bits", "removed"], seed)
            policy = space.resolve(space.at(indices))
            gates = [torch.tensor(g, dtype=torch.float32) for g in one_hot(space, indices)]
            for layer, resolved in policy.weight_bits.items():
                shares = {b: float(s) for b, s in bits.weights(gates, layer).items()}
                assert {b for b, s in shares.items() if s} == ({resolved} - {FLOAT})
            for group, resolved in policy.act_bits.items():
                shares = {b: float(s) for b, s in bits.tensors(gates, group).items()}
                assert {b for b, s in shares.items() if s} == ({resolved} - {FLOAT})


@pytest.mark.parametrize(
    "name", ["plain", "residual", "depthwise-separable", "grouped", "conv1d", "transformer"]
)
@pytest.mark.parametrize("kind", ["keep", "rank", "removed"])
def test_with_recalibration_a_policy_gives_what_the_real_one_gives(name: str, kind: str) -> None:
    network, space, relaxed = settled(name)
    if not any(c.kind == kind for c in space.choices):
        assert kind == "removed"
        return
    for seed in range(2):
        indices = drawn(space, [kind], seed)
        with torch.no_grad():
            wanted = simulate(compress(network, space.resolve(space.at(indices)), Numerics()), data(name))
        assert far(relaxed.answers(one_hot(space, indices), 0), wanted) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_compressed_loses_nothing(name: str) -> None:
    space = space_of(name, COARSE)
    relaxed = RelaxedNetwork(network_of(name), space, Numerics(), [data(name)])
    top = one_hot(space, space.cardinalities - 1)
    loss, slopes = relaxed.step(top, 0)
    assert loss == pytest.approx(0.0, abs=1e-6)
    assert [s.shape for s in slopes] == [g.shape for g in top]
    worse, _ = relaxed.step(one_hot(space, np.zeros(space.dimension, dtype=np.int64)), 0)
    assert worse > 1e-4 or worse > 10 * loss
    assert relaxed.step(top, 0)[0] == relaxed.step(top, len(relaxed.batches))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_differences_of_the_loss(name: str) -> None:
    # activation bits aside: their gradient to what comes before passes straight through the rounding
    able = Abilities(precisions=((4, FLOAT), (8, FLOAT)))
    space = space_of(name, able)
    relaxed = RelaxedNetwork(network_of(name), space, Numerics(), [data(name)])
    rng = np.random.default_rng(3)
    gates = [
        0.6 * rng.dirichlet(np.ones(len(c.values))) + 0.4 * np.eye(len(c.values))[-1] for c in space.choices
    ]
    loss, slopes = relaxed.step(gates, 0)
    again = relaxed.step(gates, 0)
    assert again[0] == loss
    for _ in range(4):
        direction = [rng.normal(size=len(g)) for g in gates]
        h = 3e-3
        ahead, behind = (
            relaxed.step([g + s * h * d for g, d in zip(gates, direction, strict=True)], 0)[0]
            for s in (1, -1)
        )
        slope = sum(float(s @ d) for s, d in zip(slopes, direction, strict=True))
        assert (ahead - behind) / (2 * h) == pytest.approx(slope, rel=0.03, abs=3e-3 * max(loss, 1e-2))


def test_activation_bits_have_exact_gradients_where_nothing_is_rounded_behind_them() -> None:
    space = space_of("residual", EIGHT)
    relaxed = RelaxedNetwork(
        network_of("residual"), space, Numerics(activations="s8-symmetric"), [data("residual")]
    )
    last = max(i for i, c in enumerate(space.choices) if c.kind == "act_bits")
    gates = one_hot(space, space.cardinalities - 1)
    gates[last] = np.array([0.5, 0.5])
    _, slopes = relaxed.step(gates, 0)
    h = 0.05
    moved = [g.copy() for g in gates], [g.copy() for g in gates]
    moved[0][last] += [h, -h]
    moved[1][last] -= [h, -h]
    difference = (relaxed.step(moved[0], 0)[0] - relaxed.step(moved[1], 0)[0]) / (2 * h)
    assert difference == pytest.approx(slopes[last][0] - slopes[last][1], rel=0.05, abs=1e-6)


def test_mixtures_lie_between_their_ends_and_batches_differ() -> None:
    space = space_of("plain", EIGHT)
    halves = [tuple(x[:8] for x in data("plain")), tuple(x[8:] for x in data("plain"))]
    relaxed = RelaxedNetwork(network_of("plain"), space, Numerics(), halves)
    low = one_hot(space, np.zeros(space.dimension, dtype=np.int64))
    top = one_hot(space, space.cardinalities - 1)
    path = [
        relaxed.step([(1 - t) * a + t * b for a, b in zip(low, top, strict=True)], 0)[0] for t in (0, 0.5, 1)
    ]
    assert path[0] > path[1] > path[2]
    assert relaxed.step(low, 0)[0] != relaxed.step(low, 1)[0]
    assert relaxed.step(low, 2)[0] == relaxed.step(low, 0)[0]


def test_gates_of_another_space_are_refused() -> None:
    space, relaxed = bare("plain")
    gates = one_hot(space, space.cardinalities - 1)
    with pytest.raises(PolicyError, match="one array a coordinate"):
        relaxed.step(gates[1:], 0)
    with pytest.raises(PolicyError, match="one number a value"):
        relaxed.step([np.ones(99), *gates[1:]], 0)


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    by_hand = (F.softmax(p, 1) * (F.softmax(p, 1).log() - F.softmax(q, 1).log())).sum() / 2
    torch.testing.assert_close(divergence([q], [p]), by_hand)
    maps = torch.arange(8.0).reshape(2, 2, 2)
    torch.testing.assert_close(divergence([maps + 1.0], [maps]), 1.0 / maps.var(correction=0))
    assert float(divergence([torch.tensor([1])], [torch.tensor([2])])) == 0.0


def test_anchors_stand_for_all_values() -> None:
    places, spread = anchored(5, 16)
    assert places == [0, 1, 2, 3]
    torch.testing.assert_close(spread, torch.cat([torch.eye(4), torch.zeros(1, 4)]))
    places, spread = anchored(21, 3)
    assert len(places) == 3
    assert float(spread[20].sum()) == 0.0
    torch.testing.assert_close(spread[places], torch.eye(3))
    assert float(spread[5].sum()) == pytest.approx(1.0)


def test_inputs_are_those_of_the_batch() -> None:
    space, relaxed = bare("residual")
    network = network_of("residual")
    x = inputs_for("residual", 16, seed=7)
    wanted = run(network.structure.graph, network.weights, x)
    assert far(relaxed.answers(one_hot(space, space.cardinalities - 1), 0), wanted) < 1e-6
