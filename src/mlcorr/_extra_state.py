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


def decoded(state: object) -> dict[str, Any]:
    """Return the content again, if ``state`` is what ``encoded`` returned."""
    content = None
    if isinstance(state, Tensor) and state.dtype == torch.uint8:
        with contextlib.suppress(ValueError):  # no JSON, or no text
            content = json.loads(bytes(state.flatten().cpu().tolist()))
    if isinstance(content, dict):
        return content
    raise ValueError("_extra_state: expected bytes of JSON, as state_dict() has them")
