"""`resnet50`, `mobilenetv2`: networks of the usual size with random weights, for cost, memory and time.

What a policy does to answers of random weights says nothing of what it would do to trained ones; that they
stay close to the uncompressed network's can be checked all the same. Batch-norms have seen the data, so that
activations are as large as in a trained network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from search.task import Split, Task
from search.tasks.metrics import METRICS
from search.tasks.networks_scale import MobileNetV2, ResNet50

SIDE = 224
#: Samples of each part with its seed.
CALIBRATION, VALIDATION = (32, 1), (48, 2)
#: Pixels that one random number covers: pictures, not white noise.
BLOT = 8


def pictures(count: int, seed: int) -> Tensor:
    """Smooth random pictures (count, 3, 224, 224) of mean 0 and deviation 1 each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, SIDE // BLOT, SIDE // BLOT, generator=generator)
    x = functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


def settled(make: Callable[[], nn.Module], x: Tensor, seed: int = 0) -> nn.Module:
    """A network with seeded random weights and the batch-norm statistics of ``x``, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # statistics are the average over batches
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        network(x)
    return network.eval()


def _task(name: str, make: Callable[[], nn.Module]) -> Task:
    calibration = pictures(*CALIBRATION)
    return Task(
        name=name,
        network=settled(make, calibration),
        example=(calibration[:1],),
        calibration=(calibration,),
        validation=Split((pictures(*VALIDATION),)),
        metric=METRICS["cosine"],
    )


def resnet50_task() -> Task:
    """ResNet-50 with random weights."""
    return _task("resnet50", ResNet50)


def mobilenetv2_task() -> Task:
    """MobileNetV2 with random weights."""
    return _task("mobilenetv2", MobileNetV2)
