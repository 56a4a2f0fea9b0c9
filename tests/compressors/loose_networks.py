"""Networks with parameters that belong to no layer: embedding, positions, norms, slopes, scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Embedding, learned positions, layer-norm, PReLU, scales."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.position = nn.Parameter(torch.randn(1, 6, 16))
        self.norm = nn.LayerNorm(16)
        self.fc, self.act = nn.Linear(16, 24), nn.PReLU()
        self.scale, self.gamma = nn.Parameter(torch.rand(24) + 0.5), nn.Parameter(torch.tensor(0.5))
        self.mix, self.head = nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, 6) to (b, 4)."""
        x = self.norm(self.table(ids) + self.position)
        x = self.mix(self.act(self.fc(x)) * self.scale) * self.gamma
        answer: Tensor = self.head(x.mean(1))
        return answer


class Image(nn.Module):
    """Batch-norm before and behind a convolution, PReLU, group-norm, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem = nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3, padding=1)
        self.act, self.norm = nn.PReLU(16), nn.GroupNorm(4, 16)
        self.body, self.folded = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.gain = nn.Parameter(torch.full((16, 1, 1), 0.9))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 4)."""
        x = self.norm(self.act(self.stem(self.first(x))))
        x = self.folded(self.body(x)) * self.gain + x
        answer: Tensor = self.head(x.mean((2, 3)))
        return answer


class Mixer(nn.Module):
    """A free matrix multiplied from the left mixes positions: it weighs, but is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(6, 6) / 3)
        self.fc, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 6, 16) to (b, 4)."""
        answer: Tensor = self.head(torch.relu(self.fc(torch.matmul(self.mix, x))).mean(1))
        return answer


def loose_case(name: str, samples: int = 48) -> tuple[nn.Module, Tensor]:
    """A network and inputs for it; the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = {"tokens": Tokens, "image": Image, "mixer": Mixer}[name]().eval()
        x = {
            "tokens": torch.randint(0, 50, (samples, 6)),
            "image": torch.randn(samples, 3, 8, 8),
            "mixer": torch.randn(samples, 6, 16),
        }[name]
    return module, x
