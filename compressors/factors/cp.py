"""CP decomposition: 1 x 1, k x k depthwise, 1 x 1; for convolutions with a window. Asked for by name.

Differences from the paper (Lebedev et al. 2015, section 3):

| paper | here | why |
|---|---|---|
| k x 1 and 1 x k depthwise | one k x k depthwise | every runtime has that kernel; nothing is lost at a rank |
| non-linear least squares, random starts | alternating ones from the start below | always the same result |
| rank chosen by hand | searched | |

The start is the best sum of depthwise convolutions, each followed by 1 x 1 (network decoupling, Guo et al.
2018, theorem 1): for every input channel (or output channel, if these are fewer) the SVD of its filters,
and of all the rank-1 terms found the largest. At full rank it is exact; each sweep can only improve it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..graph import Layer
from .base import Step, factorisation, neutral, pointwise

if TYPE_CHECKING:
    from torch import Tensor

#: Sweeps of alternating least squares, and the share of improvement below which they end.
SWEEPS, TOLERANCE = 20, 1e-3
#: Proximal weight in units of the mean squared column (Navasca et al. 2008): keeps the normal equations
#: solvable, and terms that cancel each other from growing.
PROXIMAL = 1e-3


def _fits(layer: Layer) -> bool:
    return layer.op == "conv" and len(layer.kernel) <= 2 and math.prod(layer.kernel) > 1


def _full_rank(shape: tuple[int, ...]) -> tuple[int, ...]:
    cout, cin, taps = shape[0], shape[1], math.prod(shape[2:])
    return (min(cin * cout, cin * taps, cout * taps),)


def _steps(op: str, kernel: tuple[int, ...], attrs: Mapping[str, Any]) -> list[Step]:
    return [
        pointwise(kernel, 0),
        Step(op, None, kernel, {**neutral(kernel), **attrs}, True),
        pointwise(kernel),
    ]


@factorisation(
    "cp",
    ranks=1,
    fits=_fits,
    full_rank=_full_rank,
    steps=_steps,
    ratios=(0.375, 0.25, 0.125, 0.0625),  # of min(cin * taps, ...); beyond half of it nothing is saved
)
def cp(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """1 x 1, k x k depthwise, 1 x 1: CP decomposition (Lebedev et al. 2015, eq. 4), by least squares."""
    cout, cin, *kernel = weight.shape
    (r,) = rank
    cube = weight.reshape(cout, cin, -1)
    a, b, c = _improved(cube, *_start(cube, r))
    ones = [1] * len(kernel)
    return [b.T.reshape(r, cin, *ones), c.T.reshape(r, 1, *kernel), a.reshape(cout, r, *ones)]


def _start(cube: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """(cout, r), (cin, r), (taps, r): the r largest rank-1 terms of all slices, each of one channel."""
    import torch

    from .algebra import signs

    by_input = cube.shape[1] <= cube.shape[0]
    slices = cube.transpose(0, 1) if by_input else cube  # (channel, other side, taps)
    u, s, v = torch.linalg.svd(slices, full_matrices=False)
    sign = signs(u)
    u, v = u * sign, v * sign.transpose(1, 2)
    order = torch.argsort(s.flatten(), descending=True, stable=True)[:r]
    channel, term = order // s.shape[1], order % s.shape[1]
    one = torch.zeros(slices.shape[0], r, dtype=cube.dtype)
    one[channel, torch.arange(r)] = s[channel, term]
    other, taps = u[channel, :, term].T, v[channel, term].T
    return _balanced(*((other, one, taps) if by_input else (one, other, taps)))


def _balanced(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every term's size split evenly over its three vectors."""
    norms = [x.norm(dim=0).clamp_min(1e-30) for x in (a, b, c)]
    root = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    a, b, c = (x * (root / n) for x, n in zip((a, b, c), norms, strict=True))
    return a, b, c


def _improved(cube: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alternating least squares until an error relative to the weight's norm hardly falls any more."""
    import torch

    def error() -> float:
        return float((torch.einsum("or,ir,kr->oik", a, b, c) - cube).norm())

    def solved(product: Tensor, old: Tensor, x: Tensor, y: Tensor) -> Tensor:
        gram = (x.T @ x) * (y.T @ y)
        weight = PROXIMAL * gram.diagonal().mean() + 1e-30
        gram = gram + weight * torch.eye(gram.shape[0], dtype=gram.dtype)
        return torch.cholesky_solve((product + weight * old).T, torch.linalg.cholesky(gram)).T

    before = error()
    if before <= 1e-9 * float(cube.norm()):
        return a, b, c
    for _ in range(SWEEPS):
        a = solved(torch.einsum("oik,ir,kr->or", cube, b, c), a, b, c)
        b = solved(torch.einsum("oik,or,kr->ir", cube, a, c), b, a, c)
        c = solved(torch.einsum("oik,or,ir->kr", cube, a, b), c, a, b)
        a, b, c = _balanced(a, b, c)
        now = error()
        if now >= before * (1 - TOLERANCE):
            break
        before = now
    return a, b, c
