"""Vectors of length one, in the precision that losses compute in."""

from __future__ import annotations

import torch
from torch import Tensor

from mlcorr._precision import widen

_SHORTEST = 1e-6
_LARGE = 1e15  # beyond, squares of float32 overflow


def unit_vectors(z: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Return z / max(\|z\|, 1e-6) along the last dimension, in ``dtype``, which is float32 or float64."""
    z = widen(z, dtype)
    largest = z.detach().abs().amax(dim=-1, keepdim=True)
    unit = torch.where(largest > _LARGE, largest, 1.0)
    z = z / unit
    length: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / length.clamp(min=_SHORTEST / unit)
