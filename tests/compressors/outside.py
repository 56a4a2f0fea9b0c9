"""A compressor of each kind as a third party would write it, in one file that knows the public names only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compressors import Step, criterion, factorisation, range_method, weight_scale

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.graph import ChannelGroup, Layer
    from compressors.importance import Evidence
    from compressors.resolve import Numerics


def _fits(layer: Layer) -> bool:
    return layer.op == "conv" and math.prod(layer.kernel) > 1


def _full_rank(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (min(shape[1], shape[0] * math.prod(shape[2:])),)


def _steps(op: str, kernel: tuple[int, ...], attrs: Mapping[str, Any]) -> list[Step]:
    ones = tuple(1 for _ in kernel)
    unit = {"stride": ones, "padding": tuple(0 for _ in kernel), "dilation": ones, "groups": 1}
    return [Step("conv", 0, ones, unit), Step("conv", None, kernel, {**attrs, "groups": 1})]


@factorisation("input-svd", ranks=1, fits=_fits, full_rank=_full_rank, steps=_steps, ratios=(0.5, 0.25))
def input_svd(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """1 x 1, k x k: truncated SVD over input channels."""
    import torch

    cout, cin, *kernel = weight.shape
    u, s, v = torch.linalg.svd(weight.transpose(0, 1).reshape(cin, -1), full_matrices=False)
    (r,) = rank
    first = u[:, :r].T.reshape(r, cin, *(1 for _ in kernel))
    return [first, (s[:r, None] * v[:r]).reshape(r, cout, *kernel).transpose(0, 1)]


@criterion("largest-weight")
def largest_weight(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """The largest weight that a unit's layer writes it with."""
    import torch

    found = torch.zeros(group.size)
    for (name, dim), units in group.slices.items():
        if name in evidence.weights and evidence.weights[name].dim() > 1:
            top = evidence.weights[name].detach().abs().transpose(0, dim).flatten(1).amax(1)
            at = torch.tensor(units)
            found.scatter_reduce_(0, at[at >= 0], top[at >= 0], "amax")
    return found


@range_method("three-sigma")
def three_sigma(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """Mean plus and minus 3.5 standard deviations, inside the values seen."""
    middle, spread = float(sample.mean()), 3.5 * float(sample.std(unbiased=False))
    low, high = float(sample.min()), float(sample.max())
    return min(max(middle - spread, low), high), max(min(middle + spread, high), low)


@weight_scale("four-fifths")
def four_fifths(rows: Tensor, bits: int, high: int) -> Tensor:
    """Clips the largest weights of a channel by a fifth below 8 bits."""
    top = rows.abs().amax(1).clamp_min(1e-9)
    return top * (1.0 if bits == 8 else 0.8) / high
