"""Experts: a small adapter for each prompt; for each label a gate over the prompts of its group, and a classifier."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcorr._precision import compute_dtype, no_autocast
from mlcorr.layers import GroupWiseLinear


class PromptAdapters(nn.Module):
    """A bottleneck for each of P tokens, ``z + GELU(z @ down + down_bias) @ up + up_bias``, begun as ``nn.Linear``'s.

    Args:
        count: P.
        dim: d.
        bottleneck: h.

    Shape:
        - tokens: (B, P, d).
        - Output: (B, P, d).
    """

    def __init__(self, count: int, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(count, dim, bottleneck))
        self.down_bias = nn.Parameter(torch.empty(count, bottleneck))
        self.up = nn.Parameter(torch.empty(count, bottleneck, dim))
        self.up_bias = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly from ±1/√(inputs)."""
        for weight, bias in ((self.down, self.down_bias), (self.up, self.up_bias)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the adapted tokens."""
        hidden = F.gelu(torch.einsum("bpd,pdh->bph", tokens, self.down) + self.down_bias)
        return tokens + torch.einsum("bph,phd->bpd", hidden, self.up) + self.up_bias

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        count, dim, bottleneck = self.down.shape
        return f"prompts={count}, dim={dim}, bottleneck={bottleneck}"


class GatedExperts(nn.Module):
    """Logits of one relation: each label weighs what its group's E experts say of it.

    Of label l in group g, with tokens z and adapted tokens h: r_e = ⟨z_eg, U_le⟩, a = softmax(r),
    logit = ⟨Σ_e a_e h_eg, W_l⟩ + b_l, gate logit = Σ_e a_e r_e. The sum over experts comes last, as
    Σ_e a_e ⟨h_eg, W_l⟩, and the labels of a group share one matrix product, so that nothing of the size B·L·E·d is
    formed.

    Args:
        groups: (L,) int64, the group of each label, in [0, num_groups).
        num_groups: T.
        experts: E.
        dim: d.

    Shape:
        - tokens, adapted: (B, E·T, d), the token of expert e and group g at e·T + g.
        - Output: logits (B, L), gate logits (B, L) and gates (B, L, E); float32, or float64 for float64 tokens.
    """

    def __init__(self, groups: Tensor, num_groups: int, experts: int, dim: int) -> None:
        super().__init__()
        self.num_groups, self.experts = num_groups, experts
        self._sizes = torch.bincount(groups, minlength=num_groups).tolist()  # labels of each group
        order = groups.argsort(stable=True)
        # No buffers: an average of a model's buffers would average these numbers of labels.
        self.order = order  # labels, group by group
        self.place = order.argsort()  # of each label in that order
        self.gate = nn.Parameter(torch.empty(len(groups), experts, dim))
        self.classifier = GroupWiseLinear(len(groups), dim)
        bound = 1 / math.sqrt(dim)
        nn.init.uniform_(self.gate, -bound, bound)

    def forward(self, tokens: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, gate logits and gates."""
        dtype = compute_dtype(tokens, self.gate)
        with no_autocast(tokens):  # scores that are rounded choose other experts
            return self._weigh(tokens.to(dtype), adapted.to(dtype))

    def _weigh(self, tokens: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens, adapted = (torch.unflatten(each, 1, (self.experts, self.num_groups)) for each in (tokens, adapted))
        gates = torch.split(self.gate[self.order].to(tokens.dtype), self._sizes)
        weights = torch.split(self.classifier.weight[self.order].to(tokens.dtype), self._sizes)
        said, scores = [], []
        for group in range(self.num_groups):
            if self._sizes[group]:
                scores.append(torch.einsum("bed,led->ble", tokens[:, :, group], gates[group]))
                said.append(torch.einsum("bed,ld->ble", adapted[:, :, group], weights[group]))
        score, logit = torch.cat(scores, dim=1)[:, self.place], torch.cat(said, dim=1)[:, self.place]
        share = score.softmax(-1)
        logits = (share * logit).sum(-1) + self.classifier.bias.to(logit.dtype)
        return logits, (share * score).sum(-1), share

    @property
    def groups(self) -> Tensor:
        """The group of each label (L,)."""
        sizes = torch.tensor(self._sizes, device=self.place.device)
        return torch.arange(self.num_groups, device=self.place.device).repeat_interleave(sizes)[self.place]

    def _apply(self, fn: Any, recurse: bool = True) -> GatedExperts:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(self.order).device
        if device.type != "meta":  # no state brings them back: they keep their numbers, in `to_empty` too
            self.order, self.place = self.order.to(device), self.place.to(device)
        return self

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"num_groups={self.num_groups}, experts={self.experts}"
