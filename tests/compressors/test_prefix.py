from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compressors.apply import compress
from compressors.execute import run
from compressors.network import Network
from compressors.prefix import PrefixCache, content, content_digest, narrow_points, run_shared
from compressors.resolve import Numerics
from compressors.space import PolicySpace
from tests.compressors.helpers import EIGHT, network_of


class Masked(nn.Module):
    """Layers of gated attention over tokens, all reading one mask that the input gives."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 16)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"query": nn.Linear(16, 16), "key": nn.Linear(16, 16), "value": nn.Linear(16, 16),
                 "norm": nn.LayerNorm(16), "wide": nn.Linear(16, 24), "back": nn.Linear(24, 16),
                 "last": nn.LayerNorm(16)}
            )
            for _ in range(3)
        )  # fmt: skip

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids (N, L) and mask (N, L) to (N, 16)."""
        x = self.table(ids)
        added = (mask[:, None, None, :] - 1.0) * 10000.0
        for layer in self.layers.children():
            q, k, v = (
                layer[part](x).unflatten(-1, (2, -1)).transpose(1, 2) for part in ("query", "key", "value")
            )
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
            x = layer["norm"](mixed.transpose(1, 2).flatten(2) + x)
            x = layer["last"](layer["back"](torch.relu(layer["wide"](x))) + x)
        found: Tensor = (x * mask[:, :, None]).mean(1)
        return found


def encoder() -> Network:
    """Of random weights, with six samples."""
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 60, (6, 8)), (torch.rand(6, 8) < 0.8).float()
    mask[:, 0] = 1.0
    return Network.from_module(Masked().eval(), (ids[:1], mask[:1]), (ids, mask))


def test_a_mask_beside_the_activations_is_no_hindrance() -> None:
    graph = encoder().structure.graph
    points = narrow_points(graph)
    norms = [names for names in points.values() if graph.producer[names[0]].op == "layer_norm"]
    assert len(norms) == 6  # behind attention and perceptron of every layer
    assert all(len(names) > 1 for names in norms)


@pytest.mark.parametrize("name", ["encoder", "residual", "two-inputs", "transformer", "pre-activation"])
def test_shared_runs_give_the_same_answers(name: str) -> None:
    network = encoder() if name == "encoder" else network_of(name)
    graph, inputs = network.structure.graph, network.calibration
    cache = PrefixCache(1 << 26)
    layers = [x.weight for x in network.structure.layers]
    with torch.no_grad():
        for changed in (None, layers[-1], layers[len(layers) // 2], layers[0], None):
            weights = dict(network.weights)
            if changed is not None:
                weights[changed] = weights[changed] * 1.5
            plain = run(graph, weights, inputs)
            found = run_shared(graph, weights, inputs, cache, b"these")
            assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert cache.hits >= 3
    cache.hits = 0
    with torch.no_grad():
        run_shared(graph, network.weights, inputs, cache, b"others")
    assert cache.hits == 0


def test_policies_of_a_network_with_a_mask_share_their_beginnings() -> None:
    """Recalibration and rounding resume in the middle, bit for bit."""
    network = encoder()
    space = PolicySpace(network.structure, EIGHT)
    top = space.cardinalities - 1
    names = [c.name for c in space.choices]
    last = max(i for i, n in enumerate(names) if n.startswith("keep:") and "layers.2" in n)
    policies = []
    for value in range(3):
        at = top.copy()
        at[[i for i, n in enumerate(names) if n.startswith(("act_bits", "keep:layers.0"))]] = 0
        at[last] = value
        policies.append(space.resolve(space.at(at)))
    assert len({p.digest for p in policies}) == 3
    together = [compress(network, p, Numerics()) for p in policies]
    assert network.prefixes.hits > 0
    assert network.rounded.hits > 0
    for policy, ours in zip(policies, together, strict=True):
        alone = compress(replace(network), policy, Numerics())
        assert alone.activations == ours.activations
        assert all(torch.equal(w, ours.weights[n]) for n, w in alone.weights.items())


def test_digests_follow_what_is_written_into_a_tensor() -> None:
    value = torch.arange(10_000.0)
    first = content_digest(value)
    assert content_digest(value) == content_digest(value.clone()) == first
    assert len(first) < 64 < len(content(value))
    value[17] = -1.0
    assert content_digest(value) != first
    view = value.reshape(100, 100)
    assert content_digest(view) != content_digest(value)
    before = content_digest(view)
    value.add_(1.0)
    assert content_digest(view) != before
