"""Simulated inference: the compressed network in torch, quantise/dequantise exactly where export puts it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .compressed import Compressed
from .execute import run
from .quantize import fake_quantize


def simulate(compressed: Compressed, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs for a batch, shape (batch, ...) each; differentiable in the weights outside no_grad."""
    codes = compressed.activations

    def rounded(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, codes[name])

    return run(
        compressed.graph, compressed.weights, inputs, rounded if codes else None, hooked=frozenset(codes)
    )


@torch.no_grad()
def answers(compressed: Compressed, inputs: Sequence[Tensor], batch: int = 128) -> tuple[Tensor, ...]:
    """Outputs for any number of samples, computed ``batch`` at a time."""
    step = compressed.graph.fixed_batch or batch
    total = inputs[0].shape[0]
    parts = [simulate(compressed, tuple(x[i : i + step] for x in inputs)) for i in range(0, total, step)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
