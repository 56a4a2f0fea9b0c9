"""Boxes: overlap, prior boxes, codes, suppression, and how well detections match (SSD, Liu et al. 2016).

Boxes are (..., 4): left, top, right, bottom, in shares of the image. Targets of N images are (N, M, 5):
class and box of each object, the class -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: How far a box is moved and stretched in units of the code (SSD's "variances").
MOVE, STRETCH = 0.1, 0.2
#: Overlap from which a prior box answers for an object (SSD, section 2.2).
MATCHED = 0.5
#: Detections of a class that overlap more than this are one; scores below this are none; detections kept.
SUPPRESSED, LEAST_SCORE, MOST = 0.45, 0.05, 20
#: Overlaps at which average precision is taken (COCO: 0.50 to 0.95).
OVERLAPS = tuple(0.5 + 0.05 * i for i in range(10))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (A, 4) and (B, 4): (A, B)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clamp_min(0).prod(2)
    return both / (_area(a)[:, None] + _area(b)[None] - both).clamp_min(1e-9)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp_min(0) * (boxes[:, 3] - boxes[:, 1]).clamp_min(0)


def priors(grids: tuple[int, ...], sizes: tuple[tuple[float, ...], ...]) -> Tensor:
    """Square prior boxes (P, 4), grid after grid, cell after cell, size after size."""
    found = []
    for cells, wanted in zip(grids, sizes, strict=True):
        middle = (torch.arange(cells) + 0.5) / cells
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        centre = torch.stack([x, y], 2).reshape(-1, 1, 2)
        half = torch.tensor(wanted).reshape(1, -1, 1) / 2
        found.append(torch.cat([centre - half, centre + half], 2).reshape(-1, 4))
    return torch.cat(found)


def encoded(boxes: Tensor, prior: Tensor) -> Tensor:
    """What a network has to answer for ``boxes`` (..., P, 4) at the prior boxes (P, 4)."""
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    at, of = (prior[:, :2] + prior[:, 2:]) / 2, prior[:, 2:] - prior[:, :2]
    return torch.cat([(middle - at) / of / MOVE, (size / of).clamp_min(1e-6).log() / STRETCH], -1)


def decoded(codes: Tensor, prior: Tensor) -> Tensor:
    """Boxes (..., P, 4) of answers (..., P, 4): the inverse of `encoded`."""
    at, of = (prior[:, :2] + prior[:, 2:]) / 2, prior[:, 2:] - prior[:, :2]
    middle = codes[..., :2] * MOVE * of + at
    half = (codes[..., 2:] * STRETCH).clamp(-10.0, 10.0).exp() * of / 2
    return torch.cat([middle - half, middle + half], -1)


def matched(targets: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """What the prior boxes answer for, of one image's targets (M, 5).

    Each prior box's class (P,), 0 for none and else 1 + class, and its box (P, 4).
    """
    objects = targets[targets[:, 0] >= 0]
    classes, found = torch.zeros(len(prior), dtype=torch.long), torch.zeros(len(prior), 4)
    if not len(objects):
        return classes, found
    share = overlap(objects[:, 1:], prior)
    best, which = share.max(0)
    nearest = share.argmax(1)
    best[nearest], which[nearest] = 1.0, torch.arange(len(objects))  # every object has a prior box
    taken = best >= MATCHED
    classes[taken] = objects[which[taken], 0].long() + 1
    found[taken] = objects[which[taken], 1:]
    return classes, found


def detections(scores: Tensor, boxes: Tensor) -> Tensor:
    """Of one image: (D, 6) class, score and box of what was found, best first, duplicates suppressed.

    Args:
        scores: (P, C) probability of each class, without the background's.
        boxes: (P, 4).
    """
    found = []
    for c in range(scores.shape[1]):
        order = scores[:, c].argsort(descending=True, stable=True)
        order = order[scores[order, c] >= LEAST_SCORE][: 10 * MOST]
        share = overlap(boxes[order], boxes[order])
        while len(order):
            found.append(torch.cat([torch.tensor([float(c)]), scores[order[:1], c], boxes[order[0]]]))
            left = share[0] <= SUPPRESSED
            left[0] = False
            order, share = order[left], share[left][:, left]
    if not found:
        return torch.zeros(0, 6)
    rows = torch.stack(found)
    return rows[rows[:, 1].argsort(descending=True, stable=True)][:MOST]


def average_precision(hits: Sequence[bool], objects: int) -> float:
    """Area under precision over recall, precision made monotonic (VOC 2010 and later).

    ``hits``: whether each detection, best score first, found an object; ``objects``: how many there are.
    """
    if objects == 0:
        return 0.0 if hits else 1.0
    area, best = 0.0, 0.0
    found = sum(hits)
    for rank in range(len(hits), 0, -1):
        best = max(best, found / rank)
        if hits[rank - 1]:
            area += best
            found -= 1
    return area / objects


def hits_of(share: Sequence[Sequence[float]], least: float) -> list[bool]:
    """Which detections, best first, find an object that none before them found.

    ``share``: D x M, the overlap of each detection with each object; ``least``: what counts as found.
    """
    hits, taken = [], set[int]()
    for row in share:
        free = [(value, i) for i, value in enumerate(row) if i not in taken and value >= least]
        hits.append(bool(free))
        if free:
            taken.add(max(free)[1])
    return hits


def image_precision(found: Tensor, targets: Tensor) -> float:
    """Average precision of one image, mean over overlaps of 0.50 to 0.95 and the classes that are there.

    Classes that are detected and not there count as 0, so that each false one costs. ``found``: (D, 6) as of
    `detections`; ``targets``: (M, 5).
    """
    objects = targets[targets[:, 0] >= 0]
    values = []
    for c in sorted({*objects[:, 0].tolist(), *found[:, 0].tolist()}):
        wanted = objects[objects[:, 0] == c, 1:]
        share = overlap(found[found[:, 0] == c, 2:], wanted).tolist()
        values += [average_precision(hits_of(share, least), len(wanted)) for least in OVERLAPS]
    return sum(values) / len(values) if values else 1.0


def mean_average_precision(
    found: Sequence[Tensor], targets: Tensor, overlaps: Sequence[float] = OVERLAPS
) -> float:
    """mAP as published (COCO): detections of all N images ranked together, mean over classes and overlaps."""
    values = []
    for c in sorted({float(c) for c in targets[..., 0].unique() if c >= 0}):
        wanted = [t[t[:, 0] == c, 1:] for t in targets]
        shares = [overlap(f[f[:, 0] == c, 2:], w).tolist() for f, w in zip(found, wanted, strict=True)]
        scores = torch.cat([f[f[:, 0] == c, 1] for f in found])
        order = scores.argsort(descending=True, stable=True).tolist()
        objects = sum(len(w) for w in wanted)
        for least in overlaps:
            hits = [hit for share in shares for hit in hits_of(share, least)]
            values.append(average_precision([hits[i] for i in order], objects))
    return sum(values) / len(values)
