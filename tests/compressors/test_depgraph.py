"""Channel groups against an independent implementation: torch-pruning's DependencyGraph (DepGraph, 2023).

Of the twelve families it follows ten, and on those every channel of every layer has the same partners. It
does not keep grouped convolutions alike, and does not see into `nn.TransformerEncoderLayer`. Fresh graphs
and dictionaries are made for every network: its classes share mutable defaults.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from compressors.graph import Structure
from tests.compressors.helpers import ALL, TWELVE, network_of

Places = dict[tuple[str, int], frozenset[tuple[str, int, int]]]
LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
SEEN_BY_BOTH = tuple(x for x in TWELVE if x not in ("grouped", "transformer"))


def theirs(module: nn.Module, example: tuple[Tensor, ...]) -> Places:
    """(layer, output channel) to all (layer, weight dimension, position) that go with it."""
    import torch_pruning as tp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(module, example, verbose=False)
        names = {m: n for n, m in module.named_modules()}
        found: Places = {}
        for name, m in module.named_modules():
            if not isinstance(m, LAYERS):
                continue
            pruner = graph.get_pruner_of_module(m)
            for i in range(pruner.get_out_channels(m)):
                group = graph.get_pruning_group(m, pruner.prune_out_channels, idxs=[i])
                places: set[tuple[str, int, int]] = set()
                for dep, idxs in group:
                    target = dep.target.module
                    out = graph.is_out_channel_pruning_fn(dep.handler)
                    if not isinstance(target, LAYERS) or (getattr(target, "groups", 1) > 1 and not out):
                        continue
                    dim = int(out) if isinstance(target, nn.ConvTranspose2d) else 1 - int(out)
                    places |= {(names[target], dim, int(j)) for j in idxs}
                found[name, i] = frozenset(places)
    return found


def ours(structure: Structure) -> Places:
    """The same from our groups; channels that cannot be removed are left out."""
    layer_of = {x.weight: x for x in structure.layers}
    found: dict[tuple[str, int], set[tuple[str, int, int]]] = {}
    for g in structure.groups:
        units: list[set[tuple[str, int, int]]] = [set() for _ in range(g.size)]
        places = [(layer_of[p], d, marks) for (p, d), marks in g.slices.items() if p in layer_of]
        for layer, d, marks in places:
            for j, m in enumerate(marks):
                if m >= 0:
                    units[m].add((layer.name, d, j))
        for layer, d, marks in places:
            if d == (1 if layer.op == "conv_transpose" else 0):
                for j, m in enumerate(marks):
                    if m >= 0:
                        found.setdefault((layer.name, j), set()).update(units[m])
    return {k: frozenset(v) for k, v in found.items()}


@pytest.mark.parametrize("name", [*SEEN_BY_BOTH, "in-place", "channels-last", "prelu", "pre-activation"])
def test_every_channel_has_the_same_partners(name: str) -> None:
    module, example = ALL[name]()
    expected, found = theirs(module, example), ours(network_of(name).structure)
    assert len(found) >= 32
    assert {k: expected[k] for k in found} == found
    layers = {k for k, _ in expected} - {k for k, _ in found}
    fixed = {x.name for x in network_of(name).structure.layers if "prune" in x.fixed}
    assert layers == fixed


def test_torch_pruning_follows_ten_of_the_twelve_and_we_all() -> None:
    import torch_pruning as tp

    module, example = ALL["grouped"]()
    groups = theirs(module, example)
    mine = ours(network_of("grouped").structure)
    assert all(groups[k] != mine[k] for k in mine)  # the other groups' channels are missing
    assert groups["stem.0", 0] < mine["stem.0", 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(module, example, verbose=False)
        first = module.get_submodule("stem.0")
        graph.get_pruning_group(first, tp.prune_conv_out_channels, idxs=[0]).prune()
        with pytest.raises(RuntimeError), torch.no_grad():
            module(*example)
    encoder, tokens = ALL["transformer"]()
    with pytest.raises(ValueError, match="not in the dependency graph"):
        theirs(encoder, tokens)
    assert all(network_of(name).structure.groups for name in TWELVE)
    assert len(SEEN_BY_BOTH) == 10
