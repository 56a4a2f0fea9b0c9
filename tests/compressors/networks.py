"""Hand-written networks for tests: twelve common families and a set of oddities.

Each entry makes (network in eval mode, example inputs with a batch of 2), small, the same on every call.
Weights, batch-norm statistics and inputs come from a seed of the entry's own; torch's global generator
is left as it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.compressors import families
from tests.compressors import odd_networks as odd

Make = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]

_TWELVE: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "plain": (families.Plain, ((1, 16, 16),)),
    "residual": (families.Residual, ((3, 16, 16),)),
    "inception": (families.Inception, ((3, 16, 16),)),
    "fire": (families.Fire, ((3, 16, 16),)),
    "depthwise-separable": (families.DepthwiseSeparable, ((3, 16, 16),)),
    "inverted-residual": (families.InvertedResidual, ((3, 16, 16),)),
    "grouped": (families.Grouped, ((3, 16, 16),)),
    "decoder": (families.Decoder, ((1, 16, 16),)),
    "dilated": (families.Dilated, ((3, 16, 16),)),
    "shared-weights": (families.SharedWeights, ((3, 16, 16),)),
    "conv1d": (families.Conv1dNet, ((6, 64),)),
    "transformer": (families.Transformer, ((1, 16, 16),)),
}
_ODD: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "split": (odd.Halves, ((3, 8, 8),)),
    "in-place": (odd.InPlace, ((3, 8, 8),)),
    "functional": (odd.Functional, ((3, 8, 8),)),
    "group-norm": (odd.GroupNormed, ((3, 8, 8),)),
    "channels-last": (odd.ChannelsLast, ((3, 16, 16),)),
    "prelu": (odd.PReLUNet, ((3, 8, 8),)),
    "pre-activation": (odd.PreActivation, ((3, 8, 8),)),
    "two-inputs": (odd.TwoInputs, ((3, 8, 8), (6,))),
    "two-outputs": (odd.TwoOutputs, ((3, 8, 8),)),
    "tied-embedding": (odd.TiedEmbedding, ((12,),)),
    "fixed-batch": (odd.FixedBatch, ((3, 8, 8),)),
    "gated": (odd.Gated, ((4, 20),)),
    "grouped-transposed": (odd.GroupedTransposed, ((3, 8, 8),)),
    "reparametrised": (odd.Reparametrised, ((3, 8, 8),)),
    "padded": (odd.Padded, ((3, 16, 16),)),
}


def inputs_for(name: str, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of a network: normal values, or token ids for "tied-embedding"."""
    _, shapes = (_TWELVE | _ODD)[name]
    g = torch.Generator().manual_seed(1000 + seed)
    if name == "tied-embedding":
        return tuple(torch.randint(0, 40, (batch, *s), generator=g) for s in shapes)
    return tuple(torch.randn(batch, *s, generator=g) for s in shapes)


def _make(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    build, _ = (_TWELVE | _ODD)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        network = build()
        with torch.no_grad():  # statistics and scales unlike those of a fresh network
            for m in network.modules():
                if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                    m.get_buffer("running_mean").normal_(0.0, 0.2)
                    m.get_buffer("running_var").uniform_(0.5, 1.5)
                    m.weight.uniform_(0.5, 1.5)
                    m.bias.normal_(0.0, 0.2)
                if isinstance(m, nn.LayerNorm | nn.GroupNorm):
                    m.weight.uniform_(0.5, 1.5)
                    m.bias.normal_(0.0, 0.2)
                if isinstance(m, nn.PReLU):
                    m.weight.uniform_(0.1, 0.4)
    return network.eval(), inputs_for(name, 2)


def _entry(name: str) -> Make:
    return lambda: _make(name)


def networks() -> dict[str, Make]:
    """The twelve families, by name."""
    return {name: _entry(name) for name in _TWELVE}


def oddities() -> dict[str, Make]:
    """Networks with one unusual trait each, by name."""
    return {name: _entry(name) for name in _ODD}


__all__ = ["inputs_for", "networks", "oddities"]
