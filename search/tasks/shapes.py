"""`shapes-ssd`: a single-shot detector on drawn circles, squares and triangles, judged by average precision.

The generator draws one to four shapes of random place, size, colour and, for squares and triangles, angle on
a noisy background. The network is trained on first use, in about two minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from search.errors import InputError
from search.task import Metric, Split, Task, shuffled_batches
from search.tasks.boxes import (
    decoded,
    detections,
    encoded,
    image_precision,
    matched,
    mean_average_precision,
    priors,
)
from search.tasks.cache import trained_once
from search.tasks.networks_detect import GRIDS, SHAPES, SIZES, Detector, flattened
from search.tasks.training import Recipe, train

if TYPE_CHECKING:
    from search.task import Batch

SIDE = 64
#: Objects of an image at most, and their sides as shares of the image.
MOST, SMALLEST, LARGEST = 4, 0.15, 0.5
#: Deviation of the pixels' noise, and the least difference of an object's colour from the background's.
NOISE, CONTRAST = 0.08, 0.25
#: Tries to place an object where it hides none before it.
TRIES = 20
#: Samples of each part with its seed.
CALIBRATION, VALIDATION, TEST, TRAIN = (128, 1), (200, 2), (500, 3), (2048, 4)
#: Goes into the cached file's name; to be raised with every change that gives other weights.
VERSION = 1
RECIPE = Recipe(epochs=40, learning_rate=0.05, batch_size=32)
#: Background boxes that count in the loss, for each that has an object (SSD, section 2.2).
NEGATIVES = 3


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 64, 64) of about mean 0, and their objects (count, 4, 5): see `boxes`."""
    images = torch.empty(count, 3, SIDE, SIDE)
    targets = torch.full((count, MOST, 5), -1.0)
    for image, target in zip(images, targets, strict=True):
        colour = torch.rand(3, generator=generator)
        image[:] = colour[:, None, None]
        for i in range(int(torch.randint(1, MOST + 1, (1,), generator=generator))):
            _add(image, target, i, colour, generator)
    images += NOISE * torch.randn(images.shape, generator=generator)
    return (images - 0.5) / 0.3, targets


def _add(image: Tensor, target: Tensor, place: int, background: Tensor, generator: torch.Generator) -> None:
    """Draw one object into ``image`` (3, 64, 64) where there is room for it."""
    kind = int(torch.randint(0, len(SHAPES), (1,), generator=generator))
    colour = _unlike(background, generator)
    for _ in range(TRIES):
        mask = _shape(kind, generator)
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SIDE
        others = target[:place, 1:]
        apart = (others[:, 2:] <= box[:2]) | (others[:, :2] >= box[2:])
        if bool((apart.any(1) | (target[:place, 0] < 0)).all()):
            image[:, mask] = colour[:, None]
            target[place, 0], target[place, 1:] = float(kind), box
            return


def _unlike(background: Tensor, generator: torch.Generator) -> Tensor:
    """A colour (3,) that stands out from the background's."""
    while True:
        colour = torch.rand(3, generator=generator)
        if float((colour - background).abs().max()) >= CONTRAST:
            return colour


def _shape(kind: int, generator: torch.Generator) -> Tensor:
    """Mask (64, 64) of a shape of random size, place and angle that lies inside the image."""
    uniform = torch.rand(4, generator=generator)
    radius = float(SMALLEST + (LARGEST - SMALLEST) * uniform[0]) / 2
    x, y = (float(radius + (1 - 2 * radius) * u) for u in uniform[1:3])
    middle = (torch.arange(SIDE) + 0.5) / SIDE
    dy, dx = torch.meshgrid(middle - y, middle - x, indexing="ij")
    if SHAPES[kind] == "circle":
        return dx * dx + dy * dy <= radius * radius
    corners = 4 if SHAPES[kind] == "square" else 3
    turn = 2 * math.pi * float(uniform[3])
    inner = radius * math.cos(math.pi / corners)  # from the middle to a side
    sides = [turn + 2 * math.pi * k / corners for k in range(corners)]
    return torch.stack([dx * math.cos(a) + dy * math.sin(a) <= inner for a in sides]).all(0)


