"""What our ``torch.autograd.Function`` classes share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])


def fixed_signature(forward: _F) -> _F:
    """Keep the signature of ``forward`` with it, since ``Function.apply`` asks for it at every call.

    Working it out anew takes as long as ten operations on a small tensor.
    """
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a + b, where None is an absent gradient."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def plus_product(a: Tensor | None, b: Tensor, c: Tensor) -> Tensor:
    """Return a + b∘c, where a may be absent."""
    return b * c if a is None else torch.addcmul(a, b, c)
