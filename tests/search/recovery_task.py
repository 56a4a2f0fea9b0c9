"""A task whose networks lose much by compression and are soon recovered, and one that kills its workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from search.task import Metric, Split, Task
from search.tasks.metrics import METRICS


def make_task() -> Task:
    """Four kinds of stripes in noise, 12 x 12; a network of two convolutions and a batch-norm."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(800) % 4
    phase = torch.rand(800, 1, generator=generator)
    wave = torch.sin(torch.arange(12.0)[None] * (1 + labels // 2)[:, None] + phase)
    lying, standing = wave[:, :, None].expand(-1, 12, 12), wave[:, None, :].expand(-1, 12, 12)
    images = torch.where((labels % 2 == 0)[:, None, None], lying, standing)[:, None]
    images = images + 0.9 * torch.randn(800, 1, 12, 12, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for step in range(60):
            part = slice(step % 8 * 50, step % 8 * 50 + 50)
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
            optimiser.step()
    train, validation = Split((images[:400],), labels[:400]), Split((images[400:],), labels[400:])
    return Task(
        "stripes", network.eval(), (images[:1],), (images[:128],), validation, METRICS["top1"], train=train
    )


@dataclass
class Deadly:
    """Top-1 of which a process dies at its ``at``-th call, once, where ``file`` is; never the one ``spared``."""

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


@dataclass(frozen=True)
class Marked:
    """Batches of a task; every process that begins to train leaves a line in a file."""

    task: Task
    file: Path

    def __call__(
        self, seed: int, batch_size: int
    ) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor | None]]:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return self.task.batches(seed, batch_size)
