"""Tucker-2: 1 x 1, k x k between fewer channels, 1 x 1; for 2-d convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import Step, factorisation, pointwise
from .spatial import fits

if TYPE_CHECKING:
    from torch import Tensor


def _full_rank(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[1], shape[0])


def _within(shape: tuple[int, ...], rank: tuple[int, ...]) -> tuple[int, ...]:
    taps = math.prod(shape[2:])  # neither side can have more than the other spans
    return (min(rank[0], rank[1] * taps), min(rank[1], rank[0] * taps))


def _steps(op: str, kernel: tuple[int, ...], attrs: Mapping[str, Any]) -> list[Step]:
    return [pointwise(kernel, 0), Step(op, 1, kernel, {**attrs, "groups": 1}), pointwise(kernel)]


@factorisation(
    "tucker2", ranks=2, fits=fits, full_rank=_full_rank, within=_within, steps=_steps, default=True
)
def tucker2(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """1 x 1, k x k, 1 x 1: Tucker-2 over input and output channels (Kim et al. 2016).

    By higher-order orthogonal iteration (De Lathauwer et al. 2000), three sweeps.
    """
    import torch

    from .algebra import left_basis

    cout, cin, *kernel = weight.shape
    r_in, r_out = rank

    u_in = left_basis(weight.transpose(0, 1).reshape(cin, -1), r_in)[0]
    u_out = left_basis(weight.reshape(cout, -1), r_out)[0]
    for _ in range(3):
        part = torch.einsum("oi...,ir->or...", weight, u_in)
        u_out = left_basis(part.reshape(cout, -1), r_out)[0]
        part = torch.einsum("oi...,or->ri...", weight, u_out)
        u_in = left_basis(part.transpose(0, 1).reshape(cin, -1), r_in)[0]
    core = torch.einsum("oi...,ir,os->sr...", weight, u_in, u_out)
    ones = [1] * len(kernel)
    return [u_in.T.reshape(r_in, cin, *ones), core, u_out.reshape(cout, r_out, *ones)]
