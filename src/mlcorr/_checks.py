"""Checks at the public edge: each error names the argument, what was expected and what came."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {expected}, got {value!r}")


def check_number(
    name: str, value: object, *, minimum: float, maximum: float = sys.float_info.max, exclusive: bool = False
) -> float:
    """Return ``value`` as a float if it is in [minimum, maximum], or in (minimum, maximum] when ``exclusive``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {_kind(value)}")
    number = float(value)
    above = number > minimum if exclusive else number >= minimum
    if not (above and number <= maximum):
        interval = f"{'(' if exclusive else '['}{minimum:g}, {maximum:g}]" if maximum < sys.float_info.max else None
        expected = f"in {interval}" if interval else f"{'>' if exclusive else '>='} {minimum:g}"
        raise ValueError(f"{name}: expected a number {expected}, got {value!r}")
    return number


def check_integer(name: str, value: object, *, minimum: int) -> int:
    """Return ``value`` as an int if it is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer >= {minimum}, got {_kind(value)}")
    if int(value) < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {value!r}")
    return int(value)


def check_tensor(name: str, value: object, *, min_dim: int = 0) -> torch.Tensor:
    """Return ``value`` if it is a tensor of at least ``min_dim`` dimensions."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {_kind(value)}")
    if value.dim() < min_dim:
        raise ValueError(f"{name}: expected at least {min_dim} dimension(s), got shape {tuple(value.shape)}")
    return value


def check_floating(name: str, value: object, *, min_dim: int = 1) -> torch.Tensor:
    """Return ``value`` if it is a tensor of a real floating-point dtype."""
    tensor = check_tensor(name, value, min_dim=min_dim)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
    return tensor


def check_same(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise ValueError unless the two tensors have one shape and one device."""
    if value.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {tuple(other.shape)}, got {tuple(value.shape)}")
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {value.device}")


def check_sequence(name: str, value: object) -> tuple[Any, ...]:
    """Return what ``value`` iterates over, if it is no string."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a sequence, got {_kind(value)}")
    return tuple(value)


def check_boolean(name: str, value: object) -> torch.Tensor:
    """Return ``value`` if it is a boolean tensor."""
    mask = check_tensor(name, value)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a torch.bool tensor (True = valid), got {mask.dtype}")
    return mask


def check_mask(name: str, value: object, other_name: str, other: torch.Tensor) -> torch.Tensor:
    """Return ``value`` if it is a boolean tensor of the shape and device of ``other``."""
    mask = check_boolean(name, value)
    check_same(name, mask, other_name, other)
    return mask


def check_broadcastable(name: str, value: object, other_name: str, other: torch.Tensor) -> torch.Tensor:
    """Return ``value`` if it is a tensor that broadcasts to the shape of ``other`` on its device."""
    tensor = check_tensor(name, value)
    trailing = other.shape[other.dim() - tensor.dim() :] if tensor.dim() <= other.dim() else None
    if trailing is None or any(size not in (1, wanted) for size, wanted in zip(tensor.shape, trailing, strict=True)):
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {other_name}'s {tuple(other.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}")
    return tensor


def _kind(value: object) -> str:
    return (
        f"{value!r} of type {type(value).__name__}"
        if isinstance(value, (bool, int, float, str))
        else type(value).__name__
    )
