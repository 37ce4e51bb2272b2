"""A transformer whose tokens are the labels of one image."""

from __future__ import annotations

from torch import Tensor, nn


class LabelTransformer(nn.Module):
    """A pre-norm transformer in which every label attends to all, with a last layer norm."""

    def __init__(self, dim: int, depth: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, width, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, C, D) of the same."""
        for layer in self.layers:
            tokens = layer(tokens)
        normed: Tensor = self.norm(tokens)
        return normed
