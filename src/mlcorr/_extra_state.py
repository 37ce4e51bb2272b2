"""What a ``state_dict`` holds that is no tensor, as one: bytes of JSON, which formats of tensors alone can keep."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch
from torch import Tensor


def encoded(content: dict[str, Any]) -> Tensor:
    """Return ``content`` for ``get_extra_state``."""
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8, device="cpu")


def decoded(state: object, *keys: str) -> dict[str, Any]:
    """Return the content again, if ``state`` is what ``encoded`` returned, with all of ``keys`` in it."""
    content = None
    if isinstance(state, Tensor) and state.dtype == torch.uint8 and _is_plain(state):
        with contextlib.suppress(ValueError, RecursionError):  # no JSON, or no text
            content = json.loads(bytes(state.flatten().cpu().tolist()))
    if not isinstance(content, dict):
        raise ValueError("state: expected bytes of JSON in a tensor, as get_extra_state gives")
    if not content.keys() >= set(keys):
        raise ValueError(f"state: expected {', '.join(keys)} in it, as get_extra_state gives")
    return content


def _is_plain(x: Tensor) -> bool:
    return x.layout == torch.strided and not (x.is_meta or x.is_nested)
