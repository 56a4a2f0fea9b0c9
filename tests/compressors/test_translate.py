"""Policies of one target's space as another target executes them."""

from __future__ import annotations

import numpy as np
import pytest

from agents.toys import toy_space, toy_structure
from compressors.errors import PolicyError
from compressors.policy import FLOAT
from compressors.space import Abilities, PolicySpace
from compressors.translate import proposal_of, translated

FINE = toy_space(2, 32, bits=((8, 8), (4, 8)))


def drawn(space: PolicySpace, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, space.cardinalities)


@pytest.mark.parametrize("seed", range(20))
def test_a_policy_is_itself_in_its_own_space(seed: int) -> None:
    policy = FINE.resolve(FINE.at(drawn(FINE, seed)))
    found = translated(policy, FINE)
    assert found.exact
    assert FINE.resolve(FINE.decode(found.point)) == policy


@pytest.mark.parametrize("seed", range(10))
def test_what_a_coarser_space_takes_the_finer_one_takes_as_it_is(seed: int) -> None:
    coarse = toy_space(2, 32, granularity=16)
    there = translated(FINE.resolve(FINE.at(drawn(FINE, seed))), coarse)
    assert all(kept % 16 == 0 for kept in there.policy.kept.values())
    assert translated(there.policy, coarse).exact
    assert translated(there.policy, FINE).policy.kept == there.policy.kept


def test_an_array_that_has_no_float_kernels_takes_bits_for_float() -> None:
    array = PolicySpace(toy_structure(2, 32), Abilities(float_kernels=False))
    found = translated(FINE.resolve(FINE.dense), array)
    assert not found.exact
    assert set(found.policy.weight_bits.values()) == {8}
    assert FLOAT not in found.policy.act_bits.values()


def test_ranks_and_removed_blocks_come_along() -> None:
    at = FINE.cardinalities - 1
    names = [c.name for c in FINE.choices]
    at[names.index("rank:b1a")] = 0
    at[names.index("removed:block0")] = 0
    policy = FINE.resolve(FINE.at(at))
    proposal = proposal_of(FINE.structure, policy)
    assert policy.factors["b1a"].method == proposal.rank["b1a"][0]
    assert translated(policy, toy_space(2, 32)).policy.factors == policy.factors
    assert translated(policy, toy_space(2, 32)).policy.removed == ("block0",)


def test_a_policy_of_another_network_is_refused() -> None:
    with pytest.raises(PolicyError, match="for network"):
        translated(toy_space(3, 32).resolve(toy_space(3, 32).dense), FINE)
