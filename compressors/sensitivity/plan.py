"""How a sensitivity pass is laid out: which values, on which samples, in which chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network import Network, batched
from ..space import PolicySpace
from .changes import Change, Changes
from .divergence import Output, outputs_of
from .sampling import interpolated, sampled
from .suffix import kept_bytes

#: Values measured a coordinate, about.
POINTS = 4
#: Multiply-accumulates one pass may take, by which the number of samples is chosen, and its bounds.
EFFORT = 60e9
LEAST_SAMPLES, MOST_SAMPLES = 16, 128
#: Samples to choose from, times those that are used.
POOL = 8
#: Bytes of activations kept at a time: a chunk holds as many samples as fit.
CHUNK_BYTES = 512 << 20

Losses = dict[str, NDArray[np.float64]]


@dataclass
class Plan:
    """The values of every coordinate that are to be measured. The same for the same network and space."""

    network: Network
    space: PolicySpace
    points: int = POINTS
    samples: int | None = None
    classes: Sequence[int | None] | None = None

    @cached_property
    def changes(self) -> Changes:
        """What makes the changed networks."""
        return Changes(self.network, self.space)

    @cached_property
    def open(self) -> list[list[int]]:
        """By coordinate the indices of the values that change anything."""
        return [
            [v for v in range(len(c.values)) if self.changes.alters(i, v)]
            for i, c in enumerate(self.space.choices)
        ]

    @cached_property
    def measured(self) -> list[list[int]]:
        """By coordinate the indices of the values that are measured."""
        return [
            sampled(c, values, self.points) if values else []
            for c, values in zip(self.space.choices, self.open, strict=True)
        ]

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """What the network's outputs hold."""
        return outputs_of(self.changes.graph, self._pool[1], self.classes)

    @cached_property
    def chunks(self) -> list[tuple[Tensor, ...]]:
        """The samples, in chunks that fit: of a pool those whose class the network is least sure of."""
        pool, answers = self._pool
        fixed, count = self.network.structure.graph.fixed_batch, self._count
        step = fixed or -(-count // -(-count // self._fits))  # chunks of about the same size
        at = least_sure(self.outputs, answers, count) if fixed is None else torch.arange(count)
        return [tuple(x[part] for x in pool) for part in at.split(step)]

    @cached_property
    def _pool(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Calibration samples, evenly spaced, and the network's answers to them."""
        inputs, fixed = self.network.calibration, self.network.structure.graph.fixed_batch
        total = inputs[0].shape[0]
        count = self._count if fixed else min(total, POOL * self._count)
        at = torch.linspace(0, total - 1, count).long()
        pool = tuple(x[at] for x in inputs)
        graph, weights, step = self.changes.graph, self.changes.weights, fixed or self._fits
        columns = zip(*(x.split(step) for x in pool), strict=True)
        parts = [batched(graph, weights, column) for column in columns]
        return pool, tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @cached_property
    def _fits(self) -> int:
        """Samples whose activations fit."""
        return max(1, CHUNK_BYTES // max(1, kept_bytes(self.changes.graph)))

    @cached_property
    def _count(self) -> int:
        total, fixed = self.network.calibration[0].shape[0], self.network.structure.graph.fixed_batch
        count = min(total, self.samples or self._affordable())
        return max(1, count // fixed) * fixed if fixed else count

    def _affordable(self) -> int:
        """Samples at `EFFORT`, a changed network being computed by half on average."""
        macs = sum(x.macs for x in self.network.structure.layers)
        count = max(1, sum(map(len, self.measured)))
        return int(np.clip(EFFORT / max(1.0, 0.5 * macs * count), LEAST_SAMPLES, MOST_SAMPLES))

    def each(self) -> Iterator[tuple[int, int, Change]]:
        """(coordinate, value index, changed network) of every value to be measured."""
        for i, values in enumerate(self.measured):
            for v in values:
                change = self.changes.of(i, v)
                if change is not None:
                    yield i, v, change

    def losses(self, found: Sequence[dict[int, float]]) -> Losses:
        """By coordinate name the loss of all values, from those that were measured."""
        losses: Losses = {}
        for choice, values, known in zip(self.space.choices, self.open, found, strict=True):
            every = interpolated(choice, self.network.structure, values, known)
            losses[choice.name] = np.maximum(every - every[-1], 0.0)
        return losses

    def run(self, lose: Callable[[tuple[Tensor, ...]], Callable[[Change], float]]) -> Losses:
        """Losses by a function that, given a chunk, gives a change's loss summed over the chunk's samples."""
        found: list[dict[int, float]] = [{} for _ in self.space.choices]
        total = sum(chunk[0].shape[0] for chunk in self.chunks)
        for chunk in self.chunks:
            of = lose(chunk)
            for i, v, change in self.each():
                found[i][v] = found[i].get(v, 0.0) + of(change) / total
        return self.losses(found)


def least_sure(outputs: Sequence[Output], answers: Sequence[Tensor], count: int) -> Tensor:
    """The ``count`` samples between whose two likeliest classes least lies, ascending; (count,) indices.

    Small changes show on them first, where the answers to most samples are all but certain. Without class
    scores the samples are evenly spaced.
    """
    output, value = outputs[0], answers[0]
    if output.kind not in ("scores", "probabilities") or value.dim() != 2:
        return torch.linspace(0, value.shape[0] - 1, count).long()
    top = value.double().topk(2, 1).values
    return torch.argsort(top[:, 0] - top[:, 1], stable=True)[:count].sort().values


__all__ = ["Losses", "Plan", "least_sure"]
