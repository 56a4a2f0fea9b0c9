"""Targets without float kernels: everything that can be is integer, whatever a policy asks for."""

from __future__ import annotations

import pytest

from compressors.policy import FLOAT, Policy
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import network_of

ARRAY = Abilities(precisions=((4, 4), (4, 8), (8, 4), (8, 8)), float_kernels=False)


@pytest.mark.parametrize("name", ["residual", "plain"])
def test_nothing_is_offered_or_resolved_to_float(name: str) -> None:
    space = PolicySpace(network_of(name).structure, ARRAY)
    for choice in space.choices:
        if choice.kind in ("weight_bits", "act_bits"):
            assert FLOAT not in choice.values
    dense = space.resolve(space.dense)
    low = space.resolve(space.uniform(1.0, act_bits=4, weight_bits=4))
    assert set(dense.weight_bits.values()) == {8}
    assert set(dense.act_bits.values()) == {8}
    assert set(low.weight_bits.values()) == {4}
    assert set(low.act_bits.values()) == {4}


def test_where_float_executes_idle_tensors_stay_float() -> None:
    space = PolicySpace(network_of("residual").structure, Abilities())
    group = space.structure.tensor_groups[0].name
    alone = space.resolve(Policy(act_bits={group: 8}))
    everywhere = space.resolve(space.uniform(1.0, act_bits=8))
    assert alone == space.resolve(space.dense)
    assert set(alone.act_bits.values()) == {FLOAT}
    assert 8 in everywhere.act_bits.values()
