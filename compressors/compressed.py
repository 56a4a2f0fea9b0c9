"""A compressed network as a value: graph, weights and quantisers; what is simulated and what is exported."""

from __future__ import annotations

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
    ``units`` positions of dimension ``axis``; None where the whole tensor is one (a fixed batch).
    """

    bits: int
    axis: int | None
    units: int = 1

    @classmethod
    def of(cls, bits: int, shape: Shape) -> DynamicCode:
        """Of a tensor of this shape in the graph, -k for k times the batch.

        Where several dimensions depend on the batch all of it is one sample, as it is when there is one.
        """
        free = [i for i, d in enumerate(shape) if d < 0]
        return cls(bits, free[0], -shape[free[0]]) if len(free) == 1 else cls(bits, None)

    @property
    def high(self) -> int:
        """The largest code; the least is 0."""
        return (1 << self.bits) - 1


Code = ActivationCode | DynamicCode


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
