"""A compressed network as a value: graph, weights and quantisers; what is simulated and what is exported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .graph import Graph, Shape
from .policy import ResolvedPolicy
from .resolve import Numerics


@dataclass(frozen=True)
class ActivationCode:
    """Quantiser of one activation, per tensor: real = scale * (code - zero_point).

    Codes are integers in [low, high]: 0..2^bits-1 for u8-affine, -2^(bits-1)..2^(bits-1)-1 otherwise.
    """

    scale: float
    zero_point: int
    bits: int
    low: int
    high: int


@dataclass(frozen=True)
class DynamicCode:
    """Quantiser of one activation whose scale and zero point follow from the range of the sample at hand.

    As ONNX' DynamicQuantizeLinear: u8-affine over the least and the largest value, zero included. A sample is
    ``units`` positions of dimension ``axis``, which lie in ``runs`` equally long runs, sample after sample in
    each; ``axis`` None: all of the tensor is one sample.
    """

    bits: int
    axis: int | None
    units: int = 1
    runs: int = 1

    @classmethod
    def of(cls, bits: int, graph: Graph, tensor: str) -> DynamicCode:
        """Of an activation of a graph.

        All of it is one sample where the batch is fixed, and where its samples cannot be told apart: as it is
        for a runtime that is given one sample at a time.
        """
        free, runs = free_dimension(graph.tensors[tensor].shape), runs_of(graph, tensor)
        if free is None or runs is None:
            return cls(bits, None)
        return cls(bits, free, -graph.tensors[tensor].shape[free], runs)

    @property
    def high(self) -> int:
        """The largest code; the least is 0."""
        return (1 << self.bits) - 1


Code = ActivationCode | DynamicCode


def free_dimension(shape: Shape) -> int | None:
    """The dimension that depends on the batch; None unless there is exactly one."""
    free = [i for i, d in enumerate(shape) if d < 0]
    return free[0] if len(free) == 1 else None


def runs_of(graph: Graph, tensor: str) -> int | None:
    """In how many runs a sample's positions lie along the dimension that depends on the batch.

    One where they stand together; of (tokens, batch, features) flattened to rows, as many as there are
    tokens. None where it is not known. Reshapes change nothing about what lies ahead of the batch.
    """
    passed: list[tuple[int, int]] = []  # elements ahead of the batch before and behind each reshape
    shape = graph.tensors[tensor].shape
    at = free_dimension(shape)
    while at is not None and shape[at] != -1 and tensor in graph.producer:
        node = graph.producer[tensor]
        found = None
        for source in graph.activations_of(node):
            before = graph.tensors[source].shape
            free = free_dimension(before)
            if free is not None and (node.op == "reshape" or before[free] == shape[at]):
                found = source, before, free
                break
        if found is None:
            return None
        if node.op == "reshape":
            passed.append((math.prod(found[1][: found[2]]), math.prod(shape[:at])))
        tensor, shape, at = found
    runs = 1 if at is not None else None
    for ahead, behind in reversed(passed):
        if runs is None or ahead * runs % behind:
            return None
        runs = ahead * runs // behind
    return runs


@dataclass(frozen=True)
class WeightCode:
    """Quantiser of one weight, symmetric per output channel: real = scale[channel] * code.

    ``scale`` has shape (channels,) along ``axis``; codes lie in [-high, high].
    """

    scale: Tensor
    axis: int
    bits: int
    high: int


@dataclass(frozen=True)
class Compressed:
    """One network after one resolved policy.

    ``weights`` holds the values that inference uses: quantised weights already rounded (codes times
    scale), integer biases already rounded to ``biases[param]`` (scale per channel of an int32 code).
    ``activations`` names the tensors that carry quantise/dequantise at their producer. ``layer_of`` maps
    weight-bearing nodes to layer names; ``unfoldable`` lists batch-norms that stay.
    """

    policy: ResolvedPolicy
    numerics: Numerics
    graph: Graph
    weights: Mapping[str, Tensor]
    activations: Mapping[str, Code]
    codes: Mapping[str, WeightCode]
    biases: Mapping[str, Tensor]
    layer_of: Mapping[str, str]
    unfoldable: tuple[str, ...] = ()

    @cached_property
    def dynamic(self) -> bool:
        """Whether a runtime finds ranges as it runs: of all samples of a batch together."""
        return any(isinstance(c, DynamicCode) for c in self.activations.values())
