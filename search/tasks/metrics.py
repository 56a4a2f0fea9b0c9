"""Metrics by name. Each scores sample by sample, so that intervals and paired comparisons are possible."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from search.errors import InputError, did_you_mean
from search.task import Metric


def _labels(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise InputError(
            "this metric compares with labels, and the data has none; try --metric teacher_agreement"
        )
    return targets


def top1(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """1 where the largest of logits (N, classes, ...) is the label (N, ...), else 0; mean over `...`."""
    return (outputs[0].argmax(1) == _labels(targets)).float().reshape(len(outputs[0]), -1).mean(1)


def top5(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """1 where the label (N,) is among the five largest logits (N, classes), else 0."""
    best = outputs[0].topk(min(5, outputs[0].shape[1]), dim=1).indices
    return (best == _labels(targets).unsqueeze(1)).any(1).float()


def mse(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """Mean squared error of each sample's first output (N, ...) against its target of the same shape."""
    difference = outputs[0] - _labels(targets).reshape(outputs[0].shape)
    return difference.square().reshape(len(difference), -1).mean(1)


def negative_mse(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """`mse` with its sign turned."""
    return -mse(outputs, targets)


def teacher_agreement(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """1 where the largest output (N, classes) is where the uncompressed network has its own, else 0."""
    return (outputs[0].argmax(1) == _labels(targets).argmax(1)).float().reshape(len(outputs[0]), -1).mean(1)


def cosine(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """Cosine between each sample's first output (N, ...) and the uncompressed network's."""
    return functional.cosine_similarity(outputs[0].flatten(1), _labels(targets).flatten(1), dim=1)


def teacher_kl(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """KL divergence, nats, of each sample's softmax over (N, classes) from the uncompressed network's."""
    ours, theirs = functional.log_softmax(outputs[0], 1), functional.log_softmax(_labels(targets), 1)
    return (
        functional.kl_div(ours, theirs, reduction="none", log_target=True)
        .sum(1)
        .reshape(len(ours), -1)
        .mean(1)
    )


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", True, "%", top1),
        Metric("top5", True, "%", top5),
        Metric("mse", False, "", mse),
        Metric("negative_mse", True, "", negative_mse),
        Metric("teacher_agreement", True, "%", teacher_agreement, against="teacher"),
        Metric("teacher_kl", False, "nats", teacher_kl, against="teacher"),
        Metric("cosine", True, "", cosine, against="teacher"),
    )
}
ALIASES = {
    "accuracy": "top1",
    "top-1": "top1",
    "top-5": "top5",
    "neg_mse": "negative_mse",
    "neg-mse": "negative_mse",
}


def metric_by_name(name: str) -> Metric:
    """The built-in metric called `name`, dashes and underscores alike."""
    key = ALIASES.get(name.lower(), name.lower().replace("-", "_"))
    if key not in METRICS:
        near = did_you_mean(name, [*METRICS, *ALIASES]) or f"Built in are {', '.join(METRICS)}."
        raise InputError(f"unknown metric {name!r}. {near}\nYour own goes as --metric module:function.")
    return METRICS[key]
