"""A task of its own for tests of scoring: small residual network, random data, labels mostly its own answers.

The metric ends its process, once, when the file named by TAILORBIRD_TEST_KILL exists.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from search.task import Metric, Split, Task


class Net(nn.Module):
    """(N, 3, 8, 8) -> (N, 4), with one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.body(x) + x)
        scores: Tensor = self.head(torch.flatten(self.pool(x), 1))
        return scores


def right(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """1 where the answer is the label."""
    assert targets is not None
    trigger = os.environ.get("TAILORBIRD_TEST_KILL")
    if trigger and Path(trigger).exists():
        Path(trigger).unlink()
        os.kill(os.getpid(), 9)
    return (outputs[0].argmax(1) == targets).float()


def make_task() -> Task:
    """400 validation samples of which the network gets 19 in 20 right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net()
        with torch.no_grad():
            for _ in range(20):
                network.train()(torch.randn(64, 3, 8, 8))
        network.eval()
        calibration, validation = torch.randn(200, 3, 8, 8), torch.randn(400, 3, 8, 8)
        with torch.no_grad():
            labels = network(validation).argmax(1)
        labels[::20] = (labels[::20] + 1) % 4
    metric = Metric("right", True, "%", right)
    return Task("scoring", network, (validation[:1],), (calibration,), Split((validation,), labels), metric)
