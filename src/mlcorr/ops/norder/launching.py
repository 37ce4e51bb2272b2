"""What kernels and those who launch them agree on."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

# Of the sums of BCE and MLD, so that they do not overflow where their means over rows do not.
UNIT = 2.0**20

# Rows whose products u∘v are summed together on the way to g.
BLOCK_OF_ROWS = 16


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Context in which kernels are launched where ``x`` is, not on the process's current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def readable(x: Tensor | None) -> Tensor | None:
    """Return ``x`` as a kernel reads it: of bool, the bytes."""
    return x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x


def dense(x: Tensor) -> Tensor:
    """Return ``x`` as a kernel reads it that goes by rows: vmap hands over tensors that are not."""
    return x if x.is_contiguous() else x.contiguous()


def strides(x: Tensor | None) -> tuple[int, int]:
    """Return the strides of a matrix, which need not be contiguous; of none, any."""
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def stored(x: Tensor, computed: torch.dtype) -> torch.dtype:
    """Return the dtype in which a kernel leaves what shall have that of ``x``.

    Off the device, Triton's interpreter cuts digits off when it stores bfloat16, where a device rounds.
    """
    return x.dtype if x.device.type == "cuda" else computed
