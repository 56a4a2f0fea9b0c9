"""A user's own task file for tests: a small network that tells four kinds of stripes apart."""

from __future__ import annotations

from pathlib import Path

TEXT = """
import torch
from torch import nn

from search.task import Split, Task
from search.tasks.metrics import metric_by_name


def make():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 4
    phase = torch.rand(600, 1, generator=generator)
    wave = torch.sin(torch.arange(12.0)[None] * (1 + labels // 2)[:, None] + phase)
    lying, standing = wave[:, :, None].expand(-1, 12, 12), wave[:, None, :].expand(-1, 12, 12)
    images = torch.where((labels % 2 == 0)[:, None, None], lying, standing)[:, None]
    images = images + 0.8 * torch.randn(600, 1, 12, 12, generator=generator)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(30):
        part = slice(step % 4 * 50, step % 4 * 50 + 50)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
        optimiser.step()
    return Task(
        name="stripes", network=network.eval(), example=(images[:1],), calibration=(images[:64],),
        validation=Split((images[200:],), labels[200:]), metric=metric_by_name("top1"),
    )
"""


def flags(folder: Path, *more: str) -> list[str]:
    """Writes the task into a folder; the flags of a quick search of it."""
    (folder / "stripes.py").write_text(TEXT, encoding="utf-8")
    task = f"--task={folder / 'stripes.py'}:make"
    return ["--target=raspberry-pi", task, "--max-latency=0.9x", "--recover=0", *more]
