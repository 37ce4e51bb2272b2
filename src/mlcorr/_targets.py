"""Targets as every loss and metric reads them: 0/1 or soft, −1 for an unknown label."""

from __future__ import annotations

import torch

from mlcorr._checks import FLOATING, check_same, check_tensor

UNSIGNED = (torch.bool, torch.uint8)
DTYPES = (*UNSIGNED, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATING)
CONVERTED = (  # PyTorch converts them to others, and does little else with them
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)


def check_target(name: str, value: object, other_name: str, other: torch.Tensor) -> torch.Tensor:
    """Return ``value`` if it is a dense tensor of real numbers of the shape and device of ``other``.

    It comes back in float32 if it is of a dtype, such as uint16 or float8, that PyTorch cannot compare numbers of.
    """
    target = check_tensor(name, value)
    if target.dtype not in (*DTYPES, *CONVERTED):
        raise TypeError(f"{name}: expected a bool, integer or floating-point tensor, got {target.dtype}")
    check_same(name, target, other_name, other)
    return target.float() if target.dtype in CONVERTED else target


def split_target(target: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the target in ``dtype`` with unknown labels set to 0, and where it is known.

    The second is None where the dtype of ``target`` has no negative numbers, so that all is known.
    """
    if target.dtype in UNSIGNED:
        return target.to(dtype), None
    labels = target.to(dtype)
    known = labels >= 0  # of NaN, too, which stands for unknown labels in some data
    return labels.masked_fill(~known, 0.0), known


def labels_and_known(target: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what :func:`split_target` does, with a mask in any case."""
    labels, known = split_target(target, dtype)
    return labels, torch.ones_like(target, dtype=torch.bool) if known is None else known
