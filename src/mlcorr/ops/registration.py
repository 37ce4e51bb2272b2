"""Kernels as operators of PyTorch: what ``torch.compile``, CUDA graphs and ``torch.func`` see of one.

No operator has a derivative of its own: that is the business of the ``autograd.Function`` above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("mlcorr", "DEF")


def define_operator(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], fold: Callable[..., Any] | None = None
) -> None:
    """Register ``kernel`` for all devices, ``fake`` for shapes, and a rule of vmap.

    ``fold`` makes of a tensor with one more dimension in front one without, which is undone in the results; without it,
    the operator is called once for each entry of that dimension.
    """
    _LIBRARY.define(schema)
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlcorr::{name}", fake, lib=_LIBRARY)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size, operator = info.batch_size, getattr(torch.ops.mlcorr, name)
        batched = [
            arg if not isinstance(arg, Tensor) else arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        if fold is None:
            each = [operator(*(x[k] if isinstance(x, Tensor) else x for x in batched)) for k in range(size)]
            if isinstance(each[0], Tensor):
                return torch.stack(each), 0
            return tuple(torch.stack(x) for x in zip(*each, strict=True)), (0,) * len(each[0])
        outputs = operator(*(fold(x) if isinstance(x, Tensor) else x for x in batched))
        # What was not asked for is empty and has no such dimension.
        unfolded = tuple(x.reshape(size, -1, *x.shape[1:]) if x.numel() else x for x in outputs)
        return unfolded, tuple(0 if x.numel() else None for x in outputs)

    torch.library.register_vmap(f"mlcorr::{name}", vmap, lib=_LIBRARY)
