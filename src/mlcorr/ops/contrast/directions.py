"""Vectors of length one, in the precision that losses compute in."""

from __future__ import annotations

import torch
from torch import Tensor

from mlcorr._widening import widen

_SHORTEST = 1e-6
_SHORT_IN_HALF = 1e-3  # a gradient is divided by the length, and then may be beyond float16
_LARGE = 1e15  # beyond, squares of float32 overflow


def unit_vectors(z: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Return z / max(\|z\|, 1e-6) along the last dimension, in ``dtype``, which is float32 or float64."""
    z = widen_vectors(z, dtype)
    largest = z.detach().abs().amax(dim=-1, keepdim=True)
    z = z / torch.where(largest > _LARGE, largest, 1.0)
    short = torch.linalg.vector_norm(z.detach(), dim=-1, keepdim=True) < _SHORTEST
    # The length of 0 has no second derivative, so that of something else is taken, and not used.
    length = torch.linalg.vector_norm(torch.where(short, 1.0, z), dim=-1, keepdim=True)
    return z / torch.where(short, _SHORTEST, length)


def widen_vectors(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``z`` in ``dtype``; where a float16 vector is next to nothing, its gradient stays finite."""
    if z.dtype != torch.float16:
        return z.to(dtype)
    largest = z.detach().to(dtype).abs().amax(dim=-1, keepdim=True)
    return widen(z, dtype, largest < _SHORT_IN_HALF)
