"""Low-rank factorisation of one weight, by the function that is registered for its scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import NumericsError
from .factors import FACTORISATIONS
from .policy import Factor


def factorize(weight: Tensor, factor: Factor, transposed: bool = False) -> list[Tensor]:
    """Factor weights in execution order, of the weight's type, contiguous.

    ``weight`` is (cout, cin, k...), (cin, cout, k...) if ``transposed``; shapes of the result are those of
    `factor_shapes`. Raises NumericsError for weights that are not finite, PolicyError for an unknown scheme.
    """
    if not bool(torch.isfinite(weight).all()):
        raise NumericsError("a weight to be factorised holds NaN or infinite values")
    scheme = FACTORISATIONS.find(factor.method)
    parts = scheme.weights(weight.detach().double(), factor.rank, transposed)
    return [p.to(weight.dtype).contiguous() for p in parts]
