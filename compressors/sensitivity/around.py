"""Losses of single changes around a compressed network, where they add up better than around the whole one.

An uncompressed network has room to spare: any one reduction loses next to nothing, and all of them together
lose everything. Around a policy that is about as small as the budget asks for, the changes that an optimiser
weighs against each other are small ones, and what they lose adds up (sequential linearisation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ..apply import compress, folded_network, shrunk
from ..graph import Graph, Structure
from ..network import Network, batched
from ..policy import FLOAT, ResolvedPolicy
from ..prefix import run_shared
from ..simulate import answers
from ..space import Choice, PolicySpace
from .changes import Changes
from .divergence import Output, divergence, outputs_of
from .plan import CHUNK_BYTES, Losses
from .sampling import distances, families, sampled
from .suffix import kept_bytes

#: Samples at most, and values measured a coordinate, about.
SAMPLES, POINTS = 64, 5
#: Multiply-accumulates one pass should take at most: fewer samples, then fewer values, then both.
EFFORT = 120e9
FEWER = ((16, POINTS), (16, 2), (8, 2))
#: Bits from which on rounding loses too little to be simulated here.
FINE = 8


@torch.no_grad()
def losses_around(
    network: Network,
    space: PolicySpace,
    at: Sequence[int] | NDArray[np.int64],
    samples: int | None = None,
    classes: Sequence[int | None] | None = None,
) -> Losses:
    """By coordinate name what each of its values loses, shape (values,), the others as in ``at`` (d,).

    Nats a sample as in `divergence`, less what the coordinate's last value loses there; never below 0.
    Channel choice, reconstruction and calibrated statistics are those of real policies; bits below 8 are
    simulated. ``classes`` as in `measured_losses`.
    """
    here = np.asarray(at, dtype=np.int64)
    judge = _Judge(network, space, here, samples, classes)
    found: Losses = {}
    for i, choice in enumerate(space.choices):
        values = _wanted(choice, int(here[i]), judge.points)
        losses = np.array([judge.of(i, v) for v in values])
        every = _between(choice, network.structure, values, losses)
        found[choice.name] = np.maximum(every - every[-1], 0.0)
    return found


def _wanted(choice: Choice, here: int, points: int) -> list[int]:
    """Value indices that are measured: `sampled` ones, the reference's own and its neighbours."""
    last = len(choice.values) - 1
    some = sampled(choice, range(last), points) if last else []
    near = range(max(0, here - 1), min(last, here + 1) + 1) if choice.kind == "keep" else (here,)
    return sorted({*some, *near, last})


def _between(
    choice: Choice, structure: Structure, values: list[int], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Loss of every value by monotone cubics over the distance from the last one, family by family."""
    far = distances(choice, structure)
    known = dict(zip(values, losses, strict=True))
    last = len(choice.values) - 1
    every = np.full(last + 1, known[last])
    for family in families(choice, range(last)):
        points = {far[v]: known[v] for v in (last, *reversed(family)) if v in known}
        x = np.array(sorted(points))
        y = np.array([points[k] for k in x])
        at = np.clip(far[family], x[0], x[-1])
        every[family] = PchipInterpolator(x, y)(at) if len(x) > 1 else y[0]
    return every


def _spaced(network: Network, graph: Graph, count: int) -> list[tuple[Tensor, ...]]:
    """About ``count`` calibration samples, evenly spaced, in chunks whose activations fit."""
    inputs, fixed = network.calibration, network.structure.graph.fixed_batch
    total = inputs[0].shape[0]
    count = min(total, count)
    count = max(1, count // fixed) * fixed if fixed else count
    step = fixed or max(1, CHUNK_BYTES // max(1, kept_bytes(graph)))
    at = torch.linspace(0, total - 1, count).long()
    return [tuple(x[part] for x in inputs) for part in at.split(step)]


class _Judge:
    """Divergence of policies around a reference, each measured once."""

    def __init__(
        self,
        network: Network,
        space: PolicySpace,
        at: NDArray[np.int64],
        samples: int | None,
        classes: Sequence[int | None] | None,
    ) -> None:
        self.space, self.at, self.network = space, at, network
        few, self.points = self._affordable()
        whole = Changes(network, space)
        self.chunks = _spaced(network, whole.graph, samples or few)
        self.before = [batched(whole.graph, whole.weights, chunk) for chunk in self.chunks]
        columns = [torch.cat(column) for column in zip(*self.before, strict=True)]
        self.outputs: tuple[Output, ...] = outputs_of(whole.graph, columns, classes)
        self.total = sum(chunk[0].shape[0] for chunk in self.chunks)
        # Statistics of the same samples: evenly spaced ones, unlike those that a network is least sure of.
        inputs = tuple(torch.cat(column) for column in zip(*self.chunks, strict=True))
        self.few = replace(network, calibration=inputs)
        self._known: dict[str, float] = {}

    def _affordable(self) -> tuple[int, int]:
        """Samples and values a coordinate at `EFFORT`; a changed policy takes what the reference does."""
        kept = self.space.resolve(self.space.at(self.at))
        macs = sum(x.macs for x in self.network.structure.layers if x.name in kept.weight_bits)
        shares = [v / max(1, len(c.values) - 1) for v, c in zip(self.at, self.space.choices, strict=True)]
        each = max(1.0, macs * float(np.mean(shares)))
        for least, points in FEWER:
            count = sum(min(len(c.values), points + 2) for c in self.space.choices)
            samples = int(EFFORT / (each * max(1, count)))
            if samples >= least:
                return min(samples, SAMPLES), points
        return FEWER[-1]

    def of(self, coordinate: int, value: int) -> float:
        """Divergence with one coordinate at a value, the others as in the reference."""
        point = self.at.copy()
        point[coordinate] = value
        policy = _as_simulated(self.space.resolve(self.space.at(point)))
        if policy.digest not in self._known:
            self._known[policy.digest] = self._measured(policy)
        return self._known[policy.digest]

    def _measured(self, policy: ResolvedPolicy) -> float:
        run = self._answers(policy)
        return (
            sum(divergence(self.outputs, before, run(i)) for i, before in enumerate(self.before)) / self.total
        )

    def _answers(self, policy: ResolvedPolicy) -> Callable[[int], tuple[Tensor, ...]]:
        """The policy's answers to a chunk, by its number."""
        weights = shrunk(self.few, policy)
        if not _is_float(policy):
            compressed = compress(self.few, policy, self.space.abilities.numerics, weights)
            return lambda i: answers(compressed, self.chunks[i])
        graph, folded = folded_network(self.few, policy, weights)
        if graph.fixed_batch is not None:
            return lambda i: batched(graph, folded, self.chunks[i])
        cache = self.few.prefixes
        return lambda i: run_shared(graph, folded, self.chunks[i], cache, b"folded %d" % i)


def _is_float(policy: ResolvedPolicy) -> bool:
    return all(b == FLOAT for b in (*policy.weight_bits.values(), *policy.act_bits.values()))


def _as_simulated(policy: ResolvedPolicy) -> ResolvedPolicy:
    """In float where all bits are `FINE`: policies that differ in such bits alone are measured once."""
    if any(b < FINE for b in (*policy.weight_bits.values(), *policy.act_bits.values())):
        return policy
    return replace(
        policy,
        weight_bits=dict.fromkeys(policy.weight_bits, FLOAT),
        act_bits=dict.fromkeys(policy.act_bits, FLOAT),
    )


__all__ = ["losses_around"]
