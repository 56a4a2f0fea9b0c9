"""Parameters of no layer: all are listed with bytes and a reason, and compression leaves them alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compressors.apply import compress
from compressors.execute import run
from compressors.network import Network
from compressors.policy import Policy
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import ALL, network_of
from tests.compressors.loose_networks import loose_case


def network_for(name: str) -> Network:
    module, x = loose_case(name)
    return Network.from_module(module, (x[:2],), (x,))


#: Subject, bytes counted by hand, and what the reason says.
EXPECTED = {
    "tokens": [
        ("table.weight", 50 * 16 * 4, "looked up"),
        ("position", 6 * 16 * 4, "added to activations"),
        ("norm", 2 * 16 * 4, "layer-norm"),
        ("act.weight", 4, "PReLU"),
        ("scale", 24 * 4, "scale of activations"),
        ("gamma", 4, "scale of activations"),
    ],
    "image": [
        ("first", 4 * 3 * 4, "batch-norm to fold it into"),
        ("act.weight", 16 * 4, "PReLU"),
        ("norm", 2 * 16 * 4, "group-norm"),
        ("gain", 16 * 4, "scale of activations"),
    ],
    "mixer": [("mix", 6 * 6 * 4, "not an operation whose weights can be searched")],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_parameter_of_no_layer_is_listed(name: str) -> None:
    structure = network_for(name).structure
    listed = [(x.subject, x.size_bytes) for x in structure.loose]
    assert listed == [(subject, size) for subject, size, _ in EXPECTED[name]]
    notes = dict(structure.notes)
    for subject, size, says in EXPECTED[name]:
        assert notes[subject].startswith(f"{size} bytes stay")
        assert says in notes[subject]
    total = sum(size for _, size, _ in EXPECTED[name])
    everything = sum(4 * math.prod(k.shape) for k in structure.graph.params.values())
    assert notes["parameters"].startswith(f"{total} bytes, {total / everything:.1%} of all")
    assert [x.subject for x in structure.loose if x.weighs] == (["mix"] if name == "mixer" else [])


@pytest.mark.parametrize("name", ALL)
def test_layers_loose_parameters_and_folded_norms_are_all_there_is(name: str) -> None:
    structure = network_of(name).structure
    graph = structure.graph
    owned = [p for x in structure.layers for n in x.nodes for p in graph.by_name[n].inputs[1:] if p]
    loose = [p for x in structure.loose for p in x.names]
    left = set(graph.params) - set(owned) - set(loose)
    folded = {p for n in graph.nodes if n.op == "batch_norm" for p in n.inputs[1:]}
    assert len(loose) == len(set(loose))
    assert set(loose).isdisjoint(owned)
    assert left <= folded
    noted = [s for s, _ in structure.notes]
    assert all(x.subject in noted or x.subject.startswith("constant_") for x in structure.loose)


@pytest.mark.parametrize("name", EXPECTED)
def test_compression_leaves_them_as_they_are(name: str) -> None:
    network = network_for(name)
    space = PolicySpace(network.structure, Abilities())
    names = [p for x in network.structure.loose for p in x.names if not p.endswith(("_mean", "_var"))]
    rng = np.random.default_rng(0)
    for _ in range(4):
        policy = space.resolve(space.decode(rng.random(space.dimension)))
        compressed = compress(network, policy, space.abilities.numerics)
        answer = run(compressed.graph, compressed.weights, tuple(x[:4] for x in network.calibration))[0]
        assert answer.shape == (4, 4)
        assert bool(torch.isfinite(answer).all())
        gone = {p for p in names if p not in compressed.graph.params}
        assert not gone or policy.removed  # only with their whole block
        for p in set(names) - gone:
            before, after = network.weights[p], compressed.weights[p]
            assert after.dtype == torch.float32
            assert torch.isin(after, before).all()  # pruned at most, never rounded
            assert p not in compressed.codes
    whole = compress(network, space.resolve(Policy()), space.abilities.numerics)
    assert all(torch.equal(whole.weights[p], network.weights[p]) for p in names)
