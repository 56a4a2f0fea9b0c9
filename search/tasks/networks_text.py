"""A sentence encoder: BERT (Devlin et al. 2018) with mean pooling, as sentence-transformers has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Taken off the attention scores of tokens that are padding (BERT's own value).
PADDING_SCORE = 10000.0


@dataclass(frozen=True)
class EncoderSize:
    """Sizes of a BERT encoder; the defaults are all-MiniLM-L6-v2's (its `config.json`)."""

    vocabulary: int = 30522
    positions: int = 512
    hidden: int = 384
    heads: int = 12
    layers: int = 6
    intermediate: int = 1536
    eps: float = 1e-12


class SelfAttention(nn.Module):
    """Multi-head attention; its parts are called as in BERT's checkpoints."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.self = nn.ModuleDict({k: nn.Linear(size.hidden, size.hidden) for k in ("query", "key", "value")})
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(size.hidden, size.hidden),
                "LayerNorm": nn.LayerNorm(size.hidden, eps=size.eps),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, L, hidden) and an additive mask (N, 1, 1, L) -> (N, L, hidden), residual and norm included."""
        query, key, value = (
            self.self[k](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for k in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y: Tensor = self.output["LayerNorm"](self.output["dense"](mixed.transpose(1, 2).flatten(2)) + x)
        return y


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron, each with a residual and a norm behind it."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.attention = SelfAttention(size)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size.hidden, size.intermediate)})
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(size.intermediate, size.hidden),
                "LayerNorm": nn.LayerNorm(size.hidden, eps=size.eps),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, L, hidden) and an additive mask (N, 1, 1, L) -> (N, L, hidden)."""
        x = self.attention(x, mask)
        wide = functional.gelu(self.intermediate["dense"](x))
        y: Tensor = self.output["LayerNorm"](self.output["dense"](wide) + x)
        return y


class SentenceEncoder(nn.Module):
    """Token ids and their mask in, unit-length sentence embeddings out."""

    def __init__(self, size: EncoderSize | None = None) -> None:
        super().__init__()
        size = size if size is not None else EncoderSize()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(size.vocabulary, size.hidden),
                "position_embeddings": nn.Embedding(size.positions, size.hidden),
                "token_type_embeddings": nn.Embedding(2, size.hidden),
                "LayerNorm": nn.LayerNorm(size.hidden, eps=size.eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(EncoderLayer(size) for _ in range(size.layers))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (N, L) int64 and a mask (N, L) float, 1 for text and 0 for padding -> (N, hidden)."""
        table = self.embeddings
        place = torch.arange(ids.shape[1], device=ids.device)
        fixed = table["position_embeddings"](place) + table["token_type_embeddings"](torch.zeros_like(place))
        x: Tensor = table["LayerNorm"](table["word_embeddings"](ids) + fixed)
        added = (mask[:, None, None, :] - 1.0) * PADDING_SCORE
        for layer in self.encoder["layer"].children():
            x = layer(x, added)
        weight = mask[:, :, None]
        pooled = (x * weight).mean(1) / weight.mean(1)  # sums over the number of tokens
        return pooled / torch.sqrt((pooled * pooled).mean(1, keepdim=True) * pooled.shape[1])
