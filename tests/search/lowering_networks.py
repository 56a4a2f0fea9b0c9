"""Small networks that emission and lowering are tested on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Stem, two residual blocks (one with a strided shortcut), pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.a = self._branch(16, 16, 1)
        self.b = self._branch(16, 32, 2)
        self.short = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    @staticmethod
    def _branch(cin: int, cout: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
            nn.Conv2d(cout, cout, 3, 1, 1, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 16, 16) to (N, 10)."""
        x = self.stem(x)
        x = torch.relu(x + self.a(x))
        x = torch.relu(self.short(x) + self.b(x))
        return self.head(x.mean((2, 3)))


class Zoo(nn.Module):
    """One of nearly every operation: gates, transposed convolution, group norm, attention, shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.thin = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.norm = nn.GroupNorm(2, 8)
        self.into = nn.Linear(8, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.shared = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)
        self.slope = nn.PReLU(16)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 5)."""
        y = self.slope(self.first(x))
        y = y * nn.functional.hardsigmoid(self.gate(y.mean((2, 3), keepdim=True))) + self.thin(y)
        a, b = y.chunk(2, 1)
        y = nn.functional.max_pool2d(torch.cat([b, a], 1), 2, ceil_mode=True)
        y = nn.functional.hardswish(self.norm(self.up(y)))
        y = nn.functional.avg_pool2d(nn.functional.pad(y, (1, 1, 1, 1)), 2, 2)[:, :, 1:, :-1]
        y = nn.functional.interpolate(y, scale_factor=2.0).flatten(2).transpose(1, 2)
        y = self.encoder(nn.functional.gelu(self.into(y)))
        y = nn.functional.silu(self.shared(self.shared(y)))
        return self.head(torch.tanh(y.mean(1)))


def prepared(network: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, with batch-norm statistics that are not the default ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network.eval()
