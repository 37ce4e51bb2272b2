"""What a system's objective takes: the record that its forward pass returned."""

from __future__ import annotations

from typing import Any

from mlcorr._checks import check_floating, check_same


def check_output(output: object, kind: type[Any], *logits: str) -> None:
    """Raise unless ``output`` has the fields of a ``kind``, and ``logits`` are floating tensors (B, labels) alike."""
    if not all(hasattr(output, name) for name in kind._fields):  # a wrapper may return what only looks like one
        raise TypeError(f"output: expected the {kind.__name__} that the model returned, got {type(output).__name__}")
    first = check_floating(f"output.{logits[0]}", getattr(output, logits[0]))
    if first.dim() != 2:
        raise ValueError(f"output.{logits[0]}: expected the shape (B, labels), got {tuple(first.shape)}")
    for name in logits[1:]:
        own = f"output.{name}"
        check_same(own, check_floating(own, getattr(output, name)), f"output.{logits[0]}", first)
