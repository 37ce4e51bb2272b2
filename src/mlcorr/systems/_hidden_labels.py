"""Labels hidden at random, to be inferred from those that are shown: the branch that only training has."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from mlcorr.layers import GroupWiseLinear

PartialMode: TypeAlias = Literal["state", "feature"]


def draw_hidden(known: Tensor, ratio: float) -> Tensor:
    """Return which of the ``known`` labels (B, C) to hide: of each row ⌈ratio·known.sum()⌉, all equally likely."""
    # By integers: in float32 some products round up once too often, and not all devices have float64.
    share = Fraction(ratio).limit_denominator(10**9)
    count = -torch.div(known.sum(-1) * -share.numerator, share.denominator, rounding_mode="floor")
    order = torch.rand(known.shape, device=known.device).masked_fill(~known, 2.0)
    ranks = order.argsort(dim=-1).argsort(dim=-1)
    return known & (ranks < count.unsqueeze(-1))


class PartialLabels(nn.Module):
    """What the branch has of its own: what shown, or hidden, labels look like, and a classifier.

    Args:
        num_labels: C.
        dim: D.
        mode: "state" adds a vector to the token of every shown label, one for positives and one for negatives;
            "feature" replaces the tokens of hidden labels by a learned vector and shows no label's value.
        encoder: A label transformer of its own, or None.
    """

    def __init__(self, num_labels: int, dim: int, mode: PartialMode, encoder: nn.Module | None) -> None:
        super().__init__()
        if mode == "state":
            self.states = nn.Parameter(0.02 * torch.randn(2, dim))  # of negatives, of positives
        else:
            self.mask = nn.Parameter(0.02 * torch.randn(dim))
        self.mode = mode
        self.classifier = GroupWiseLinear(num_labels, dim)
        self.encoder = encoder

    def forward(self, features: Tensor, labels: Tensor, known: Tensor, hide: Tensor) -> Tensor:
        """Return features (B, C, D) that know the shown labels' values, or lack the hidden labels' features."""
        if self.mode == "feature":
            return torch.where(hide.unsqueeze(-1), self.mask.to(features.dtype), features)
        negative, positive = self.states.to(features.dtype).unbind()
        y = labels.to(features.dtype).unsqueeze(-1)
        # Selected before the encoder: a hidden label's value must not reach another label's token either.
        return features + torch.where((known & ~hide).unsqueeze(-1), y * positive + (1 - y) * negative, 0.0)
