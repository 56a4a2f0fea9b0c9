"""Channel groups: removing units works, and means what setting them to zero means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressors.execute import run
from compressors.graph import ChannelGroup
from compressors.prune import prune
from compressors.skeleton import concrete, skeleton_of
from tests.compressors.helpers import (
    ALL,
    cut,
    network_of,
    random_kept,
    random_units,
    survivors,
    zeroed,
)
from tests.compressors.networks import inputs_for

#: Operations that look at all channels at once: what is left changes when some are removed.
OVER_CHANNELS = ("layer_norm", "group_norm")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(4))
def test_removing_units_leaves_a_network_of_the_sizes_said(name: str, seed: int) -> None:
    network = network_of(name)
    structure = network.structure
    kept = random_kept(structure, seed)
    weights = prune(structure, network.weights, random_units(structure, kept, seed))
    skeleton = skeleton_of(structure, (), {})
    graph = concrete(skeleton.unfolded, skeleton, kept)
    batch = structure.graph.fixed_batch or 3
    shapes: dict[str, tuple[int, ...]] = {}

    def look(tensor: str, value: Tensor) -> Tensor:
        shapes[tensor] = tuple(value.shape)
        return value

    outputs = run(graph, weights, inputs_for(name, batch), look)
    assert shapes == {t: tuple(d if d >= 0 else -d * batch for d in graph.tensors[t].shape) for t in shapes}
    assert {p: tuple(weights[p].shape) for p in graph.params} == {p: v.shape for p, v in graph.params.items()}
    full = [structure.graph.tensors[t].shape for t in structure.graph.outputs]
    assert [graph.tensors[t].shape for t in graph.outputs] == full
    assert all(bool(torch.isfinite(y).all()) for y in outputs)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_removing_channels_means_setting_them_to_zero(name: str, seed: int) -> None:
    network = network_of(name)
    structure, graph = network.structure, network.structure.graph
    kept = random_kept(structure, seed)
    for g in structure.groups:
        if _normed_over_channels(name, g):
            kept[g.name] = g.size
    units = random_units(structure, kept, seed)
    batch = graph.fixed_batch or 3
    x = inputs_for(name, batch, seed)
    masks = {t: survivors(graph, structure.group, units, t, batch) for t in graph.tensors}
    expected: dict[str, Tensor] = {}

    def mask(tensor: str, value: Tensor) -> Tensor:
        value = zeroed(value, masks[tensor])
        expected[tensor] = cut(value, masks[tensor])
        return value

    masked = run(graph, network.weights, x, mask)
    small = concrete(graph, skeleton_of(structure, (), {}), kept)
    found: dict[str, Tensor] = {}

    def look(tensor: str, value: Tensor) -> Tensor:
        found[tensor] = value
        return value

    outputs = run(small, prune(structure, network.weights, units), x, look)
    assert set(found) == set(expected)
    for t in found:
        torch.testing.assert_close(
            found[t], expected[t], rtol=1e-4, atol=1e-5, msg=lambda m, t=t: f"{t}: {m}"
        )
    for a, b in zip(outputs, masked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _normed_over_channels(name: str, group: ChannelGroup) -> bool:
    graph = network_of(name).structure.graph
    return any(
        n.op in OVER_CHANNELS and any((n.inputs[0], d) in group.slices for d in range(4)) for n in graph.nodes
    )


@pytest.mark.parametrize("name", ALL)
def test_groups_are_disjoint_and_name_what_they_cut(name: str) -> None:
    structure = network_of(name).structure
    owners: dict[tuple[str, int, int], str] = {}
    for g in structure.groups:
        assert g.size >= 2
        assert g.layers
        for (tensor, dim), marks in g.slices.items():
            assert len(marks) == abs(structure.graph.type_of(tensor).shape[dim])
            assert set(marks) - {-1} == set(range(g.size))
            for i, mark in enumerate(marks):
                if mark >= 0:
                    assert owners.setdefault((tensor, dim, i), g.name) == g.name
        for layer in g.layers:
            x = structure.layer[layer]
            assert any((x.weight, d) in g.slices for d in (0, 1))
    assert len({g.name for g in structure.groups}) == len(structure.groups)


@pytest.mark.parametrize("name", ALL)
def test_every_layer_is_in_a_group_or_has_a_reason(name: str) -> None:
    structure = network_of(name).structure
    cut_layers = {x for g in structure.groups for x in g.layers}
    for layer in structure.layers:
        assert (layer.name in cut_layers) != ("prune" in layer.fixed)
    noted = {(s, w.partition(":")[0]) for s, w in structure.notes}
    for layer in structure.layers:
        for knob in layer.fixed:
            said = {"prune": "not pruned", "rank": "not factorised", "bits": "not quantised"}[knob]
            assert (layer.name, said) in noted


def group_of(name: str, layer: str) -> ChannelGroup:
    """The group that cuts a layer's output."""
    structure = network_of(name).structure
    return next(g for g in structure.groups if layer in g.layers)


def test_residual_adds_tie_channels() -> None:
    stem = group_of("residual", "stem.0")
    assert set(stem.layers) == {"stem.0", "units.0.conv2.0"}
    late = group_of("residual", "units.1.project.0")
    assert {"units.1.conv2.0", "units.2.conv2.0", "units.3.conv2.0"} <= set(late.layers)
    assert group_of("residual", "units.0.conv1.0").layers == ("units.0.conv1.0",)


def test_heads_of_attention_go_as_a_whole() -> None:
    heads = group_of("transformer", "unit.attention.qkv")
    assert heads.size == 4
    assert heads.slices["unit.attention.qkv.weight", 0].count(0) == 3 * 8
    width = group_of("transformer", "patch")
    assert width.size == 32
    assert "encoder.linear2" in width.layers
    assert ("position", 2) in width.slices


def test_shuffled_groups_stay_alike() -> None:
    wide = group_of("grouped", "wide.0")
    assert wide.size == 16  # one channel of each of the four groups goes together
    assert wide.slices["wide.0.weight", 0].count(0) == 4
    first = group_of("grouped", "units.0.first.0")
    assert "units.0.depthwise.0" in first.layers
    assert first.depthwise


def test_splits_and_concats_cut_where_channels_come_from() -> None:
    structure = network_of("split").structure
    stem = [g for g in structure.groups if "stem.0" in g.layers]
    assert sum(g.size for g in stem) == 24
    assert len(stem) == 2
    inception = network_of("inception").structure
    sizes = inception.sizes["units.1.one.0.weight"][1]
    assert len(sizes.mult) == 4
    assert sizes.const == 0


def test_gated_linear_units_tie_value_and_gate() -> None:
    gated = group_of("gated", "gate")
    assert set(gated.layers) == {"gate", "up"}
    assert gated.size == 24
    glu = network_of("gated").structure.layer["conv"]
    assert "down" in network_of("gated").structure.layer
    assert glu.op == "conv"
