"""Focused binary cross-entropy: the two terms that asymmetric losses mix, and the positive one on its own."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mlcorr.losses._probabilities import log_probabilities

Inputs: TypeAlias = Literal["logits", "probabilities"]

# Further out no factor depends on x in any dtype: either it is 1, or what it multiplies is 0.
_FAR = 1e3


def focal_terms(
    x: Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float | Tensor,
    clip: float,
    detach: bool,
    inputs: Inputs = "logits",
) -> tuple[Tensor, Tensor]:
    """Return −(1 − p)^γ⁺·log p and −q^γ⁻·log(1 − q), with q = max(p − clip, 0)."""
    p, log_p, log_not_p = _log_probabilities(x, inputs)
    focal_log_p, focal_log_not_p = log_p, log_not_p
    if not detach and inputs == "logits":
        focal_log_p, focal_log_not_p = _constant_far_out(log_p, x), _constant_far_out(log_not_p, x)
    positive = _focus(focal_log_not_p, gamma_pos, detach) * -log_p
    if clip == 0:
        negative = _focus(focal_log_p, gamma_neg, detach) * -log_not_p
    else:
        negative = _clipped_negative(p, log_not_p, gamma_neg, clip, detach)
    return positive, negative


def focal_positive(x: Tensor, gamma: float) -> Tensor:
    """Return −(1 − p)^γ·log p of logits, the factor not detached; of −x it is the negative term without a clip."""
    return _focus(_constant_far_out(F.logsigmoid(-x), x), gamma, False) * -F.logsigmoid(x)


def _constant_far_out(log_base: Tensor, x: Tensor) -> Tensor:
    """Return ``log_base`` without its gradient where x is far from 0, whose other factor may overflow there."""
    return torch.where(x.abs() < _FAR, log_base, log_base.detach())


def _log_probabilities(x: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return p, log p and log(1 − p)."""
    if inputs == "logits":
        return x.sigmoid(), F.logsigmoid(x), F.logsigmoid(-x)
    return x, *log_probabilities(x)


def _focus(log_base: Tensor, gamma: float | Tensor, detach: bool) -> Tensor:
    """base^γ as exp(γ·log base): its gradient γ·base^γ·(log base)′ has no base^(γ − 1), infinite at 0 for γ < 1."""
    return torch.exp(gamma * (log_base.detach() if detach else log_base))


def _clipped_negative(p: Tensor, log_not_p: Tensor, gamma: float | Tensor, clip: float, detach: bool) -> Tensor:
    """−q^γ·log(1 − q) for q = max(p − clip, 0)."""
    above = p > clip
    q = torch.where(above, p - clip, 0.25)  # any number with a finite logarithm: the last line drops it
    # Near q = 0, log1p keeps what 1 − q rounds away; near p = 1, (1 − p) + clip does. Each branch of a `where` must
    # have a finite gradient on its own, so that the one not taken gets a harmless argument.
    small = q < 0.5
    # Of summands further apart, logaddexp has second derivatives of NaN; the smaller one is then no part of the sum.
    far = torch.logaddexp(log_not_p.clamp(min=math.log(clip) - 60), log_not_p.new_tensor(math.log(clip)))
    log_not_q = torch.where(small, torch.log1p(-torch.where(small, q, 0.0)), far)
    return torch.where(above, _focus(q.log(), gamma, detach) * -log_not_q, 0.0)
