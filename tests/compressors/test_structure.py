"""Layers, MACs and sizes by closed forms; tensor groups; removable blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from compressors.resolve import fused_output, weight_shape
from compressors.structure import macs_of
from tests.compressors.helpers import ALL, TWELVE, network_of, random_kept, space_of


def test_macs_and_sizes_of_the_plain_network() -> None:
    layers = network_of("plain").structure.layer
    assert {k: v.macs for k, v in layers.items()} == {
        "body.0.0": 16 * 16 * 16 * 9,
        "body.2.0": 8 * 8 * 32 * 16 * 9,
        "body.4.0": 4 * 4 * 32 * 32 * 9,
        "hidden": 512 * 64,
        "head": 64 * 10,
    }
    assert layers["hidden"].weight_shape == (64, 512)
    assert layers["body.0.0"].kernel == (3, 3)
    assert (layers["body.2.0"].cin, layers["body.2.0"].cout) == (16, 32)


def test_macs_of_grouped_transposed_shared_and_token_layers() -> None:
    grouped = network_of("grouped").structure.layer
    assert grouped["wide.0"].macs == 4 * 4 * 64 * (32 // 4) * 9
    assert grouped["units.0.depthwise.0"].macs == 8 * 8 * 32 * 9
    assert grouped["units.0.depthwise.0"].depthwise
    decoder = network_of("decoder").structure.layer
    assert decoder["up2.0"].macs == 4 * 4 * 48 * 32 * 4  # input positions
    assert decoder["up1"].macs == 8 * 8 * 32 * 16 * 16
    assert (decoder["up2.0"].cin, decoder["up2.0"].cout) == (48, 32)
    shared = network_of("shared-weights").structure.layer
    assert shared["repeat.0"].macs == 3 * 8 * 8 * 24 * 24 * 9
    assert shared["square"].macs == 2 * 32 * 32
    assert network_of("transformer").structure.layer["unit.fc1"].macs == 16 * 32 * 64


@pytest.mark.parametrize("name", TWELVE)
def test_macs_agree_with_a_count_by_hooks(name: str) -> None:
    module, example = ALL[name]()
    counted: dict[str, int] = {}

    def count(path: str):  # type: ignore[no-untyped-def]
        def hook(m: nn.Module, ins: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            over = ins[0] if isinstance(m, nn.ConvTranspose2d) else out
            per = math.prod(m.weight.shape[1:])
            counted[path] = counted.get(path, 0) + over[0].numel() * per

        return hook

    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for path, m in module.named_modules():
        if isinstance(m, kinds) and "self_attn" not in path:
            m.register_forward_hook(count(path))
    with torch.no_grad(), torch.enable_grad():  # gradients keep the encoder layer off its fused path
        module(*example)
    found = {k: v.macs for k, v in network_of(name).structure.layer.items()}
    assert {k: found[k] for k in counted} == counted
    assert len(counted) >= len(found) - 2


@pytest.mark.parametrize("name", TWELVE)
def test_weight_shapes_follow_the_channels_kept(name: str) -> None:
    structure = network_of(name).structure
    kept = random_kept(structure, 5)
    full = {g.name: g.size for g in structure.groups}
    for layer in structure.layers:
        assert weight_shape(structure, layer, full) == layer.weight_shape
        small = weight_shape(structure, layer, kept)
        assert len(small) == len(layer.weight_shape)
        assert all(1 <= a <= b for a, b in zip(small, layer.weight_shape, strict=True))
        node = structure.graph.by_name[layer.nodes[0]]
        assert macs_of(structure.graph, node, batch=3) * len(layer.nodes) == 3 * layer.macs


@pytest.mark.parametrize("name", TWELVE)
def test_most_weights_are_searchable_in_two_ways(name: str) -> None:
    space = space_of(name)
    structure = space.structure
    subjects = {(c.kind, c.subject) for c in space.choices}
    owner = {x: g.name for g in structure.groups for x in g.layers}
    total = double = 0
    for layer in structure.layers:
        node = structure.graph.by_name[layer.nodes[0]]
        read = structure.tensor_group_of.get(node.inputs[0])
        knobs = [
            ("keep", owner.get(layer.name)) in subjects,
            ("rank", layer.name) in subjects,
            ("act_bits", read) in subjects and layer.op in space.abilities.integer_ops,
        ]
        total += math.prod(layer.weight_shape)
        double += math.prod(layer.weight_shape) * (sum(knobs) >= 2)
    matrices = sum(math.prod(t.shape) for t in structure.graph.params.values() if len(t.shape) >= 2)
    assert double / total >= 0.8
    assert double / matrices >= 0.8


def test_tensors_joined_by_adds_concats_and_pooling_share_bits() -> None:
    structure = network_of("residual").structure
    of = structure.tensor_group_of
    for block in structure.blocks:
        written = fused_output(structure.graph, structure.graph.producer[block.output])
        assert written != block.output  # the ReLU runs inside the addition's kernel
        assert of[written] == of[block.shortcut]
    inception = network_of("inception").structure
    concat = next(n for n in inception.graph.nodes if n.op == "cat")
    assert len({inception.tensor_group_of[t] for t in (*concat.inputs, *concat.outputs)}) == 1
    pool = next(n for n in inception.graph.nodes if n.op == "max_pool")
    assert inception.tensor_group_of[pool.inputs[0]] == inception.tensor_group_of[pool.outputs[0]]
    names = [g.name for g in structure.tensor_groups]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ALL)
def test_each_tensor_is_in_one_group_and_inputs_of_layers_are_in_some(name: str) -> None:
    structure = network_of(name).structure
    members = [t for g in structure.tensor_groups for t in g.tensors]
    assert len(members) == len(set(members))
    assert set(members) <= set(structure.graph.tensors)
    for layer in structure.layers:
        for call in layer.nodes:
            assert structure.graph.by_name[call].inputs[0] in structure.tensor_group_of


def test_residual_branches_are_blocks() -> None:
    residual = network_of("residual").structure
    assert [b.name for b in residual.blocks] == ["units.0", "units.2", "units.3"]  # units.1 changes the shape
    assert residual.block["units.2"].layers == ("units.2.conv1.0", "units.2.conv2.0")
    assert [b.name for b in network_of("transformer").structure.blocks] == [
        "unit.attention",
        "unit",
        "encoder.self_attn",
        "encoder",
    ]
    assert network_of("plain").structure.blocks == ()
