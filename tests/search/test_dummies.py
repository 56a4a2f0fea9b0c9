"""Questions with few channels: the same kernels, with the same formulas, as questions with all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors.graph import Node, TensorType
from compressors.network import Network
from compressors.policy import Policy, ResolvedPolicy
from compressors.skeleton import unknowns
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search import lowering as module
from search.abilities import abilities_of
from search.dummies import LEAST, _tables, fewer, small_graph
from search.lowering import Lowering
from search.lowering_sizes import alignment_classes
from search.lowering_template import to_json
from search.tasks.networks_text import EncoderSize, SentenceEncoder
from search.templates import TemplateStore
from tests.search.lowering_networks import prepared

X86 = "x86-avx512-vnni"


class Wide(nn.Module):
    """Plain, padded depthwise, grouped, transposed and joined convolutions of many channels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 72, 3, 2, 1), nn.BatchNorm2d(72), nn.ReLU6())
        self.thin = nn.Sequential(nn.ZeroPad2d((0, 2, 1, 1)), nn.Conv2d(72, 72, 3, groups=72))
        self.point = nn.Sequential(nn.Conv2d(72, 96, 1), nn.BatchNorm2d(96))
        self.grouped = nn.Conv2d(96, 96, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(168, 64, 2, 2)
        self.norm = nn.GroupNorm(4, 64)
        self.head = nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 10))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 10)."""
        x = self.stem(x)
        y = self.point(torch.relu(self.thin(x)))
        y = y + torch.relu(self.grouped(y))
        found: Tensor = self.head(self.norm(self.up(torch.cat([x, y], 1))).mean((2, 3)))
        return found


def wide() -> Network:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    return Network.from_module(prepared(Wide()), (x[:1],), (x,))


def encoder() -> Network:
    torch.manual_seed(0)
    size = EncoderSize(vocabulary=300, positions=40, hidden=64, heads=4, layers=2, intermediate=160)
    ids, mask = torch.randint(0, 300, (4, 8)), torch.ones(4, 8)
    return Network.from_module(SentenceEncoder(size).eval(), (ids[:1], mask[:1]), (ids, mask))


MAKES = {"wide": wide, "encoder": encoder}


def policies_of(space: PolicySpace, count: int) -> list[ResolvedPolicy]:
    """Nothing done, eight bits everywhere, and random policies."""
    rng = np.random.default_rng(0)
    found = [space.resolve(Policy()), space.resolve(space.uniform(1.0, 8))]
    for _ in range(count):
        free = rng.random(space.dimension) < 0.6
        found.append(space.resolve(space.decode(np.where(free, rng.random(space.dimension), 1.0))))
    return found


@pytest.mark.parametrize("target", [X86, "raspberry-pi-4"])
@pytest.mark.parametrize("name", MAKES)
def test_few_channels_lead_to_the_templates_of_all(
    name: str, target: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, device = MAKES[name](), load_target(target)
    space = PolicySpace(network.structure, abilities_of(device))
    rng = np.random.default_rng(0)
    policies = [space.resolve(Policy()), space.resolve(space.uniform(1.0, 8))]
    policies += [
        space.resolve(
            space.decode(np.where(rng.random(space.dimension) < 0.6, rng.random(space.dimension), 1))
        )
        for _ in range(8)
    ]
    sizes: list[int] = []

    def noted(skeleton, values):
        graph = small_graph(skeleton, values)
        sizes.append(sum(t.elements() for t in graph.params.values()))
        return graph

    def store(name: str) -> TemplateStore:
        return TemplateStore(tmp_path / name)

    monkeypatch.setattr(module, "small_graph", noted)
    few = Lowering(network.structure, device, weights=network.weights, store=store("few"))
    templates = [to_json(few.template(p)) for p in policies]
    assert sizes
    assert not any(t["exact"] for t in templates)
    assert min(sizes) < 0.5 * sum(t.elements() for t in network.structure.graph.params.values())
    monkeypatch.setattr(module, "small_graph", lambda skeleton, values: None)
    every = Lowering(network.structure, device, weights=network.weights, store=store("all"))
    assert templates == [to_json(every.template(p)) for p in policies]


@pytest.mark.parametrize("target", [X86, "raspberry-pi-4"])
def test_fewer_channels_are_as_well_aligned(target: str) -> None:
    counts = np.arange(1, 700)
    small = np.array([fewer(int(v)) for v in counts])
    assert (small <= counts).all()
    assert small.max() < LEAST + 16
    device = load_target(target)
    # alone, several times over, and joined with other channels
    for many in (lambda v: v, lambda v: 3 * v, lambda v: 2 * v + 5, lambda v: v + np.roll(v, 100)):
        few, every = (alignment_classes(many(v).astype(float), device) for v in (small, counts))
        np.testing.assert_array_equal(few, every)


def test_only_tables_that_inputs_alone_choose_from_are_cut() -> None:
    network = encoder()
    space = PolicySpace(network.structure, abilities_of(load_target(X86)))
    policy = space.resolve(Policy())
    lowering = Lowering(network.structure, load_target(X86), weights=network.weights)
    skeleton = lowering._skeletons.of(policy)
    graph = small_graph(skeleton, unknowns(policy, network.structure))
    table = "embeddings.word_embeddings.weight"
    assert graph.params[table].shape == (LEAST, 64)
    assert _tables(skeleton.graph) == [table]
    reads = next(n for n in skeleton.graph.nodes if n.op == "embedding")
    fixed = reads.with_(inputs=(next(iter(set(graph.params) - {table})), table))
    changed = [fixed if n is reads else n for n in skeleton.graph.nodes]
    assert _tables(skeleton.graph.rebuilt(changed)) == []  # read when the file is loaded
    shared = Node("matmul", "again", (skeleton.graph.outputs[0], table), ("again",))
    types = {"again": TensorType((-1, 64))}
    tied = skeleton.graph.rebuilt([*skeleton.graph.nodes, shared], ("again",), types)
    assert _tables(tied) == []
