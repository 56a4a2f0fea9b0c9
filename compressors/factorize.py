"""Low-rank factorisation of one weight, one registered function a method.

Each takes a weight (cout, cin, k...) and the ranks and returns the factor weights in execution order,
with the shapes of `compressors.resolve.factor_shapes`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import NumericsError, PolicyError, near
from .policy import Factor

Factorisation = Callable[[Tensor, tuple[int, ...]], list[Tensor]]
FACTORISATIONS: dict[str, Factorisation] = {}


def factorisation(name: str) -> Callable[[Factorisation], Factorisation]:
    """Register a factorisation method under a name."""

    def register(function: Factorisation) -> Factorisation:
        FACTORISATIONS[name] = function
        return function

    return register


def factorize(weight: Tensor, factor: Factor, transposed: bool = False) -> list[Tensor]:
    """Factor weights, float32, contiguous. Raises NumericsError for weights that are not finite.

    A transposed convolution (cin, cout, k...) becomes a 1 x 1 convolution (r, cin, 1...) and a transposed
    one (r, cout, k...): the same product of matrices with the roles of input and output exchanged.
    """
    if not bool(torch.isfinite(weight).all()):
        raise NumericsError("a weight to be factorised holds NaN or infinite values")
    if factor.method not in FACTORISATIONS:
        raise PolicyError(f"unknown factorisation {factor.method!r}.{near(factor.method, FACTORISATIONS)}")
    parts = FACTORISATIONS[factor.method](weight.detach().double(), factor.rank)
    if transposed:
        first, second = parts[1].transpose(0, 1), parts[0]
        parts = [first, second]
    return [p.to(weight.dtype).contiguous() for p in parts]


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(m, r) and (r, n) whose product is the best rank-r approximation; singular values split evenly.

    The sign of each singular pair is fixed (largest entry of the left vector positive), so that the
    result does not depend on the LAPACK build.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True))).squeeze(0)
    sign = torch.where(sign == 0, torch.ones_like(sign), sign)
    root = s.sqrt()
    return u * (sign * root), v * (sign * root).unsqueeze(1)


@factorisation("svd")
def svd(weight: Tensor, rank: tuple[int, ...]) -> list[Tensor]:
    """Truncated SVD over output channels (Denton et al. 2014; Zhang et al. 2016, eq. 3)."""
    cout, cin, *kernel = weight.shape
    left, right = _truncated(weight.reshape(cout, -1), rank[0])
    return [right.reshape(rank[0], cin, *kernel), left.reshape(cout, rank[0], *(1 for _ in kernel))]


@factorisation("spatial")
def spatial(weight: Tensor, rank: tuple[int, ...]) -> list[Tensor]:
    """k x 1 then 1 x k (Jaderberg et al. 2014, scheme 2; closed form of Tai et al. 2016, theorem 1)."""
    cout, cin, kh, kw = weight.shape
    matrix = weight.permute(1, 2, 0, 3).reshape(cin * kh, cout * kw)
    left, right = _truncated(matrix, rank[0])
    vertical = left.reshape(cin, kh, rank[0]).permute(2, 0, 1).unsqueeze(3)
    horizontal = right.reshape(rank[0], cout, kw).permute(1, 0, 2).unsqueeze(2)
    return [vertical, horizontal]


@factorisation("tucker2")
def tucker2(weight: Tensor, rank: tuple[int, ...]) -> list[Tensor]:
    """Tucker-2 over input and output channels (Kim et al. 2016), by higher-order orthogonal iteration."""
    cout, cin, *kernel = weight.shape
    r_in, r_out = rank

    def basis(matrix: Tensor, r: int) -> Tensor:
        found: Tensor = torch.linalg.svd(matrix, full_matrices=False)[0]
        return found[:, :r]

    u_in = basis(weight.transpose(0, 1).reshape(cin, -1), r_in)
    u_out = basis(weight.reshape(cout, -1), r_out)
    for _ in range(3):
        part = torch.einsum("oi...,ir->or...", weight, u_in)
        u_out = basis(part.reshape(cout, -1), r_out)
        part = torch.einsum("oi...,or->ri...", weight, u_out)
        u_in = basis(part.transpose(0, 1).reshape(cin, -1), r_in)
    core = torch.einsum("oi...,ir,os->sr...", weight, u_in, u_out)
    ones = [1] * len(kernel)
    return [u_in.T.reshape(r_in, cin, *ones), core, u_out.reshape(cout, r_out, *ones)]
