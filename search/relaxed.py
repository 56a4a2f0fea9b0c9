"""The relaxed network of a task: what the `gradient` agent differentiates."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from compressors.space import PolicySpace

from .score import Scorer

if TYPE_CHECKING:
    from compressors.relaxation import RelaxedNetwork

#: Multiply-accumulates of one forward pass over a batch, which sets its size, and its bounds.
BATCH_MACS, LEAST, MOST = 400e6, 8, 64
#: Distinct batches, and the bytes of inputs they may take together.
BATCHES, INPUT_BYTES = 16, 64 << 20


def batch_size(scorer: Scorer) -> int:
    """Samples of one step: as many as keep it to some tens of milliseconds, or what a fixed batch takes."""
    structure = scorer.network.structure
    if structure.graph.fixed_batch is not None:
        return structure.graph.fixed_batch
    macs = sum(x.macs for x in structure.layers)
    return int(min(MOST, max(LEAST, BATCH_MACS // max(macs, 1))))


def relaxed_network(scorer: Scorer, space: PolicySpace, seed: int = 0) -> RelaxedNetwork:
    """The scorer's network relaxed over a space, on batches of training data, else of calibration data.

    Validation data is left out: what is trained on is not what policies are judged by.
    """
    from compressors.relaxation import RelaxedNetwork

    size = batch_size(scorer)
    stream = scorer.task.batches(seed, size)
    first = next(stream)[0]
    held = sum(x.numel() * x.element_size() for x in first)
    count = max(1, min(BATCHES, INPUT_BYTES // max(held, 1)))
    batches = [first, *(inputs for inputs, _ in islice(stream, count - 1))]
    return RelaxedNetwork(scorer.network, space, scorer.numerics, batches)


__all__ = ["batch_size", "relaxed_network"]
