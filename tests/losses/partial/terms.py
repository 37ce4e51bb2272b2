"""Losses and gradients of entries, and how they are compared with the reference."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from tests.reference.partial import Term

logits = st.floats(-15, 15)
labels = st.sampled_from([1.0, 0.0, -1.0])
soft_labels = labels | st.floats(0, 1)
exponents = st.sampled_from([0.0, 0.3, 1.0, 2.0]) | st.floats(0.0, 5.0)


def assert_entries(
    function: Callable[..., Tensor],
    rows: list[list[float]],
    targets: list[list[float]],
    expected: list[list[Term]],
    rel: float = 1e-12,
    abs: float = 1e-14,
    **keywords: object,
) -> None:
    """Each loss and its gradient is the reference's."""
    x = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    loss = function(x, torch.tensor(targets, dtype=torch.float64), reduction="none", **keywords)
    loss.sum().backward()
    flat = [term for row in expected for term in row]
    assert loss.flatten().tolist() == pytest.approx([value for value, _ in flat], rel=rel, abs=abs)
    assert x.grad.flatten().tolist() == pytest.approx([slope for _, slope in flat], rel=rel, abs=abs)


def random_batch(seed: int, batch: int, labels: int, *, unknown: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(batch, labels, dtype=torch.float64, generator=generator)
    return x, torch.randint(-1 if unknown else 0, 2, (batch, labels), generator=generator)
