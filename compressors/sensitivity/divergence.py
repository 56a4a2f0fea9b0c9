"""How far answers are from the uncompressed network's, in nats, whatever the network answers.

What an output holds is told by the network and its answers on calibration data, not by a metric:

| output | loss of one answer |
|---|---|
| integers | 1 where it differs, else 0 |
| behind a softmax | KL divergence of the two distributions |
| behind a sigmoid | sum over the channels of the KL divergence of the two Bernoulli distributions |
| (N, C >= 2) that looks like class scores, or said to be | KL divergence of the softmaxes, see below |
| anything else: values, embeddings, images | half the squared difference in units of the variance |

The last is the divergence of two Gaussians that are as wide as the answers themselves vary over the samples:
normalised mean squared error, by halves. Softmaxes are taken at the temperature of the scores' spread (as in
distillation, Hinton et al. 2015): at 1 a confident network's answers hide what a change does to them.
Answers of several positions (pixels, tokens) count their mean, several outputs their sum. (N, C) does not
look like class scores where all rows are equally long, as of normalised embeddings, or where their softmaxes
are next to uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Graph

Kind = Literal["labels", "scores", "probabilities", "independent", "values"]
#: Share of the largest possible entropy above which a softmax says nothing.
_FLAT = 0.9
#: Relative spread of lengths below which rows are normalised.
_LENGTH = 1e-3
_TINY = 1e-12
#: What an answer that is not finite loses, nats: more than any that is.
WORST = 1e3


@dataclass(frozen=True)
class Output:
    """What one output holds; ``axis``: its classes or channels.

    ``scale``: variance of values; temperature at which class scores are compared.
    """

    kind: Kind
    axis: int = 1
    scale: float = 1.0


def outputs_of(
    graph: Graph, answers: Sequence[Tensor], classes: Sequence[int | None] | None = None
) -> tuple[Output, ...]:
    """What each output holds, from the uncompressed network's ``answers``, (N, ...) each.

    ``classes``: for the first outputs the axis of their class scores, None where there are none; outputs that
    are not named are judged by the table above.
    """
    told = list(classes or ())
    return tuple(
        _told(graph, name, value, told[i]) if i < len(told) else _judged(graph, name, value)
        for i, (name, value) in enumerate(zip(graph.outputs, answers, strict=True))
    )


def _told(graph: Graph, name: str, value: Tensor, axis: int | None) -> Output:
    judged = _judged(graph, name, value)
    if judged.kind in ("labels", "probabilities", "independent"):
        return judged
    return _values(value) if axis is None else _classes(value, axis % value.dim())


def _judged(graph: Graph, name: str, value: Tensor) -> Output:
    if not value.is_floating_point():
        return Output("labels")
    node = graph.producer.get(name)
    if node is not None and node.op in ("softmax", "log_softmax"):
        axis = node.attrs["axis"] % value.dim()
        return Output("probabilities", axis) if node.op == "softmax" else _classes(value, axis)
    if node is not None and node.op == "sigmoid" and value.dim() > 1:
        return Output("independent")
    scores = value.dim() == 2 and value.shape[1] > 1 and _looks_like_scores(value.double())
    return _classes(value, 1) if scores else _values(value)


def _classes(value: Tensor, axis: int) -> Output:
    """Class scores along ``axis``, at a temperature at which their differences are of the order of one."""
    spread = (value.double() - value.double().mean(axis, keepdim=True)).square().mean().sqrt()
    return Output("scores", axis, max(1.0, float(spread)))


def _values(value: Tensor) -> Output:
    spread = (
        value.double().var(0, correction=0).mean() if value.shape[0] > 1 else value.double().square().mean()
    )
    return Output("values", scale=max(float(spread), _TINY))


def _looks_like_scores(value: Tensor) -> bool:
    length = value.norm(dim=1)
    if value.shape[0] > 2 and float(length.std()) <= _LENGTH * float(length.mean()):
        return False
    log = value.log_softmax(1)
    entropy = -float((log.exp() * log).sum(1).mean())
    return entropy <= _FLAT * math.log(value.shape[1])


def divergence(outputs: Sequence[Output], before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Loss of changed answers against the uncompressed ones, (N, ...) each: nats, summed over N samples."""
    total = 0.0
    for output, old, new in zip(outputs, before, after, strict=True):
        each = _ANSWERS[output.kind](output, old, new).double()
        each = torch.nan_to_num(each, nan=WORST, posinf=WORST, neginf=0.0).clamp(0.0, WORST)
        total += float(each.reshape(each.shape[0], -1).mean(1).sum()) if each.numel() else 0.0
    return total


def _labels(output: Output, old: Tensor, new: Tensor) -> Tensor:
    return (old != new).double()


def _scores(output: Output, old: Tensor, new: Tensor) -> Tensor:
    p, q = ((x.double() / output.scale).log_softmax(output.axis) for x in (old, new))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(output.axis)


def _probabilities(output: Output, old: Tensor, new: Tensor) -> Tensor:
    p, q = (x.double().clamp_min(_TINY) for x in (old, new))
    return (p * (p / q).log()).sum(output.axis)


def _independent(output: Output, old: Tensor, new: Tensor) -> Tensor:
    p, q = (x.double().clamp(_TINY, 1 - _TINY) for x in (old, new))
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(output.axis)


def _squares(output: Output, old: Tensor, new: Tensor) -> Tensor:
    return 0.5 * (new.double() - old.double()).square() / output.scale


_ANSWERS = {
    "labels": _labels,
    "scores": _scores,
    "probabilities": _probabilities,
    "independent": _independent,
    "values": _squares,
}

__all__ = ["Output", "divergence", "outputs_of"]
