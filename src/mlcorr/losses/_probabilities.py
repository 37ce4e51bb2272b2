"""Probabilities that losses take in place of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mlcorr._widening import widen

_SURE_IN_HALF = 2.0**-16  # the slope of a logarithm is one over it, which is beyond float16


def log_probabilities(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 − p) with PyTorch's own clamps: at −100, and 1e-12 under the fraction in gradients."""
    log_p = -F.binary_cross_entropy(p, torch.ones_like(p), reduction="none")
    log_not_p = -F.binary_cross_entropy(p, torch.zeros_like(p), reduction="none")
    return log_p, log_not_p


def widen_probabilities(p: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``p`` in ``dtype``; where a float16 probability is all but 0 or 1, its gradient stays finite."""
    if p.dtype != torch.float16:
        return p.to(dtype)
    wide = p.detach().to(dtype)
    return widen(p, dtype, (wide <= _SURE_IN_HALF) | (1 - wide <= _SURE_IN_HALF))
