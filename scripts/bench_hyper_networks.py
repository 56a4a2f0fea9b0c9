"""Small networks on distorted digits for scripts/bench_hyper.py: families whose best policies differ.

Each is a task of its own, `scripts/bench_hyper_networks.py:NAME`, trained on first use in some seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from search.task import CALIBRATION_SAMPLES, Split, Task
from search.tasks.augment import Distortion, distorted_batches
from search.tasks.cache import trained_once
from search.tasks.digits import digits_images, normalise, split_of
from search.tasks.metrics import METRICS
from search.tasks.networks import ResNet
from search.tasks.training import Recipe, cross_entropy, train

#: Raised with every change that gives other weights.
VERSION = 1
SIZE, COPIES = 16, 3
DISTORTION = Distortion(rotation=0.3, scale=0.15, shift=0.15, noise=0.25)
RECIPE = Recipe(epochs=24, learning_rate=0.08)


def unit(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())


def head(cin: int) -> list[nn.Module]:
    """Mean over positions and a linear layer for ten classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 10)]


def vgg(widths: tuple[int, ...]) -> nn.Sequential:
    """Pairs of 3x3 convolutions and max pooling (Simonyan & Zisserman 2015)."""
    stages: list[nn.Module] = []
    cin = 1
    for k, width in enumerate(widths):
        stages += [unit(cin, width), unit(width, width), *([nn.MaxPool2d(2)] if k + 1 < len(widths) else [])]
        cin = width
    return nn.Sequential(*stages, *head(cin))


def mobile(widths: tuple[int, ...]) -> nn.Sequential:
    """Depthwise separable convolutions (Howard et al. 2017)."""
    stages: list[nn.Module] = [unit(1, widths[0])]
    for k, (cin, cout) in enumerate(pairwise(widths)):
        stages += [unit(cin, cin, 3, 2 if k % 2 else 1, groups=cin), unit(cin, cout, 1)]
    return nn.Sequential(*stages, *head(widths[-1]))


class Inception(nn.Module):
    """Three branches joined along the channels (Szegedy et al. 2015)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        part = cout // 4
        self.one = unit(cin, part, 1)
        self.three = nn.Sequential(unit(cin, part, 1), unit(part, 2 * part))
        self.five = nn.Sequential(unit(cin, part // 2, 1), unit(part // 2, part, 5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) -> (N, cout, H, W)."""
        return torch.cat([self.one(x), self.three(x), self.five(x)], 1)


def inception(widths: tuple[int, ...]) -> nn.Sequential:
    """A stem and joined branches, halving the map in between."""
    stages: list[nn.Module] = [unit(1, widths[0])]
    for k, (cin, cout) in enumerate(pairwise(widths)):
        stages += [Inception(cin, cout), *([nn.MaxPool2d(2)] if k % 2 == 0 else [])]
    return nn.Sequential(*stages, *head(widths[-1]))


def _task(name: str, make: Callable[[], nn.Module]) -> Task:
    images, labels = digits_images()
    images = functional.interpolate(images, size=(SIZE, SIZE), mode="area")
    training, validation, test = split_of(labels)
    batches = distorted_batches(images[training], labels[training], DISTORTION, normalise)

    def fixed(part: Tensor, copies: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        distorted = torch.cat([DISTORTION(images[part], generator) for _ in range(copies)])
        return Split((normalise(distorted),), labels[part].repeat(copies))

    network = trained_once(
        f"bench-{name}-v{VERSION}", make, lambda tell: train(make, batches, len(training), RECIPE, tell)
    )
    calibration = fixed(training, 1, 3).inputs[0][:CALIBRATION_SAMPLES].clone()
    return Task(
        name=name,
        network=network.eval(),
        example=(calibration[:1],),
        calibration=(calibration,),
        validation=fixed(validation, COPIES, 2),
        metric=METRICS["top1"],
        train=fixed(training, 1, 3),
        train_batches=batches,
        test=fixed(test, COPIES, 1),
        loss=cross_entropy,
    )


vgg_small = partial(_task, "vgg_small", partial(vgg, (16, 32, 64)))
vgg_flat = partial(_task, "vgg_flat", partial(vgg, (32, 32, 48, 48)))
mobile_small = partial(_task, "mobile_small", partial(mobile, (16, 32, 32, 64, 64)))
mobile_deep = partial(_task, "mobile_deep", partial(mobile, (16, 24, 24, 48, 48, 96, 96)))
inception_small = partial(_task, "inception_small", partial(inception, (16, 32, 64)))
inception_deep = partial(_task, "inception_deep", partial(inception, (16, 32, 32, 64, 64)))
resnet_small = partial(_task, "resnet_small", partial(ResNet, 1, 16))
