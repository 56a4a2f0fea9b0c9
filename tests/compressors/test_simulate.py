"""Two ways to compute one network: float arithmetic on rounded values, and integers as a runtime has them."""

from __future__ import annotations

import pytest
import torch

from compressors.apply import compress
from compressors.resolve import Numerics
from compressors.simulate import answers, simulate
from compressors.space import Abilities
from tests.compressors.helpers import inputs_for, network_of, random_policy, space_of
from tests.compressors.networks import networks, oddities

NUMERICS = {
    "u8": Numerics(),
    "s8": Numerics(activations="s8-symmetric"),
    "powers": Numerics(activations="power-of-two"),
}


@pytest.mark.parametrize("name", [*networks(), *oddities()])
def test_integers_and_floats_agree_but_for_single_roundings(name: str) -> None:
    network, space = network_of(name), space_of(name)
    x = inputs_for(name, network.structure.graph.fixed_batch or 8, seed=3)
    policies = [space.resolve(space.uniform(1.0, 8)), *(random_policy(space, seed) for seed in range(8))]
    for policy in policies:
        compressed = compress(network, policy, NUMERICS["u8"])
        with torch.no_grad():
            integers = simulate(compressed, x)
        floats = simulate(compressed, x)  # where gradients are wanted
        for a, b in zip(integers, floats, strict=True):
            if b.is_floating_point():
                assert float((a - b).norm()) <= 0.1 * float(b.norm()) + 1e-6, policy


@pytest.mark.parametrize("kind", NUMERICS)
def test_all_numerics_and_few_bits(kind: str) -> None:
    space = space_of("residual", Abilities(precisions=((4, 8), (6, 8), (8, 8)), numerics=NUMERICS[kind]))
    network, x = network_of("residual"), inputs_for("residual", 8, seed=3)
    for seed in range(4):
        compressed = compress(network, random_policy(space, seed), NUMERICS[kind])
        (floats,) = simulate(compressed, x)
        found = answers(compressed, x)[0]
        assert found.shape == floats.shape
        assert float((found - floats).norm()) <= 0.1 * float(floats.norm()) + 1e-6


def test_a_removed_block_leaves_two_activations_in_a_row() -> None:
    network, space = network_of("residual"), space_of("residual")
    blocks = network.structure.blocks
    assert blocks
    x = inputs_for("residual", 8, seed=3)
    proposal = space.uniform(1.0, 8)
    removed = type(proposal)(act_bits=proposal.act_bits, removed=frozenset(b.name for b in blocks))
    compressed = compress(network, space.resolve(removed), Numerics())
    (floats,) = simulate(compressed, x)
    with torch.no_grad():
        (integers,) = simulate(compressed, x)
    assert float((integers - floats).norm()) <= 0.02 * float(floats.norm())
    assert set(compressed.policy.removed) == {b.name for b in blocks}
