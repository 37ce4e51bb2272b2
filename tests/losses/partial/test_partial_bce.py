"""PartialBCELoss against its definition."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr.functional import binary_cross_entropy_loss, partial_bce_loss
from tests.losses.partial.terms import assert_entries, logits, random_batch, soft_labels
from tests.reference import partial as reference


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(st.tuples(logits, soft_labels), min_size=1, max_size=6),
    alpha=st.floats(-5, 5),
    beta=st.floats(-5, 5),
    gamma=st.sampled_from([1.0, -1.0, 0.0, 0.5]),
)
def test_equals_the_definition(row: list[tuple[float, float]], alpha: float, beta: float, gamma: float) -> None:
    x, y = map(list, zip(*row, strict=True))
    parameters = {"alpha": alpha, "beta": beta, "gamma": gamma}
    expected = reference.partial_bce(x, y, **parameters)
    assert_entries(partial_bce_loss, [x], [y], [expected], abs=1e-13, **parameters)


def test_the_defaults_are_the_papers_points() -> None:
    target = torch.full((10,), -1)
    target[3] = 1
    one_of_ten = partial_bce_loss(torch.zeros(10, dtype=torch.float64), target, reduction="sum")
    bce = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(one_of_ten, 5 * bce / 10, rtol=2e-3, atol=0)
    all_of_ten = partial_bce_loss(torch.zeros(10, dtype=torch.float64), torch.ones(10), reduction="sum")
    torch.testing.assert_close(all_of_ten, bce)


def test_special_exponents() -> None:
    x, y = random_batch(0, 6, 5, unknown=True)
    y[2] = -1
    per_row = partial_bce_loss(x, y, alpha=1, beta=0, gamma=-1)
    means = [
        binary_cross_entropy_loss(*row, reduction="mean") for i, row in enumerate(zip(x, y, strict=True)) if i != 2
    ]
    torch.testing.assert_close(per_row, torch.stack(means).mean())
    torch.testing.assert_close(partial_bce_loss(x, y, alpha=0, beta=1) * 5, binary_cross_entropy_loss(x, y))


@pytest.mark.parametrize("gamma", [1.0, -1.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_what_is_unknown_has_neither_loss_nor_gradient(gamma: float, reduction: str) -> None:
    x, y = random_batch(1, 4, 5, unknown=True)
    y[1] = -1
    clean = partial_bce_loss(x, y, gamma=gamma, reduction=reduction)
    x = x.masked_fill(y < 0, float("nan")).requires_grad_()
    loss = partial_bce_loss(x, y, gamma=gamma, reduction=reduction)
    torch.testing.assert_close(loss, clean, rtol=0, atol=0)
    loss.sum().backward()
    assert (x.grad[y < 0] == 0).all()
    assert (x.grad[y >= 0] != 0).all()
    nothing = partial_bce_loss(x, torch.full_like(x, -1), gamma=gamma, reduction=reduction)
    assert nothing.sum() == 0


def test_no_intermediate_of_an_unknown_row_is_infinite() -> None:
    torch.autograd.set_detect_anomaly(True)
    try:
        x = torch.zeros(1, 3, requires_grad=True)
        partial_bce_loss(x, torch.full((1, 3), -1), gamma=-1.0).backward()  # 0^-1 would be NaN times 0 in its backward
    finally:
        torch.autograd.set_detect_anomaly(False)
    assert (x.grad == 0).all()
