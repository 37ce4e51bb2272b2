"""Where kernels run, and in what form they take tensors and leave them."""

from __future__ import annotations

import contextlib
import os

import torch
from torch import Tensor


def have_kernels(device: torch.device) -> bool:
    """Return whether kernels run on ``device``: those of Triton, on NVIDIA's since Volta and on AMD's."""
    return device.type == "cuda" and _triton_error() is None and _is_able(device)


def require_kernels(backend: str, device: torch.device) -> None:
    """Raise unless ``backend``, which is one of kernels, can run on ``device``."""
    error = _triton_error()
    if error is not None:
        raise ImportError(
            f"backend: {backend!r} needs Triton, which cannot be imported ({error}); "
            "pip install 'mlcorr[triton]', or use 'auto'"
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend: {backend!r} needs tensors on a CUDA or ROCm device, got {device.type!r}; use 'auto', "
            "or set TRITON_INTERPRET=1 before the start to run kernels in Triton's interpreter"
        )


def _triton_error() -> str | None:
    """Return why kernels cannot be imported, None if they can."""
    from mlcorr.ops import availability  # imports Triton

    return availability.ERROR


def _is_able(device: torch.device) -> bool:
    if not torch.cuda.is_available():  # somebody asks about a machine that is not this one
        return True
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)


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
