"""What a factorisation scheme is: one object that says all that any other part needs to know of it.

A scheme turns one layer into a chain of layers. Its pure part (which layers it fits, ranks, the chain) is
known to the policy space, resolution, pricing and the policy's schema; its function computes the weights and
imports torch when it is called, not before. Shapes, sizes and MACs follow from the chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from ..graph import Layer
from ..registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from ..policy import Factor

#: Ratios of the full rank that are offered, smaller is cheaper.
RANK_RATIOS = (0.75, 0.5, 0.375, 0.25, 0.125)
#: Layers with fewer channels on either side have no rank worth looking for.
LEAST_CHANNELS = 8

Shape = tuple[int, ...]
#: (weight in double precision, ranks, whether the layer is a transposed convolution) to factor weights.
Weights = Callable[["Tensor", Shape, bool], "list[Tensor]"]


@dataclass(frozen=True)
class Step:
    """One layer of the chain: its operation, window and attributes as a node has them.

    ``rank`` is the index of the rank that says how many channels it writes, None for the layer's own
    outputs. A ``depthwise`` step has one filter a channel, and writes as many channels as it reads.
    """

    op: str
    rank: int | None = None
    kernel: Shape = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    depthwise: bool = False


Steps = Callable[[str, Shape, Mapping[str, Any]], Sequence[Step]]


@dataclass(frozen=True, eq=False)
class Factorisation:
    """A scheme. Weight shapes are (cout, cin, k...), of a transposed convolution (cin, cout, k...).

    ``ranks``: how many it takes. ``fits(layer)``: layers it is offered for, all of which are dense and
    have at least `LEAST_CHANNELS` channels. ``full_rank(shape)``: ranks at which nothing is lost.
    ``steps(op, kernel, attrs)``: the chain, first to last; the last keeps the layer's bias. Sizes have to
    be linear in each rank and in the layer's channels. ``within(shape, rank)``: ranks cut to what they
    can span together. ``default``: part of ``factorize``; other schemes are asked for by name.
    """

    name: str
    ranks: int
    fits: Callable[[Layer], bool]
    full_rank: Callable[[Shape], Shape]
    steps: Steps
    weights: Weights
    within: Callable[[Shape, Shape], Shape] = lambda shape, rank: rank
    ratios: tuple[float, ...] = RANK_RATIOS
    default: bool = False

    def takes(self, layer: Layer) -> bool:
        """Whether the policy space may offer the scheme for a layer."""
        return (
            "rank" not in layer.fixed
            and layer.groups == 1
            and min(layer.cin, layer.cout) >= LEAST_CHANNELS
            and self.fits(layer)
        )


FACTORISATIONS: Registry[Factorisation] = Registry(
    "factorisation",
    tuple(f"compressors.factors.{name}" for name in ("svd", "spatial", "tucker2", "cp")),
    lambda scheme: scheme.weights,
)


def factorisation(name: str, **pure: Any) -> Callable[[Weights], Weights]:
    """Register a scheme: decorates its function; ``pure`` are the other fields of `Factorisation`."""

    def register(function: Weights) -> Weights:
        FACTORISATIONS.register(name, Factorisation(name=name, weights=function, **pure))
        return function

    return register


# -- what follows from the chain

N = TypeVar("N")


def channel_ends(
    steps: Sequence[Step], cin: N, cout: N, ranks: Sequence[N], one: N
) -> list[tuple[tuple[N, N], N]]:
    """Per step: the first two dimensions of its weight, and the channels it writes."""
    found: list[tuple[tuple[N, N], N]] = []
    before = cin
    for s in steps:
        after = before if s.depthwise else cout if s.rank is None else ranks[s.rank]
        if s.op == "conv_transpose":
            found.append(((before, after), after))
        else:
            found.append(((after, one if s.depthwise else before), after))
        before = after
    return found


def neutral(kernel: Shape) -> dict[str, Any]:
    """Attributes of a convolution that moves nothing: stride and dilation 1, no padding."""
    ones = tuple(1 for _ in kernel)
    return {"stride": ones, "padding": tuple(0 for _ in kernel), "dilation": ones, "groups": 1}


def pointwise(kernel: Shape, rank: int | None = None, op: str = "conv") -> Step:
    """A 1 x 1 convolution with as many dimensions as ``kernel``."""
    return Step(op, rank, tuple(1 for _ in kernel), neutral(kernel))


@lru_cache(maxsize=4096)
def _plan(scheme: Factorisation, op: str, kernel: Shape, stride: Shape) -> tuple[tuple[Step, ...], Shape]:
    """The chain, and positions at which each step is computed for one of the dense layer's."""
    attrs = {**neutral(kernel), **({"stride": stride} if stride else {})}
    steps = tuple(scheme.steps(op, kernel, {} if op == "linear" else attrs))
    # a step writes as many positions as the strides of the convolutions behind it take away again
    strides = [math.prod(s.attrs.get("stride", ())) if s.op == "conv" else 1 for s in steps]
    return steps, tuple(math.prod(strides[i + 1 :]) for i in range(len(steps)))


def factor_shapes(layer: Layer, shape: Shape, factor: Factor, stride: Shape = ()) -> list[Shape]:
    """Weight shapes of the layers a factorised layer turns into, in execution order."""
    return [s for s, _ in _shapes(layer, shape, factor, stride)]


def factor_macs(layer: Layer, shape: Shape, factor: Factor, stride: Shape) -> int:
    """MACs of the factors, for one position of the dense layer (output; of a transposed one input)."""
    return sum(math.prod(s) * at for s, at in _shapes(layer, shape, factor, stride))


def _shapes(layer: Layer, shape: Shape, factor: Factor, stride: Shape) -> list[tuple[Shape, int]]:
    scheme = FACTORISATIONS.find(factor.method)
    steps, positions = _plan(scheme, layer.op, shape[2:], stride)
    cout, cin = shape[:2] if layer.op != "conv_transpose" else (shape[1], shape[0])
    ends = channel_ends(steps, cin, cout, factor.rank, 1)
    return [((*first, *s.kernel), at) for s, at, (first, _) in zip(steps, positions, ends, strict=True)]


__all__ = [
    "FACTORISATIONS",
    "RANK_RATIOS",
    "Factorisation",
    "Step",
    "channel_ends",
    "factor_macs",
    "factor_shapes",
    "factorisation",
    "neutral",
    "pointwise",
]
