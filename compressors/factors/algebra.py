"""Matrix algebra that several schemes share. Imports torch: schemes import it when they compute weights."""

from __future__ import annotations

import torch
from torch import Tensor


def signs(u: Tensor) -> Tensor:
    """+1 or -1 per column, (..., m, r) to (..., 1, r): makes each column's largest entry positive.

    Singular pairs are unique up to a sign; fixed, a result does not depend on the LAPACK build.
    """
    sign = torch.sign(u.gather(-2, u.abs().argmax(-2, keepdim=True)))
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(m, r) and (r, n) whose product is the best rank-r approximation; singular values split evenly."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    sign = signs(u).squeeze(0)
    root = s.sqrt()
    return u * (sign * root), v * (sign * root).unsqueeze(1)
