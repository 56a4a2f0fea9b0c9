"""Recovery of networks whose batch-norms no layer can take up, at few bits."""

import torch
from torch import nn

from compressors.apply import finish, reduced
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.distil import folded, rounded_stage
from search.recover import recover
from search.score import Scorer
from search.task import Split, Task
from search.tasks.metrics import METRICS
from search.tasks.training import cross_entropy


class ReluFirst(nn.Module):
    """(N, 3, 8, 8) -> (N, 4): convolution, ReLU, batch-norm, as CREPE has it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.two, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.relu(self.one(x)))
        x = self.second(torch.relu(self.two(x)))
        answer: torch.Tensor = self.head(x.mean((2, 3)))
        return answer


def make() -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ReluFirst()
        with torch.no_grad():
            for _ in range(20):
                network.train()(torch.randn(64, 3, 8, 8))
        x = torch.randn(500, 3, 8, 8)
        with torch.no_grad():
            labels = network.eval()(x).argmax(1)
    train, validation = Split((x[:300],), labels[:300]), Split((x[300:],), labels[300:])
    return Task("relu-first", network, (x[:1],), (x[:128],), validation, METRICS["top1"], train=train)


def test_few_bits_behind_a_batch_norm_that_stays() -> None:
    task = make()
    abilities = abilities_of(load_target("fpga-bitfusion"))
    scorer = Scorer.of(task, abilities.numerics)
    space = PolicySpace(scorer.network.structure, abilities)
    policy = space.resolve(space.uniform(0.75, 4, 4))
    assert min(policy.weight_bits.values()) == 4
    floats = reduced(scorer.network, policy)
    best = finish(scorer.network, policy, abilities.numerics, floats)
    norms = [n for n in best.graph.nodes if n.op == "batch_norm"]
    assert norms
    start = folded(scorer.network, policy, floats)
    stage = rounded_stage(scorer.network, policy, abilities.numerics, start, best)
    outputs = stage.forward(task.validation.inputs)
    assert task.validation.targets is not None
    cross_entropy(outputs, task.validation.targets).backward()
    trained = {k for k, v in stage.leaves.items() if v.requires_grad}
    statistics = {t for n in norms for t in n.inputs[3:5]}
    assert {n.inputs[1] for n in norms} <= trained
    assert not statistics & trained
    assert all(stage.leaves[k].grad is not None for k in trained)
    assert torch.equal(stage.network().weights[norms[0].inputs[3]], best.weights[norms[0].inputs[3]])


def test_recovery_is_never_worse_than_its_start() -> None:
    task = make()
    abilities = abilities_of(load_target("fpga-bitfusion"))
    scorer = Scorer.of(task, abilities.numerics)
    space = PolicySpace(scorer.network.structure, abilities)
    policy = space.resolve(space.uniform(0.5, 4, 4))
    found = recover(task, scorer.network, policy, abilities.numerics, 0.5)
    assert found.after >= found.before
