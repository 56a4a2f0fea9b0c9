"""A compressed network as a value: graph, weights and quantisers; what is simulated and what is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .graph import Graph
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
    activations: Mapping[str, ActivationCode]
    codes: Mapping[str, WeightCode]
    biases: Mapping[str, Tensor]
    layer_of: Mapping[str, str]
    unfoldable: tuple[str, ...] = ()
