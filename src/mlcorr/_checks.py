"""Checks at the public edge: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeGuard

import torch

FLOATING: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that losses and layers compute with
LAZY: Final[Any] = torch.nn.parameter.UninitializedTensorMixin  # type: ignore[attr-defined]  # of no shape yet
_SHOWN_BITS = 128  # of a whole number in a message


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    # A string first: a list has no hash, and an array compares entry by entry.
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {expected}, got {_shown(value)}")


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False: what merely counts as one, such as "no", is more often a mistake."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {kind_of(value)}")
    return value


def check_number(
    name: str, value: object, *, minimum: float, maximum: float = sys.float_info.max, exclusive: bool = False
) -> float:
    """Return ``value`` as a float if it is in [minimum, maximum], or in (minimum, maximum] when ``exclusive``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    above = number > minimum if exclusive else number >= minimum
    if not (above and number <= maximum):
        interval = f"{'(' if exclusive else '['}{minimum:g}, {maximum:g}]" if maximum < sys.float_info.max else None
        expected = f"in {interval}" if interval else f"{'>' if exclusive else '>='} {minimum:g}"
        raise ValueError(f"{name}: expected a number {expected}, got {_shown(value)}")
    return number


def check_integer(name: str, value: object, *, minimum: int) -> int:
    """Return ``value`` as an int if it is an integer of at least ``minimum``, and of no more than 64 bits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer >= {minimum}, got {kind_of(value)}")
    if int(value) < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {_shown(value)}")
    if int(value) > sys.maxsize:
        raise ValueError(f"{name}: expected an integer <= {sys.maxsize}, got {_shown(value)}")
    return int(value)


def check_tensor(name: str, value: object, *, min_dim: int = 0, sparse: bool = False) -> torch.Tensor:
    """Return ``value`` if it is a tensor of at least ``min_dim`` dimensions; a dense one, unless ``sparse`` may be."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {kind_of(value)}")
    if isinstance(value, LAZY):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}, which has no shape yet")
    if value.is_nested or value.is_quantized:
        raise TypeError(f"{name}: expected a dense tensor, got a {'nested' if value.is_nested else 'quantized'} one")
    if not sparse and value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
    if value.dim() < min_dim:
        raise ValueError(f"{name}: expected at least {min_dim} dimension(s), got shape {tuple(value.shape)}")
    return value


def check_data(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return ``value`` if it has numbers to be read, which a tensor on the device "meta" has not."""
    if value.is_meta:
        raise ValueError(f"{name}: expected a tensor with numbers in it, got one on the device {value.device}")
    return value


def check_floating(name: str, value: object, *, min_dim: int = 1, any_bits: bool = False) -> torch.Tensor:
    """Return ``value`` if it is a dense tensor of a floating-point dtype that can be computed with, or of any."""
    tensor = check_tensor(name, value, min_dim=min_dim)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
    if not any_bits and tensor.dtype not in FLOATING:
        raise TypeError(f"{name}: expected a floating-point tensor of 16, 32 or 64 bits, got {tensor.dtype}")
    return tensor


def check_same(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise ValueError unless the two tensors have one shape and one device."""
    if value.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {tuple(other.shape)}, got {tuple(value.shape)}")
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {value.device}")


def check_sequence(name: str, value: object) -> tuple[Any, ...]:
    """Return what ``value`` iterates over, if it has an order and is no string."""
    if isinstance(value, (set, frozenset)) or not is_collection(value):
        raise TypeError(f"{name}: expected a sequence, got {kind_of(value)}")
    return tuple(value)


def is_collection(value: object) -> TypeGuard[Iterable[Any]]:
    """Return whether ``value`` can be gone through, and is neither text nor a tensor nor an array of no dimension."""
    if isinstance(value, (str, bytes, torch.Tensor)) or not isinstance(value, Iterable):
        return False
    return getattr(value, "ndim", 1) != 0


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
    # Not `size in (1, wanted)`, which is False to a compiler where `wanted` is any number.
    fits = trailing is not None and all(s == 1 or s == w for s, w in zip(tensor.shape, trailing, strict=True))
    if not fits:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {other_name}'s {tuple(other.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}")
    return tensor


def check_factor(name: str, value: object) -> torch.Tensor | None:
    """Return ``value`` if it is a tensor of real numbers, or None."""
    if value is None:
        return None
    factor = check_tensor(name, value)
    if factor.is_complex():
        raise TypeError(f"{name}: expected a tensor of real numbers, got {factor.dtype}")
    return factor


def check_device(name: str, value: object) -> torch.device:
    """Return ``value`` as a device, if it is one or the name of one."""
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{name}: expected a torch.device or a string, got {kind_of(value)}")
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{name}: expected a device such as 'cpu' or 'cuda:1', got {value!r}") from error


def check_generator(name: str, value: object, device: torch.device) -> torch.Generator | None:
    """Return ``value`` if it is a source of random numbers on ``device``, or None."""
    if value is None:
        return None
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{name}: expected a torch.Generator or None, got {kind_of(value)}")
    if value.device.type != device.type:
        raise ValueError(f"{name}: expected a generator on {device}, got one on {value.device}")
    return value


def check_module(name: str, value: object) -> torch.nn.Module:
    """Return ``value`` if it is a module."""
    if not isinstance(value, torch.nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {type(value).__name__}")
    return value


def kind_of(value: object) -> str:
    """Return what a message calls a value of the wrong type."""
    return (
        f"{_shown(value)} of type {type(value).__name__}"
        if isinstance(value, (bool, int, float, str))
        else type(value).__name__
    )


def _shown(value: object) -> str:
    """Return a value as it is written, where that is short and certain, else its type."""
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:  # Python refuses to write very long ones
        return f"a whole number of {value.bit_length()} bits"
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__
