"""What our ``torch.autograd.Function`` classes share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def fixed_signature(forward: _F) -> _F:
    """Keep the signature of ``forward`` with it, since ``Function.apply`` asks for it at every call.

    Working it out anew takes as long as ten operations on a small tensor.
    """
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward
