"""Compressed networks that no profile has seen: six families, random policies, files of the product's export.

Used by scripts/bench_predictor_local.py. Weights are random (latency does not depend on them), the policies
are random within the family's policy space: widths, ranks, blocks and, by mode, bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressors.apply import compress
from compressors.network import Network
from compressors.policy import FLOAT, Policy
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.export_onnx import export_model
from search.tasks.networks import ResNet

MODES = ("fp32", "int8", "mixed")


@dataclass(frozen=True)
class HeldOut:
    """One file: its family, the network's own name, resolution, mode and policy number, and ONNX bytes."""

    family: str
    name: str
    mode: str
    model: bytes


def _conv(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu6: bool = False
) -> nn.Sequential:
    act = nn.ReLU6() if relu6 else nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
        act,
    )


class _Residual(nn.Module):
    """Basic or bottleneck block (He et al. 2016)."""

    def __init__(self, cin: int, cout: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            mid = cout // 4
            self.body = nn.Sequential(
                _conv(cin, mid, 1),
                _conv(mid, mid, 3, stride),
                nn.Conv2d(mid, cout, 1, bias=False),
                nn.BatchNorm2d(cout),
            )
        else:
            self.body = nn.Sequential(
                _conv(cin, cout, 3, stride), nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
            )
        same = stride == 1 and cin == cout
        self.short: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))


class _BigResNet(nn.Module):
    """ImageNet-style stem (7x7, stride 2, max pool) and four stages."""

    def __init__(self, width: int, blocks: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
        cin, grow = width, 4 if bottleneck else 1
        for i, count in enumerate(blocks):
            for j in range(count):
                cout = (width << i) * grow
                layers.append(_Residual(cin, cout, 2 if i and not j else 1, bottleneck))
                cin = cout
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(cin, 100)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(functional.adaptive_avg_pool2d(self.body(x), 1).flatten(1))
        return out


class _Vgg(nn.Module):
    """Stacks of 3x3 convolutions and max pools, two dense layers (Simonyan and Zisserman 2015)."""

    def __init__(self, widths: tuple[int | str, ...], side: int, dense: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 3
        for w in widths:
            if isinstance(w, str):
                layers.append(nn.MaxPool2d(2))
                side //= 2
            else:
                layers.append(_conv(cin, w))
                cin = w
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(cin * side * side, dense), nn.ReLU(), nn.Linear(dense, 10))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).flatten(1))
        return out


class _Inverted(nn.Module):
    """Inverted residual (Sandler et al. 2018)."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int, kernel: int = 3) -> None:
        super().__init__()
        mid = cin * expand
        self.body = nn.Sequential(
            *([_conv(cin, mid, 1, relu6=True)] if expand > 1 else []),
            _conv(mid, mid, kernel, stride, groups=mid, relu6=True),
            nn.Conv2d(mid, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )
        self.same = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.same else y


class _Mobile(nn.Module):
    """MobileNetV2 with a width multiplier and fewer repeats."""

    def __init__(self, multiplier: float, repeats: int) -> None:
        super().__init__()
        plan = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, repeats, 2),
            (6, 64, repeats, 2),
            (6, 96, repeats, 1),
            (6, 160, 1, 2),
        )

        def wide(c: float) -> int:
            return max(8, int(c * multiplier + 4) // 8 * 8)

        cin = wide(32)
        layers: list[nn.Module] = [_conv(3, cin, 3, 2, relu6=True)]
        for expand, width, count, stride in plan:
            for j in range(count):
                layers.append(_Inverted(cin, wide(width), stride if not j else 1, expand))
                cin = wide(width)
        layers.append(_conv(cin, wide(640), 1, relu6=True))
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(wide(640), 100)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.body(x).mean((2, 3)))
        return out


class _Unit(nn.Module):
    """Four branches concatenated (Szegedy et al. 2015); the 5x5 may be 1x5 and 5x1 (Szegedy et al. 2016)."""

    def __init__(self, cin: int, w: int, thin: bool) -> None:
        super().__init__()
        self.one = _conv(cin, w, 1)
        self.three = nn.Sequential(_conv(cin, w, 1), _conv(w, w * 3 // 2))
        self.five = (
            nn.Sequential(_conv(cin, w // 2, 1), _conv(w // 2, w, 3), _conv(w, w, 3))
            if thin
            else nn.Sequential(_conv(cin, w // 2, 1), _conv(w // 2, w, 5))
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(cin, w // 2, 1))
        self.cout = w + w * 3 // 2 + w + w // 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class _Inception(nn.Module):
    """A stem and inception units with pooling between."""

    def __init__(self, width: int, units: int, thin: bool, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, width, 3, stride), _conv(width, width)]
        cin = width
        for i in range(units):
            unit = _Unit(cin, width << (i // 2), thin)
            layers += [unit] if i % 2 else [nn.MaxPool2d(3, 2, 1), unit]
            cin = unit.cout
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(cin, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(functional.adaptive_avg_pool2d(self.body(x), 1).flatten(1))
        return out


class _LeNet(nn.Module):
    """Two or three 5x5 convolutions with pools, two dense layers (LeCun et al. 1998)."""

    def __init__(self, a: int, b: int, dense: int, side: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, a, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        left = ((side - 4) // 2 - 4) // 2
        self.head = nn.Sequential(nn.Linear(b * left * left, dense), nn.ReLU(), nn.Linear(dense, 10))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).flatten(1))
        return out


class _Encoder(nn.Module):
    """Embedding of vectors, post-norm encoder layers, mean over tokens (Vaswani et al. 2017)."""

    def __init__(self, features: int, size: int, heads: int, hidden: int, layers: int, gelu: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(features, size)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    size, heads, hidden, 0.0, "gelu" if gelu else "relu", batch_first=True
                )
                for _ in range(layers)
            )
        )
        self.head = nn.Linear(size, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.embed(x)).mean(1))
        return out


Made = tuple[nn.Module, tuple[int, ...]]
_V11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M")
_V8 = (32, 32, "M", 64, 64, "M", 128, 128, "M", 128, "M")
#: Family -> variants: name and how to make (network, shape of one input).
VARIANTS: dict[str, dict[str, Callable[[], Made]]] = {
    "resnet": {
        "20@32": lambda: (ResNet(3, 16, 3), (3, 32, 32)),
        "14w32@28": lambda: (ResNet(2, 32, 1), (1, 28, 28)),
        "8w64@64": lambda: (ResNet(1, 64, 3), (3, 64, 64)),
        "18w32@128": lambda: (_BigResNet(32, (2, 2, 2, 2), False), (3, 128, 128)),
        "18w64@96": lambda: (_BigResNet(64, (2, 2, 2, 2), False), (3, 96, 96)),
        "26b@160": lambda: (_BigResNet(32, (2, 2, 2, 2), True), (3, 160, 160)),
        "18w64@224": lambda: (_BigResNet(64, (2, 2, 2, 2), False), (3, 224, 224)),
    },
    "vgg": {
        "8@32": lambda: (_Vgg(_V8, 32, 128), (3, 32, 32)),
        "8@64": lambda: (_Vgg(_V8, 64, 256), (3, 64, 64)),
        "11@64": lambda: (_Vgg(_V11, 64, 512), (3, 64, 64)),
        "11@32": lambda: (_Vgg(_V11, 32, 512), (3, 32, 32)),
        "8@128": lambda: (_Vgg(_V8, 128, 512), (3, 128, 128)),
    },
    "mobilenet-v2": {
        "0.5@96": lambda: (_Mobile(0.5, 2), (3, 96, 96)),
        "1.0@64": lambda: (_Mobile(1.0, 2), (3, 64, 64)),
        "1.0@128": lambda: (_Mobile(1.0, 3), (3, 128, 128)),
        "0.75@224": lambda: (_Mobile(0.75, 2), (3, 224, 224)),
        "1.4@160": lambda: (_Mobile(1.4, 2), (3, 160, 160)),
    },
    "inception": {
        "4w16@32": lambda: (_Inception(16, 4, False, 1), (3, 32, 32)),
        "4w32@64": lambda: (_Inception(32, 4, True, 1), (3, 64, 64)),
        "6w32@96": lambda: (_Inception(32, 6, False, 2), (3, 96, 96)),
        "5w48@128": lambda: (_Inception(48, 5, True, 2), (3, 128, 128)),
    },
    "lenet": {
        "20-50@28": lambda: (_LeNet(20, 50, 500, 28, 1), (1, 28, 28)),
        "6-16@32": lambda: (_LeNet(6, 16, 120, 32, 1), (1, 32, 32)),
        "32-64@32": lambda: (_LeNet(32, 64, 512, 32, 3), (3, 32, 32)),
        "24-48@48": lambda: (_LeNet(24, 48, 256, 48, 3), (3, 48, 48)),
    },
    "encoder": {
        "64x2@16": lambda: (_Encoder(32, 64, 4, 128, 2, False), (16, 32)),
        "128x3@64": lambda: (_Encoder(64, 128, 4, 512, 3, True), (64, 64)),
        "192x2@128": lambda: (_Encoder(48, 192, 6, 384, 2, False), (128, 48)),
        "256x4@32": lambda: (_Encoder(64, 256, 8, 1024, 4, True), (32, 64)),
    },
}


def held_out(
    per_family: int = 40, seed: int = 0, families: tuple[str, ...] = tuple(VARIANTS)
) -> Iterator[HeldOut]:
    """Compressed networks, `per_family` of each family, spread over its variants and modes."""
    abilities = abilities_of(load_target("local"))
    for family in families:
        variants = VARIANTS[family]
        for v, (name, make) in enumerate(variants.items()):
            count = len(range(v, per_family, len(variants)))
            torch.manual_seed(zlib.crc32(f"{family} {name}".encode()))
            module, shape = make()
            sample = torch.randn(4, *shape)
            network = Network.from_module(module.eval(), (sample[:1],), (sample,))
            space = PolicySpace(network.structure, abilities)
            rng = np.random.default_rng([seed, zlib.crc32(f"{family} {name}".encode())])
            for i in range(count):
                mode = MODES[(i + v) % len(MODES)]
                policy = space.resolve(random_policy(space, rng, mode))
                model = export_model(compress(network, policy, abilities.numerics))
                yield HeldOut(family, f"{family}/{name}#{i}", mode, model)


def random_policy(space: PolicySpace, rng: np.random.Generator, mode: str) -> Policy:
    """Widths around a random level, some layers factorised, some blocks removed; bits by mode."""
    x = np.ones(space.dimension)
    level = rng.uniform(0.2, 1.0)
    factorised = rng.choice([0.0, 0.0, 0.15, 0.4])
    removed = rng.choice([0.0, 0.15])
    integer = {"fp32": 0.0, "int8": 1.0, "mixed": float(rng.uniform(0.5, 0.95))}[mode]
    for i, c in enumerate(space.choices):
        if c.kind == "keep":
            x[i] = np.clip(level + rng.normal(0.0, 0.2), 0.0, 1.0)
        elif c.kind == "rank" and rng.random() < factorised:
            x[i] = rng.uniform(0.0, 1.0)
        elif (c.kind == "removed" and rng.random() < removed) or (
            c.kind in ("act_bits", "weight_bits") and rng.random() < integer
        ):
            x[i] = 0.0
    return replace(space.decode(x), criterion="l2", ranges="minmax")


__all__ = ["FLOAT", "MODES", "VARIANTS", "HeldOut", "held_out", "random_policy"]
