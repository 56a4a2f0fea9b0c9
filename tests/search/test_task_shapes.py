"""Detection: drawn shapes and their boxes, codes, suppression, average precision against brute force."""

import itertools

import pytest
import torch

from search.errors import InputError
from search.tasks import shapes
from search.tasks.boxes import (
    average_precision,
    decoded,
    detections,
    encoded,
    hits_of,
    image_precision,
    matched,
    mean_average_precision,
    overlap,
)
from search.tasks.networks_detect import SHAPES, Detector, flattened


def _perfect(objects: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Answers of a detector that sees just what is there, in the network's layout."""
    prior = shapes.prior_boxes()
    scores, codes = torch.full((len(objects), len(prior), 4), -10.0), torch.zeros(len(objects), len(prior), 4)
    for i, target in enumerate(objects):
        classes, boxes = matched(target, prior)
        scores[i, torch.arange(len(prior)), classes] = 10.0
        codes[i] = encoded(torch.where(classes[:, None] > 0, boxes, prior), prior)
    outputs = []
    for start, cells in ((0, 8), (128, 4)):
        for x in (scores, codes):
            part = x[:, start : start + cells * cells * 2].reshape(len(x), cells, cells, 8)
            outputs.append(part.permute(0, 3, 1, 2))
    return tuple(outputs)


def test_objects_are_drawn_where_their_boxes_are() -> None:
    images, objects = shapes.drawn(40, torch.Generator().manual_seed(3))
    assert images.shape == (40, 3, 64, 64)
    there = objects[..., 0] >= 0
    assert there.any(1).all()
    assert {int(c) for c in objects[..., 0].unique() if c >= 0} == set(range(len(SHAPES)))
    boxes = objects[there][:, 1:]
    assert float(boxes.min()) >= 0
    assert float(boxes.max()) <= 1
    for row in objects:  # none hides another
        own = row[row[:, 0] >= 0, 1:]
        share = overlap(own, own) - torch.eye(len(own))
        assert float(share.max()) <= 1e-6
    for image, row in zip(images, objects, strict=True):
        corner = image[:, :2, :2].mean((1, 2))
        for _, left, top, right, bottom in row[row[:, 0] >= 0].tolist():
            y, x = int(32 * (top + bottom)), int(32 * (left + right))
            middle = image[:, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2].mean((1, 2))
            assert float((middle - corner).abs().max()) > 0.3


def test_images_repeat_by_seed() -> None:
    a, b, c = (next(shapes.batches(seed, 4)) for seed in (1, 1, 2))
    assert torch.equal(a[0][0], b[0][0])
    assert torch.equal(a[1], b[1])  # type: ignore[arg-type]
    assert not torch.equal(a[0][0], c[0][0])


def test_codes_invert_and_every_object_has_a_prior() -> None:
    prior = shapes.prior_boxes()
    _, objects = shapes.drawn(30, torch.Generator().manual_seed(4))
    boxes = objects[0][:1, 1:].expand(len(prior), 4)
    assert torch.allclose(decoded(encoded(boxes, prior), prior), boxes, atol=1e-5)
    for target in objects:
        classes, found = matched(target, prior)
        own = target[target[:, 0] >= 0]
        assert {tuple(b) for b in found[classes > 0].tolist()} == {tuple(b) for b in own[:, 1:].tolist()}


def test_average_precision_is_the_area_that_brute_force_finds() -> None:
    for hits in itertools.product((False, True), repeat=5):
        objects = 4
        if sum(hits) > objects:
            continue
        area, points = 0.0, [(sum(hits[: k + 1]) / objects, sum(hits[: k + 1]) / (k + 1)) for k in range(5)]
        for step in range(
            1, objects + 1
        ):  # recall 1/4, 2/4, ...: the best precision at that recall or beyond
            area += max((p for r, p in points if r >= step / objects - 1e-9), default=0.0) / objects
        assert average_precision(hits, objects) == pytest.approx(area)
    assert average_precision([], 0) == 1.0
    assert average_precision([False], 0) == 0.0


def test_one_object_is_found_once() -> None:
    assert hits_of([[0.9], [0.8]], 0.5) == [True, False]
    assert hits_of([[0.6, 0.9], [0.7, 0.8]], 0.5) == [True, True]
    assert hits_of([[0.4]], 0.5) == [False]
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0]])
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]])
    kept = detections(scores, boxes)
    assert kept[:, 1].tolist() == pytest.approx([0.9, 0.7])