@cache
def prior_boxes() -> Tensor:
    """The detector's prior boxes (160, 4)."""
    return priors(GRIDS, SIZES)


def found_in(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What a detector found in each of N images: (D, 6) class, score and box."""
    scores, codes = flattened(outputs)
    chances = functional.softmax(scores.float(), 2)[:, :, 1:]
    boxes = decoded(codes.float(), prior_boxes())
    return [detections(c, b) for c, b in zip(chances, boxes, strict=True)]


def image_map(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """Average precision of each image (N,), over classes and overlaps from 0.50 to 0.95."""
    wanted = _objects(targets)
    return torch.tensor([image_precision(f, t) for f, t in zip(found_in(outputs), wanted, strict=True)])


def pooled_map(outputs: tuple[Tensor, ...], targets: Tensor | None) -> float:
    """mAP over 0.50 to 0.95 as COCO has it: detections of all images ranked together."""
    return mean_average_precision(found_in(outputs), _objects(targets))


METRIC = Metric("image_map", True, "%", image_map)


def detection_loss(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """SSD's loss: cross entropy of classes with the hardest background boxes, smooth L1 of box codes."""
    scores, codes = flattened(outputs)
    pairs = [matched(t, prior_boxes()) for t in _objects(targets)]
    classes, boxes = torch.stack([c for c, _ in pairs]), torch.stack([b for _, b in pairs])
    taken = classes > 0
    count = taken.sum().clamp_min(1)
    errors = functional.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="none")
    errors = errors.reshape(classes.shape)
    hard = errors.detach().masked_fill(taken, -1.0).argsort(1, descending=True).argsort(1)
    chosen = taken | (hard < NEGATIVES * taken.sum(1, keepdim=True))
    wanted = encoded(boxes, prior_boxes())
    place = functional.smooth_l1_loss(codes[taken], wanted[taken], reduction="sum")
    return (errors[chosen].sum() + place) / count


def _objects(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise InputError("a detector is judged by the objects that are there, and the data has none")
    return targets


def batches(seed: int, batch_size: int) -> Iterator[Batch]:
    """`Task.train_batches`: images without end, half of them mirrored; drawn once, as that takes long."""
    generator = torch.Generator().manual_seed(seed)
    for (x,), objects in shuffled_batches(_drawn_for_training(), seed, batch_size):
        flip = torch.rand(len(x), generator=generator) < 0.5
        yield (torch.where(flip[:, None, None, None], x.flip(3), x),), mirrored(_objects(objects), flip)


@cache
def _drawn_for_training() -> Split:
    return _split(TRAIN)


def mirrored(objects: Tensor, flip: Tensor) -> Tensor:
    """Objects (N, M, 5) with left and right exchanged where ``flip`` (N,) says so."""
    kind, left, top, right, bottom = objects.unbind(2)
    other = torch.stack([kind, 1 - right, top, 1 - left, bottom], 2)
    return torch.where(flip[:, None, None] & (kind >= 0)[:, :, None], other, objects)


def _split(part: tuple[int, int]) -> Split:
    count, seed = part
    x, objects = drawn(count, torch.Generator().manual_seed(seed))
    return Split((x,), objects)


def shapes_task() -> Task:
    """The task; its network is trained on first use."""
    network = trained_once(
        f"shapes-ssd-v{VERSION}",
        Detector,
        lambda progress: train(Detector, batches, TRAIN[0], RECIPE, progress, detection_loss),
    )
    calibration = _split(CALIBRATION).inputs
    return Task(
        name="shapes-ssd",
        network=network.eval(),
        example=(calibration[0][:1],),
        calibration=calibration,
        validation=_split(VALIDATION),
        metric=METRIC,
        train_batches=batches,
        test=_split(TEST),
        loss=detection_loss,
    )
