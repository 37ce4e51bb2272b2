"""Probabilities that losses take in place of logits."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mlcorr._autograd import fixed_signature

_SURE_IN_HALF = 2.0**-16  # the slope of a logarithm is one over it, which is beyond float16


def log_probabilities(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 − p) with PyTorch's own clamps: at −100, and 1e-12 under the fraction in gradients."""
    log_p = -F.binary_cross_entropy(p, torch.ones_like(p), reduction="none")
    log_not_p = -F.binary_cross_entropy(p, torch.zeros_like(p), reduction="none")
    return log_p, log_not_p


def widen(p: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``p`` in ``dtype``; where a float16 probability is all but 0 or 1, its gradient stays finite.

    Any other gradient that float16 cannot hold becomes infinite, as it must for a gradient scaler to see it.
    """
    return cast(Tensor, _Widen.apply(p, dtype)) if p.dtype == torch.float16 else p.to(dtype)


class _Widen(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(p: Tensor, dtype: torch.dtype) -> Tensor:
        return p.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        wide = output.detach()
        ctx.save_for_backward((wide < _SURE_IN_HALF) | (1 - wide < _SURE_IN_HALF))
        ctx.narrow = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (sure,) = ctx.saved_tensors
        largest = torch.finfo(ctx.narrow).max
        return torch.where(sure, grads[0].clamp(-largest, largest), grads[0]).to(ctx.narrow), None
