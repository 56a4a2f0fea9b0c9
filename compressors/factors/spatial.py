"""Spatially separable filters: k x 1 then 1 x k, for 2-d convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..graph import Layer
from .base import Step, factorisation

if TYPE_CHECKING:
    from torch import Tensor


def fits(layer: Layer) -> bool:
    """2-d convolutions with a window in both directions."""
    return layer.op == "conv" and len(layer.kernel) == 2 and all(k > 1 for k in layer.kernel)


def _full_rank(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (min(shape[1] * shape[2], shape[0] * shape[3]),)


def _steps(op: str, kernel: tuple[int, ...], attrs: Mapping[str, Any]) -> list[Step]:
    def half(i: int, rank: int | None) -> Step:
        def only(values: tuple[int, ...], rest: int) -> tuple[int, ...]:
            return tuple(v if d % 2 == i else rest for d, v in enumerate(values))

        return Step(
            op,
            rank,
            only(kernel, 1),
            {
                "stride": only(attrs["stride"], 1),
                "padding": only(attrs["padding"], 0),
                "dilation": only(attrs["dilation"], 1),
                "groups": 1,
            },
        )

    return [half(0, 0), half(1, None)]


@factorisation("spatial", ranks=1, fits=fits, full_rank=_full_rank, steps=_steps, default=True)
def spatial(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """k x 1, 1 x k (Jaderberg et al. 2014, scheme 2; closed form of Tai et al. 2016, theorem 1)."""
    from .algebra import truncated

    cout, cin, kh, kw = weight.shape
    matrix = weight.permute(1, 2, 0, 3).reshape(cin * kh, cout * kw)
    left, right = truncated(matrix, rank[0])
    vertical = left.reshape(cin, kh, rank[0]).permute(2, 0, 1).unsqueeze(3)
    horizontal = right.reshape(rank[0], cout, kw).permute(1, 0, 2).unsqueeze(2)
    return [vertical, horizontal]
