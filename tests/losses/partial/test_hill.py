"""HillLoss against its definition and the authors' program."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from mlcorr.functional import hill_loss
from tests.losses.partial.terms import assert_entries, exponents, logits, random_batch, soft_labels
from tests.reference import partial as reference


@settings(max_examples=250, deadline=None)
@given(
    x=logits,
    y=soft_labels,
    lamb=st.just(1.5) | st.floats(0, 3),
    margin=st.sampled_from([0.0, 1.0]) | st.floats(0, 2),
    gamma=exponents,
    trust=st.booleans(),
)
def test_equals_the_definition(x: float, y: float, lamb: float, margin: float, gamma: float, trust: bool) -> None:
    parameters = {"lamb": lamb, "margin": margin, "gamma": gamma}
    expected = reference.hill(x, y, **parameters, trust=trust)
    assert_entries(hill_loss, [[x]], [[y]], [[expected]], trust_negatives=trust, **parameters)


@pytest.mark.parametrize(("lamb", "margin", "gamma"), [(1.5, 1.0, 2.0), (1.0, 0.5, 1.0), (2.0, 0.0, 0.0)])
def test_equals_the_official_program(lamb: float, margin: float, gamma: float) -> None:
    x, y = random_batch(0, 6, 5, unknown=False)
    pairs = zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    expected = sum(reference.official_hill(*pair, lamb, margin, gamma) for pair in pairs)
    assert hill_loss(x, y, lamb=lamb, margin=margin, gamma=gamma).item() == pytest.approx(expected, rel=1e-12)


def test_what_a_zero_is() -> None:
    x, y = random_batch(1, 6, 5, unknown=True)
    assert hill_loss(x, y) == hill_loss(x, y.clamp(min=0)) == hill_loss(x, torch.where(y == 0, -1, y))
    trusting = hill_loss(x, y, trust_negatives=True, reduction="none")
    torch.testing.assert_close(trusting[y == 0], F.softplus(x[y == 0]))
    torch.testing.assert_close(trusting[y != 0], hill_loss(x, y, reduction="none")[y != 0])


def test_the_slope_of_an_unknown_label_is_a_hill() -> None:
    x = torch.linspace(-9, 9, 7, dtype=torch.float64, requires_grad=True)
    hill_loss(x, torch.full_like(x, -1)).backward()
    p = x.detach().sigmoid()
    torch.testing.assert_close(x.grad, 3 * p**2 * (1 - p) ** 2)


def test_a_lost_positive_is_pulled_with_full_force() -> None:
    for dtype in (torch.float16, torch.float32):
        x = torch.tensor([-200.0], dtype=dtype, requires_grad=True)
        hill_loss(x, torch.tensor([1])).backward()
        assert x.grad.item() == -1.0
