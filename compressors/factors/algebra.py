"""Matrix algebra that several schemes share. Imports torch: schemes import it when they compute weights."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows from which on the Gram matrix is factorised in float32.
WIDE = 128


def signs(u: Tensor) -> Tensor:
    """+1 or -1 per column, (..., m, r) to (..., 1, r): makes each column's largest entry positive.

    Singular pairs are unique up to a sign; fixed, a result does not depend on the LAPACK build.
    """
    sign = torch.sign(u.gather(-2, u.abs().argmax(-2, keepdim=True)))
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def left_basis(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """First ``rank`` left singular vectors (m, r) of a matrix (m, n), and singular values (r,).

    By the eigenvectors of the m x m Gram matrix: several times faster than an SVD where m < n. Values below
    1e-8 of the largest (3e-4 in float32, taken for wide matrices) are lost in it, which a projection on the
    vectors hardly notices: its error is that of the best one, to the second order.
    """
    gram = matrix.float() if matrix.shape[0] > WIDE else matrix.double()
    values, vectors = torch.linalg.eigh(gram @ gram.T)
    top = values.flip(0)[:rank].clamp_min(0.0).sqrt()
    return vectors.flip(1)[:, :rank].to(matrix.dtype), top.to(matrix.dtype)


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(m, r) and (r, n) whose product is the best rank-r approximation; singular values split evenly.

    The product is the projection of the matrix on its leading singular vectors, on the shorter side.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    basis, values = left_basis(matrix if wide else matrix.T, rank)
    root = values.sqrt()
    inverse = torch.where(root > 0, 1.0 / root.clamp_min(1e-30), torch.zeros_like(root))
    projected = basis.T @ matrix if wide else matrix @ basis
    left, right = (
        (basis * root, projected * inverse[:, None]) if wide else (projected * inverse, (basis * root).T)
    )
    sign = signs(left).squeeze(0)
    return left * sign, right * sign[:, None]


__all__ = ["left_basis", "signs", "truncated"]
