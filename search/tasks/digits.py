"""`digits32`: scikit-learn's handwritten digits at 32x32 and a ResNet-20, with its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from search.errors import InputError
from search.task import CALIBRATION_SAMPLES, Split, Task
from search.tasks.augment import Distortion, distorted_batches
from search.tasks.metrics import METRICS
from search.tasks.networks import resnet20
from search.tasks.training import Recipe, cross_entropy, sha256_of

WEIGHTS = Path(__file__).with_name("digits32.safetensors")
WEIGHTS_SHA256 = "a71ef6ee63093d49a5ad2c37ec375f4b2063d847e52cb8834fe0762212107ade"
DISTORTION = Distortion(rotation=0.17, scale=0.1, shift=0.12)
RECIPE = Recipe(epochs=30, learning_rate=0.1)


def normalise(images: Tensor) -> Tensor:
    """Pixels in [0, 1] -> about mean 0, standard deviation 1."""
    return (images - 0.3) / 0.37


def digits_images() -> tuple[Tensor, Tensor]:
    """All 1797 digits: float images (1797, 1, 32, 32) in [0, 1] and labels (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images.astype(np.float32)).unsqueeze(1) / 16
    images = functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    return images, torch.from_numpy(data.target.astype(np.int64))


def split_of(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the training (1079), validation (359) and test part (359), in the data's own order.

    The samples' ranks by class (stable) are dealt out in fives: three to training, one to validation, one to
    test. So every class and every writer is in all three parts, and no random generator's version matters.
    """
    rank = torch.empty_like(labels)
    rank[torch.argsort(labels, stable=True)] = torch.arange(len(labels))
    fifth = rank % 5
    return tuple(torch.nonzero(part).flatten() for part in (fifth < 3, fifth == 3, fifth == 4))  # type: ignore[return-value]


def digits32() -> Task:
    """The default task: 99.2 % validation top-1 (356 of 359), 40.5 MMACs."""
    if not WEIGHTS.exists() or sha256_of(WEIGHTS) != WEIGHTS_SHA256:
        raise InputError(
            f"{WEIGHTS.name} is missing or not the file that was released; install Tailorbird again "
            "(or train it anew: scripts/train_digits32.py)"
        )
    network = resnet20()
    network.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    images, labels = digits_images()
    train, validation, test = split_of(labels)
    x = normalise(images)
    calibration = x[train[torch.linspace(0, len(train) - 1, CALIBRATION_SAMPLES).long()]]
    return Task(
        name="digits32",
        network=network.eval(),
        example=(calibration[:1],),
        calibration=(calibration,),
        validation=Split((x[validation],), labels[validation]),
        metric=METRICS["top1"],
        train=Split((x[train],), labels[train]),
        train_batches=distorted_batches(images[train], labels[train], DISTORTION, normalise),
        test=Split((x[test],), labels[test]),
        loss=cross_entropy,
    )
