"""Truncated SVD: for linear layers, 1 x 1, 1-d and transposed convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..graph import Layer
from .base import Step, factorisation, pointwise

if TYPE_CHECKING:
    from torch import Tensor


def _fits(layer: Layer) -> bool:
    square = len(layer.kernel) == 2 and all(k > 1 for k in layer.kernel)
    return layer.op in ("linear", "conv_transpose") or not square


def _full_rank(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (min(shape[1] * math.prod(shape[2:]), shape[0]),)


def _steps(op: str, kernel: tuple[int, ...], attrs: Mapping[str, Any]) -> list[Step]:
    if op == "linear":
        return [Step("linear", 0), Step("linear")]
    whole = Step(op, 0 if op == "conv" else None, kernel, {**attrs, "groups": 1})
    return [whole, pointwise(kernel)] if op == "conv" else [pointwise(kernel, 0), whole]


@factorisation("svd", ranks=1, fits=_fits, full_rank=_full_rank, steps=_steps, default=True)
def svd(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """Truncated SVD over output channels: k x k, 1 x 1 (Denton et al. 2014; Zhang et al. 2016, eq. 3).

    A transposed convolution (cin, cout, k...) becomes a 1 x 1 convolution (r, cin, 1...) and a transposed
    one (r, cout, k...): the same product of matrices with the roles of input and output exchanged.
    """
    from .algebra import truncated

    cout, cin, *kernel = weight.shape
    left, right = truncated(weight.reshape(cout, -1), rank[0])
    whole, point = right.reshape(rank[0], cin, *kernel), left.reshape(cout, rank[0], *(1 for _ in kernel))
    return [point.transpose(0, 1), whole] if transposed else [whole, point]
