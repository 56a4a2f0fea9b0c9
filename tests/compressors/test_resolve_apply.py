"""What resolution yields can be applied: any proposal, any registered scheme, on the twelve networks."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressors.apply import compress
from compressors.execute import run
from compressors.factors import FACTORISATIONS, factor_shapes
from compressors.graph import Structure
from compressors.policy import Policy, ResolvedPolicy
from compressors.resolve import weight_shape
from compressors.skeleton import concrete, unknowns
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import TWELVE, inputs_for, network_of

EVERY = frozenset({"prune", "quantize", "depth", *FACTORISATIONS})
TARGETS = (
    Abilities(methods=EVERY),
    Abilities(methods=EVERY, precisions=((2, 8), (4, 8), (8, 8)), granularity=1, depthwise_granularity=1),
    Abilities(methods=EVERY, precisions=((4, 4), (8, 8)), float_kernels=False, granularity=8),
)
ratios = st.floats(0.0, 1.0, exclude_min=True)
bits = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 32])


@st.composite
def proposals(draw: st.DrawFn, structure: Structure) -> Policy:
    """Any policy in ratios, most layers factorised, also by schemes that do not fit them."""

    def some(names: list[str], values: st.SearchStrategy[object]) -> dict[str, object]:
        return draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)))

    layers = [x.name for x in structure.layers]
    rank = st.tuples(st.sampled_from(list(FACTORISATIONS)), ratios)
    blocks = [b.name for b in structure.blocks]
    return Policy(
        keep=some([g.name for g in structure.groups], ratios),  # type: ignore[arg-type]
        rank=draw(st.fixed_dictionaries(dict.fromkeys(layers, rank))),
        weight_bits=some(layers, bits),  # type: ignore[arg-type]
        act_bits=some([g.name for g in structure.tensor_groups], bits),  # type: ignore[arg-type]
        removed=draw(st.frozensets(st.sampled_from(blocks), max_size=1)) if blocks else frozenset(),
    )


def resolved(data: st.DataObject, name: str) -> tuple[PolicySpace, ResolvedPolicy]:
    """Any policy of any of the targets, resolved."""
    structure = network_of(name).structure
    space = PolicySpace(structure, data.draw(st.sampled_from(TARGETS)))
    return space, space.resolve(data.draw(proposals(structure)))


@pytest.mark.parametrize("name", TWELVE)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_resolved_policies_are_checked_stored_and_sized_alike(name: str, data: st.DataObject) -> None:
    space, policy = resolved(data, name)
    space.check(policy)
    back = ResolvedPolicy.from_dict(json.loads(policy.to_json()))
    assert back == policy
    structure, skeletons = space.structure, network_of(name).skeletons
    skeleton = skeletons.of(policy)
    for graph in (skeleton.graph, skeleton.unfolded):
        sized = concrete(graph, skeleton, unknowns(policy, structure))
        assert all(
            min(kind.shape, default=1) != 0 for kind in (*sized.params.values(), *sized.tensors.values())
        )
        for layer, factor in policy.factors.items():
            shape = weight_shape(structure, structure.layer[layer], policy.kept)
            said = factor_shapes(structure.layer[layer], shape, factor)
            assert [sized.params[w].shape for w in skeleton.factor_weights[layer]] == said
            assert FACTORISATIONS[factor.method].takes(structure.layer[layer])


@pytest.mark.parametrize("name", TWELVE)
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_resolved_policies_can_be_applied(name: str, data: st.DataObject) -> None:
    space, policy = resolved(data, name)
    compressed = compress(network_of(name), policy, space.abilities.numerics)
    graph = compressed.graph
    assert set(compressed.weights) >= set(graph.params)
    assert {p: tuple(compressed.weights[p].shape) for p in graph.params} == {
        p: kind.shape for p, kind in graph.params.items()
    }
    assert all(bool(torch.isfinite(compressed.weights[p]).all()) for p in graph.params)
    samples = graph.fixed_batch or 3
    outputs = run(graph, compressed.weights, inputs_for(name, samples, seed=1))
    for answer, t in zip(outputs, graph.outputs, strict=True):
        assert answer.numel() == graph.tensors[t].elements(samples)
        assert bool(torch.isfinite(answer).all())
