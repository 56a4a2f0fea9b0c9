"""The policy space: points, policies and resolved policies agree; rounding stays inside what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compressors.errors import PolicyError
from compressors.policy import FLOAT, Factor, Policy, ResolvedPolicy
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import EIGHT, MIXED, TWELVE, network_of, random_policy, space_of

SPACES = {
    (n, k): (n, a) for n in ("residual", "transformer", "grouped") for k, a in (("w8", EIGHT), ("wx", MIXED))
}


def points(space: PolicySpace) -> st.SearchStrategy[np.ndarray]:
    """Points of [0, 1]^d."""
    return hnp.arrays(np.float64, space.dimension, elements=st.floats(0, 1))


@given(data=st.data(), key=st.sampled_from(sorted(SPACES)))
@settings(max_examples=60, deadline=None)
def test_encode_undoes_decode(data: st.DataObject, key: tuple[str, str]) -> None:
    space = space_of(*SPACES[key])
    x = data.draw(points(space))
    policy = space.decode(x)
    again = space.decode(space.encode(policy))
    assert again == policy
    assert space.resolve(again) == space.resolve(policy)
    assert np.array_equal(space.indices(space.encode(policy)), space.indices(x))
    assert bool(((space.encode(policy) >= 0) & (space.encode(policy) <= 1)).all())


@given(data=st.data(), key=st.sampled_from(sorted(SPACES)))
@settings(max_examples=60, deadline=None)
def test_resolved_policies_are_inside_what_is_allowed(data: st.DataObject, key: tuple[str, str]) -> None:
    space = space_of(*SPACES[key])
    resolved = space.resolve(space.decode(data.draw(points(space))))
    structure, able = space.structure, space.abilities
    space.check(resolved)
    for name, kept in resolved.kept.items():
        g = structure.group[name]
        step = able.depthwise_granularity if g.depthwise else able.granularity
        assert 1 <= kept <= g.size
        assert kept == g.size or kept % (step if g.size >= 2 * step else max(1, g.size // 4)) == 0
    dead = {x for b in resolved.removed for x in structure.block[b].layers}
    assert set(resolved.weight_bits) == {x.name for x in structure.layers} - dead
    pairs = {*able.precisions, (FLOAT, FLOAT)}
    for layer in structure.layers:
        if layer.name in dead:
            continue
        w = resolved.weight_bits[layer.name]
        node = structure.graph.by_name[layer.nodes[0]]
        a = resolved.act_bits.get(structure.tensor_group_of[node.inputs[0]], FLOAT)
        assert w == FLOAT or (w, a) in pairs
    assert set(resolved.factors) <= set(resolved.weight_bits)


@pytest.mark.parametrize("name", TWELVE)
def test_the_ends_of_the_space(name: str) -> None:
    space = space_of(name)
    dense = space.resolve(space.dense)
    assert dense == space.resolve(space.decode(np.ones(space.dimension)))
    assert all(kept == space.structure.group[g].size for g, kept in dense.kept.items())
    assert dense.factors == {}
    assert set(dense.weight_bits.values()) == {FLOAT}
    small = space.resolve(space.decode(space.smallest))
    assert small != dense
    assert all(small.kept[g] <= dense.kept[g] for g in small.kept)
    assert space.log10_size > 2
    assert len({c.name for c in space.choices}) == space.dimension == len(space.cardinalities)


def test_uniform_scaling_scales_everything() -> None:
    space = space_of("residual")
    half = space.resolve(space.uniform(0.5, act_bits=8))
    assert all(abs(kept / space.structure.group[g].size - 0.5) < 0.15 for g, kept in half.kept.items())
    assert set(half.act_bits.values()) == {8}
    assert set(half.weight_bits.values()) == {8}
    assert half.removed == ()


def test_dead_layers_disappear_from_the_resolved_policy() -> None:
    space = space_of("residual")
    cut = space.resolve(Policy(removed=frozenset({"units.2"}), weight_bits={"units.2.conv1.0": 8}))
    dense = space.resolve(Policy())
    assert cut.removed == ("units.2",)
    gone = {"units.2.conv1.0", "units.2.conv2.0"}
    assert set(dense.weight_bits) - set(cut.weight_bits) == gone
    assert "units.2.conv1.0" not in cut.kept  # its channels go with the block
    assert "units.1.conv2.0" in cut.kept
    with_factor = Policy(removed=frozenset({"units.2"}), rank={"units.2.conv1.0": ("svd", 0.25)})
    assert space.resolve(with_factor) == cut  # what a dead layer was to become does not matter
    assert space.resolve(Policy(removed=frozenset({"units.2"}), keep={"units.2.conv1.0": 0.5})) == cut
    assert set(cut.act_bits) < set(dense.act_bits)


def test_blocks_one_after_the_other_can_both_go() -> None:
    space = space_of("transformer")
    both = space.resolve(Policy(removed=frozenset({"unit", "unit.attention"})))
    assert set(both.removed) == {"unit", "unit.attention"}
    assert not any(x.startswith("unit.") for x in both.weight_bits)
    inner = space.resolve(Policy(removed=frozenset({"unit.attention"})))
    assert "unit.fc1" in inner.weight_bits
    assert "unit.attention.qkv" not in inner.kept


def test_methods_and_skips_narrow_the_space() -> None:
    structure = network_of("residual").structure
    only = PolicySpace(structure, Abilities(methods=frozenset({"prune"})))
    assert {c.kind for c in only.choices} == {"keep"}
    skipped = PolicySpace(structure, Abilities(skip=("units.2*", "head")))
    names = {c.subject for c in skipped.choices if c.kind in ("rank", "removed")}
    assert not any(n.startswith("units.2") or n == "head" for n in names)
    assert len(skipped.choices) < PolicySpace(structure, Abilities()).dimension
    floats = PolicySpace(structure, Abilities(precisions=()))
    assert not any(c.kind in ("act_bits", "weight_bits") for c in floats.choices)


def test_weight_bits_are_a_choice_only_where_several_have_kernels() -> None:
    one, several = space_of("plain", EIGHT), space_of("plain", MIXED)
    assert not any(c.kind == "weight_bits" for c in one.choices)
    assert {c.subject for c in several.choices if c.kind == "weight_bits"} == set(several.structure.layer)
    assert several.abilities.weight_bits == (2, 4, 8)
    assert several.abilities.act_bits == (8,)


def test_bad_points_are_refused() -> None:
    space = space_of("plain")
    with pytest.raises(PolicyError, match=f"{space.dimension} coordinates"):
        space.decode(np.zeros(space.dimension + 1))
    with pytest.raises(PolicyError, match="NaN"):
        space.decode(np.full(space.dimension, np.nan))
    far = space.decode(np.full(space.dimension, 7.0))
    assert space.resolve(far) == space.resolve(Policy())


def changed(policy: ResolvedPolicy, **fields: object) -> ResolvedPolicy:
    """The policy with some fields replaced."""
    return ResolvedPolicy(**{**policy.__dict__, **fields})


def test_policies_for_other_networks_and_unknown_names_are_refused() -> None:
    space = space_of("residual")
    policy = space.resolve(Policy())
    cases = {
        "is for network": space_of("plain").resolve(Policy()),
        "unknown layer 'units.2.conv1.O'.* Did you mean 'units.2.conv1.0'": changed(
            policy, weight_bits={**policy.weight_bits, "units.2.conv1.O": 8}
        ),
        "unknown group 'stem'": changed(policy, kept={**policy.kept, "stem": 4}),
        "unknown tensor group": changed(policy, act_bits={"nowhere": 8}),
        "unknown block 'units.1'": changed(policy, removed=("units.1",)),
        "keeps 99 channels of group 'stem.0', which has 16": changed(policy, kept={"stem.0": 99}),
        "'head' cannot be factorised by 'tucker2': it takes svd": changed(
            policy, factors={"head": Factor("tucker2", (4, 4))}
        ),
        r"rank \[99\]; with the channels it keeps at most \[10\]": changed(
            policy, factors={"head": Factor("svd", (99,))}
        ),
        "'stem.0' cannot be factorised": changed(policy, factors={"stem.0": Factor("spatial", (2,))}),
    }
    for pattern, bad in cases.items():
        with pytest.raises(PolicyError, match=pattern) as caught:
            space.check(bad)
        assert caught.value.exit_code == 3
        assert str(caught.value).count("\n") <= 1
    space.check(random_policy(space, 3))


@pytest.mark.parametrize("name", TWELVE)
@pytest.mark.parametrize("abilities", [EIGHT, MIXED], ids=["8", "mixed"])
def test_points_resolve_as_policies_do(name: str, abilities: Abilities) -> None:
    space = space_of(name, abilities)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, space.cardinalities, size=(60, space.dimension))
    near = np.where(rng.random(rows.shape) < 0.1, rows[::-1], rows[:1])  # what was remembered is used again
    for row in (*rows, *near, space.cardinalities - 1, np.zeros_like(rows[0])):
        quick, plain = space.resolve_at(row), space.resolve(space.at(row))
        assert quick.to_dict() == plain.to_dict()
        assert list(quick.kept) == list(plain.kept)
        assert list(quick.weight_bits) == list(plain.weight_bits)
