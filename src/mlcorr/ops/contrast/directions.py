"""Vectors of length one, in the precision that losses compute in."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature

_SHORTEST = 1e-6
_SHORT_IN_HALF = 1e-3  # a gradient is divided by the length, and then may be beyond float16
_LARGE = 1e15  # beyond, squares of float32 overflow


def unit_vectors(z: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Return z / max(\|z\|, 1e-6) along the last dimension, in ``dtype``, which is float32 or float64."""
    z = widen(z, dtype)
    largest = z.detach().abs().amax(dim=-1, keepdim=True)
    z = z / torch.where(largest > _LARGE, largest, 1.0)
    short = torch.linalg.vector_norm(z.detach(), dim=-1, keepdim=True) < _SHORTEST
    # The length of 0 has no second derivative, so that of something else is taken, and not used.
    length = torch.linalg.vector_norm(torch.where(short, 1.0, z), dim=-1, keepdim=True)
    return z / torch.where(short, _SHORTEST, length)


def widen(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``z`` in ``dtype``; where a float16 vector is next to nothing, its gradient stays finite.

    Any other gradient that float16 cannot hold becomes infinite, as it must for a gradient scaler to see it.
    """
    return cast(Tensor, _Widen.apply(z, dtype)) if z.dtype == torch.float16 else z.to(dtype)


class _Widen(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(z: Tensor, dtype: torch.dtype) -> Tensor:
        return z.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output.detach().abs().amax(dim=-1, keepdim=True) < _SHORT_IN_HALF)
        ctx.narrow = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (short,) = ctx.saved_tensors
        largest = torch.finfo(ctx.narrow).max
        return torch.where(short, grads[0].clamp(-largest, largest), grads[0]).to(ctx.narrow), None
