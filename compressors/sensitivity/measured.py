"""Losses as measured: the divergence of changed networks' answers on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..network import Network
from ..space import PolicySpace
from .changes import Change
from .divergence import divergence
from .plan import POINTS, Losses, Plan
from .suffix import Reference


@torch.no_grad()
def measured_losses(
    network: Network,
    space: PolicySpace,
    samples: int | None = None,
    points: int = POINTS,
    classes: Sequence[int | None] | None = None,
    reuse: bool = True,
) -> Losses:
    """By coordinate name what each of its values loses alone, shape (values,): nats a sample, 0 at the last.

    Every loss is the divergence (`compressors.sensitivity.divergence`) of the changed network's answers from
    the uncompressed one's. Reductions come with channel choice, reconstruction and calibrated statistics of
    real policies; bits are rounded as the space's numerics say, all else being float. About ``points`` values
    of a coordinate are measured, the rest is interpolated. Where there are classes, the samples are those
    that the network is least sure of: losses rank changes better so, and are larger than over all samples.

    Args:
        samples: of calibration data; by default as many as `plan.EFFORT` allows, 16 to 128.
        classes: for the first outputs the axis of their class scores, None for those that are none.
        reuse: False computes every changed network from its inputs on. The numbers are the same.
    """
    plan = Plan(network, space, points, samples, classes)
    outputs = plan.outputs

    def lose(chunk: tuple[Tensor, ...]) -> Callable[[Change], float]:
        numerics = space.abilities.numerics
        reference = Reference(network.structure, plan.changes.nothing, chunk, numerics, reuse)

        def of(change: Change) -> float:
            answers = reference.answers(change)
            return 0.0 if answers is None else divergence(outputs, reference.outputs, answers)

        return of

    return plan.run(lose)


__all__ = ["measured_losses"]
