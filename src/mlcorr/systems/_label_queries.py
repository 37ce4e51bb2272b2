"""One feature vector a label: a learned query for each label attends to the image's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlcorr._checks import check_integer, check_number


class LabelQueries(nn.Module):
    """A post-norm encoder on the tokens, and a decoder in which labels look at tokens but not at each other.

    So the feature of a label depends on no other label's query. Weights begin Xavier-uniform, biases at 0, queries
    normal with deviation 1.

    Args:
        num_labels: L.
        dim: d.
        encoder_layers: 0 leaves the encoder out.
        decoder_layers: At least 1.
        heads: Of every attention; a divisor of d.
        width: Hidden width of the feed-forward parts.
        dropout: On attention weights, in the feed-forward parts, and on what every part adds.

    Shape:
        - tokens: (B, N, d); positions: (N, d), added to queries and keys but not to values; or None.
        - padding: boolean (B, N), True at places to leave out, or None.
        - Output: (B, L, d).
    """

    def __init__(
        self,
        num_labels: int,
        dim: int,
        *,
        encoder_layers: int,
        decoder_layers: int,
        heads: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        num_labels = check_integer("num_labels", num_labels, minimum=1)
        check_integer("encoder_layers", encoder_layers, minimum=0)
        check_integer("decoder_layers", decoder_layers, minimum=1)
        if dim % check_integer("heads", heads, minimum=1):
            raise ValueError(f"heads: expected a divisor of dim, {dim}, got {heads}")
        check_integer("width", width, minimum=1)
        dropout = check_number("dropout", dropout, minimum=0.0, maximum=1.0)
        self.encoder = nn.ModuleList(AttentionLayer(dim, heads, width, dropout) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(AttentionLayer(dim, heads, width, dropout) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.empty(num_labels, dim))
        start_weights(self)
        nn.init.normal_(self.queries)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Return the label features."""
        for layer in self.encoder:
            placed = plus(tokens, positions)
            tokens = layer(tokens, query=placed, key=placed, value=tokens, padding=padding)
        key = plus(tokens, positions)
        labels = tokens.new_zeros(tokens.shape[0], *self.queries.shape)
        for layer in self.decoder:
            labels = layer(labels, query=labels + self.queries, key=key, value=tokens, padding=padding)
        features: Tensor = self.norm(labels)
        return features


class AttentionLayer(nn.Module):
    """LN(x + attention), then LN(x + feed-forward)."""

    def __init__(self, dim: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, dim))
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
        """Return ``x`` of (B, n, d) after both parts; ``key`` and ``value`` are (B, N, d)."""
        attended, _ = self.attention(query, key, value, key_padding_mask=padding, need_weights=False)
        x = self.attention_norm(x + self.dropout(attended))
        x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


def plus(tokens: Tensor, positions: Tensor | None) -> Tensor:
    """Return the tokens with their positions added."""
    return tokens if positions is None else tokens + positions


def start_weights(module: nn.Module) -> None:
    """Draw weights Xavier-uniform and set the biases of linear maps to 0."""
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            nn.init.xavier_uniform_(part.in_proj_weight)
            nn.init.zeros_(part.in_proj_bias)
        elif isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
