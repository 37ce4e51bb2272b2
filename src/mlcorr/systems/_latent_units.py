"""Latent context: learned vectors that no label supervises read an image, and the labels' features read them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from mlcorr._checks import check_integer
from mlcorr._precision import compute_dtype, no_autocast

Fusion: TypeAlias = Literal["gate", "sum", "concat", "none"]


class Attention(nn.Module):
    """Multi-head attention that also returns its weights, formed in float32 and never dropped out.

    Shape:
        - queries: (B, Q, D), or (1, Q, D) for the same in all images.
        - memory: (B, M, D); valid: boolean (B, M) or None, False where memory is padding.
        - Output: (B, Q, D), and weights (B, heads, Q, M) that add up to 1, or are 0 where nothing is valid.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, queries: Tensor, memory: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the queries read, and the weights."""
        query, key, value = (
            torch.unflatten(part, -1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), self.key(memory), self.value(memory))
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        weights = softmax_over(scores, None if valid is None else valid[:, None, None, :])
        read = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return self.output(read), weights


class LatentUnits(nn.Module):
    """Units read the tokens, labels read the units.

    Z = Z0 + MHA(LN(Z0), V), then Z + FFN(LN(Z)); the labels' context is MHA(LN(features), Z).

    Shape:
        - features: (B, C, D); tokens: (B, N, D); valid: boolean (B, N) or None.
        - Output: (B, C, D), and weights (B, C, N) without gradient: how much of each place each label hears of through
          the units. They leave the residual and the feed-forward part out of account.
    """

    def __init__(self, dim: int, units: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.units = nn.Parameter(0.02 * torch.randn(check_integer("units", units, minimum=1), dim))
        self.unit_norm = nn.LayerNorm(dim)
        self.read = Attention(dim, heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, dim))
        self.label_norm = nn.LayerNorm(dim)
        self.write = Attention(dim, heads)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, tokens: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the context-aware features and the places they come from."""
        read, of_places = self.read(self.unit_norm(self.units).unsqueeze(0), tokens, valid)
        units = self.units.to(read.dtype) + self.dropout(read)
        units = units + self.dropout(self.feed_forward(self.ffn_norm(units)))
        context, of_units = self.write(self.label_norm(features), units)
        with no_autocast(of_units):
            places = of_units.detach().mean(1) @ of_places.detach().mean(1)
        return context, places


class FeatureFusion(nn.Module):
    """Class-aware and context-aware features in one: LN(class + gate·context), the gate begun low.

    A label's own evidence is to weigh more than its context.
    """

    def __init__(self, dim: int, mode: Fusion) -> None:
        super().__init__()
        self.mode = mode
        self.norm = nn.LayerNorm(dim)
        if mode == "gate":
            self.gate = nn.Linear(2 * dim, dim)
            nn.init.constant_(self.gate.bias, -1.0)
        elif mode == "concat":
            self.mix = nn.Linear(2 * dim, dim)

    def forward(self, own: Tensor, context: Tensor | None) -> Tensor:
        """Return (..., D) of two such."""
        if context is None:
            fused = own
        elif self.mode == "gate":
            fused = own + self.gate(torch.cat([own, context], dim=-1)).sigmoid() * context
        elif self.mode == "concat":
            fused = self.mix(torch.cat([own, context], dim=-1))
        else:
            fused = own + context
        normed: Tensor = self.norm(fused)
        return normed


def softmax_over(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Return the softmax over the last dimension where ``valid``, in float32 or float64; 0 where nothing is."""
    dtype = compute_dtype(scores)
    if valid is None:
        return scores.softmax(-1, dtype=dtype)
    empty = ~valid.any(-1, keepdim=True)  # a softmax over nothing is NaN: there it takes everything, and is dropped
    weights = scores.masked_fill(~(valid | empty), float("-inf")).softmax(-1, dtype=dtype)
    return weights.masked_fill(empty, 0.0)
