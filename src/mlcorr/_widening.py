"""Half precision made wide, where the gradient that comes back may be beyond it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature


def widen(x: Tensor, dtype: torch.dtype, steep: Tensor) -> Tensor:
    """Return ``x`` in ``dtype``; where it is ``steep``, a gradient that float16 cannot hold is the largest it can.

    Elsewhere such a gradient becomes infinite, as it must for a gradient scaler to see it.

    Args:
        x: Of float16.
        dtype: A wider one.
        steep: Boolean, of a shape that broadcasts to that of ``x``.
    """
    return cast(Tensor, _Widen.apply(x, steep, dtype))


class _Widen(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(x: Tensor, steep: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG004
        return x.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[1])
        ctx.narrow = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (steep,) = ctx.saved_tensors
        largest = torch.finfo(ctx.narrow).max
        return torch.where(steep, grads[0].clamp(-largest, largest), grads[0]).to(ctx.narrow), None, None