def test_what_is_seen_rightly_scores_one_and_errors_cost() -> None:
    _, objects = shapes.drawn(12, torch.Generator().manual_seed(5))
    answers = _perfect(objects)
    assert torch.allclose(shapes.image_map(answers, objects), torch.ones(12))
    assert shapes.pooled_map(answers, objects) == pytest.approx(1.0)
    best = float(shapes.detection_loss(answers, objects))
    assert best < 0.01
    moved = (answers[0], answers[1] + 2.0, answers[2], answers[3] + 2.0)
    assert float(shapes.image_map(moved, objects).mean()) < 0.8
    assert float(shapes.detection_loss(moved, objects)) > best
    nothing = (torch.zeros_like(answers[0]), answers[1], torch.zeros_like(answers[2]), answers[3])
    nothing[0][:, ::4], nothing[2][:, ::4] = 20.0, 20.0
    assert shapes.image_map(nothing, objects).tolist() == [0.0] * 12
    with pytest.raises(InputError):
        shapes.image_map(answers, None)


def test_a_false_class_costs_an_image_but_a_low_score_hardly_costs_the_pool() -> None:
    wanted = torch.tensor([[[0.0, 0.1, 0.1, 0.4, 0.4]], [[1.0, 0.2, 0.2, 0.6, 0.6]]])
    right = torch.tensor([[0.0, 0.9, 0.1, 0.1, 0.4, 0.4], [1.0, 0.1, 0.5, 0.5, 0.9, 0.9]])
    other = torch.tensor([[1.0, 0.9, 0.2, 0.2, 0.6, 0.6]])
    assert image_precision(right[:1], wanted[0]) == 1.0
    assert image_precision(right, wanted[0]) == 0.5
    assert mean_average_precision([right, other], wanted) == 1.0  # it comes after all that is right
    assert mean_average_precision([right[:0], other], wanted) == 0.5


def test_the_detectors_rows_are_its_priors() -> None:
    network = Detector().eval()
    x, _ = shapes.drawn(2, torch.Generator().manual_seed(6))
    with torch.no_grad():
        outputs = network(x)
    scores, codes = flattened(outputs)
    assert scores.shape == codes.shape == (2, len(shapes.prior_boxes()), 4)
    cell, size = 5 * 8 + 3, 1  # row 5, column 3 of the fine grid
    assert torch.equal(scores[0, 2 * cell + size], outputs[0][0, 4 * size : 4 * size + 4, 5, 3])
    prior = shapes.prior_boxes()[2 * cell + size]
    assert prior[0] + prior[2] == pytest.approx(2 * 3.5 / 8)
    assert prior[1] + prior[3] == pytest.approx(2 * 5.5 / 8)


def test_mirrored_images_have_mirrored_boxes() -> None:
    _, objects = shapes.drawn(6, torch.Generator().manual_seed(7))
    flip = torch.tensor([True, False] * 3)
    turned = shapes.mirrored(objects, flip)
    assert torch.equal(turned[1::2], objects[1::2])
    assert torch.allclose(shapes.mirrored(turned, flip), objects, atol=1e-6)
    there = objects[0, :, 0] >= 0
    assert torch.allclose(turned[0, there, 1], 1 - objects[0, there, 3])
    assert torch.equal(turned[0, ~there], objects[0, ~there])
