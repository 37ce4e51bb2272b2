"""The precision in which losses compute, whatever the precision of their inputs."""

from __future__ import annotations

import contextlib

import torch


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 if a tensor has it, else float32: half precision is only a format to come in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def no_autocast(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Context in which autocast does not send our float32 matrix products back to half precision."""
    device_type = tensor.device.type
    # A compiled graph holds for a call in autocast and out of it; older compilers cannot ask what is available. An
    # exported one is for a call such as this, and cannot be loaded from a file with such a region in it.
    if (torch.compiler.is_compiling() and not torch.compiler.is_exporting()) or in_autocast(tensor):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def in_autocast(tensor: torch.Tensor) -> bool:
    """Return whether autocast is on where ``tensor`` is."""
    device_type = tensor.device.type
    # Not all devices know of autocast; older compilers cannot ask which do.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def check_dtype(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise unless ``value`` and ``other`` have one device and, if autocast does not see to it, one dtype."""
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {value.device}")
    if value.dtype == other.dtype:
        return
    if torch.float64 in (value.dtype, other.dtype) or not in_autocast(value):  # autocast leaves float64 as it is
        raise TypeError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {value.dtype}")


def check_plain(name: str, value: torch.Tensor, part: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    """Raise where ``part`` is a ``kind`` with a plain weight of another device or dtype than ``value``.

    What wraps it, or stands in its place, such as a sharded or a quantized one, may do with others.
    """
    if type(part) is kind and type(part.weight) is torch.nn.Parameter:
        check_dtype(name, value, "the weights", part.weight)


def half_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return (a − b)/2, which does not overflow."""
    return torch.sub(0.5 * a, b, alpha=0.5)
