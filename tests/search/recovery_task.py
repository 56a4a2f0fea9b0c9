"""A task whose networks lose much by compression and are soon recovered; workers and drivers that die."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.recover_ray import Plan, recover_all
from search.score import Scorer
from search.task import Metric, Split, Task
from search.tasks.metrics import METRICS


def make_task() -> Task:
    """Stripes of eight kinds in noise, 12 x 12; a network of two convolutions and a batch-norm."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1600) % 8
    phase = 6.0 * torch.rand(1600, 1, generator=generator)
    wave = torch.sin(torch.arange(12.0)[None] * (0.6 + 0.5 * (labels // 2))[:, None] + phase)
    lying, standing = wave[:, :, None].expand(-1, 12, 12), wave[:, None, :].expand(-1, 12, 12)
    images = torch.where((labels % 2 == 0)[:, None, None], lying, standing)[:, None]
    images = images + 1.2 * torch.randn(1600, 1, 12, 12, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 8),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for step in range(150):
            part = slice(step % 16 * 50, step % 16 * 50 + 50)
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
            optimiser.step()
    train, validation = Split((images[:800],), labels[:800]), Split((images[800:],), labels[800:])
    return Task(
        "stripes", network.eval(), (images[:1],), (images[:128],), validation, METRICS["top1"], train=train
    )


ABILITIES = abilities_of(load_target("fpga-bitfusion"))


def make_scorer() -> Scorer:
    """The task's, for a target of few bits."""
    return Scorer.of(make_task(), ABILITIES.numerics)


def policies_of(scorer: Scorer, *kept: float) -> tuple[ResolvedPolicy, ...]:
    """One policy a share of channels; weights and activations of four bits."""
    space = PolicySpace(scorer.network.structure, ABILITIES)
    return tuple(space.resolve(space.uniform(k, 4, 4)) for k in kept)


def plan_of_three(scorer: Scorer) -> Plan:
    """The last one is hopeless."""
    return Plan(policies_of(scorer, 0.75, 0.5, 0.125), 12.0)


def drive(place: str) -> None:
    """Recover three candidates, as a search does; tells on stdout."""
    scorer = make_scorer()
    recover_all(
        scorer.task, scorer.network, scorer.numerics, plan_of_three(scorer), Path(place), workers=2,
        tell=lambda text: print(text, flush=True),  # noqa: T201
    )  # fmt: skip


@dataclass
class Deadly:
    """Top-1; at its ``at``-th call a process dies, once, where ``file`` is; not the one ``spared``."""

    file: Path
    at: int
    spared: int
    calls: int = 0

    def __call__(self, outputs: tuple[torch.Tensor, ...], targets: torch.Tensor | None) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at and os.getpid() != self.spared and self.file.exists():
            self.file.unlink()
            os.kill(os.getpid(), 9)
        return METRICS["top1"].score(outputs, targets)


def deadly(file: Path, at: int) -> Metric:
    """A metric that kills one worker."""
    return Metric("top1", True, "%", Deadly(file, at, os.getpid()))
