"""AssumeNegativeLoss and WeakAssumeNegativeLoss against their definitions and the authors' program."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from mlcorr.functional import assume_negative_loss, weak_assume_negative_loss
from tests.losses.partial.terms import assert_entries, logits, random_batch, soft_labels
from tests.reference import partial as reference

shares = st.sampled_from([0.0, 0.1]) | st.floats(0, 1)


@settings(max_examples=150, deadline=None)
@given(x=logits, y=soft_labels, label_smoothing=shares)
def test_assume_negative_equals_the_definition(x: float, y: float, label_smoothing: float) -> None:
    expected = reference.assume_negative(x, y, label_smoothing)
    assert_entries(assume_negative_loss, [[x]], [[y]], [[expected]], label_smoothing=label_smoothing)


@settings(max_examples=150, deadline=None)
@given(x=logits, y=soft_labels, weight=st.floats(0, 2), label_smoothing=shares, trust=st.booleans())
def test_weak_assume_negative_equals_the_definition(
    x: float, y: float, weight: float, label_smoothing: float, trust: bool
) -> None:
    expected = reference.weak_assume_negative(x, y, weight, label_smoothing, trust)
    parameters = {"weight": weight, "label_smoothing": label_smoothing, "trust_negatives": trust}
    assert_entries(weak_assume_negative_loss, [[x]], [[y]], [[expected]], **parameters)


def test_equal_the_official_program() -> None:
    x, y = random_batch(0, 6, 5, unknown=False)
    pairs = list(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    weak = sum(reference.official_weak(*pair, num_classes=5) for pair in pairs) / len(pairs)
    assert weak_assume_negative_loss(x, y).item() == pytest.approx(weak, rel=1e-12)
    for ls_coef in (0.0, 0.1):
        smoothed = sum(reference.official_smoothed(*pair, ls_coef) for pair in pairs) / len(pairs)
        actual = assume_negative_loss(x, y, label_smoothing=2 * ls_coef)
        assert actual.item() == pytest.approx(smoothed, rel=1e-12)


def test_an_unknown_label_is_a_negative() -> None:
    x, y = random_batch(1, 6, 5, unknown=True)
    assert (y == -1).any()
    for function in (assume_negative_loss, weak_assume_negative_loss):
        for label_smoothing in (0.0, 0.2):
            actual = function(x, y, label_smoothing=label_smoothing)
            assert actual == function(x, y.clamp(min=0), label_smoothing=label_smoothing)
    expected = F.binary_cross_entropy_with_logits(x, y.clamp(min=0).double())
    torch.testing.assert_close(assume_negative_loss(x, y), expected)


def test_only_what_is_not_trusted_is_weak() -> None:
    x, y = random_batch(2, 6, 5, unknown=True)
    plain = assume_negative_loss(x, y, reduction="none")
    weak = torch.where(y < 1, 0.25 * plain, plain)
    torch.testing.assert_close(weak_assume_negative_loss(x, y, reduction="none"), weak)
    only_unknown = torch.where(y < 0, 0.25 * plain, plain)
    torch.testing.assert_close(weak_assume_negative_loss(x, y, trust_negatives=True, reduction="none"), only_unknown)


def test_a_single_label_and_a_weight_of_one_are_assume_negative() -> None:
    x, y = random_batch(3, 7, 1, unknown=True)
    assert weak_assume_negative_loss(x, y) == assume_negative_loss(x, y)
    x, y = random_batch(3, 7, 4, unknown=True)
    assert weak_assume_negative_loss(x, y, weight=1.0) == assume_negative_loss(x, y)
    assert weak_assume_negative_loss(torch.zeros(3, 0), torch.zeros(3, 0)) == 0


def test_all_positive_is_cross_entropy() -> None:
    x = torch.tensor([[-2.0, 3.0]])
    expected = F.binary_cross_entropy_with_logits(x, torch.ones_like(x))
    for function in (assume_negative_loss, weak_assume_negative_loss):
        torch.testing.assert_close(function(x, torch.ones_like(x)), expected)


@pytest.mark.parametrize("trust", [False, True])
def test_a_large_weight_leaves_far_positives_alone(trust: bool) -> None:
    logits = torch.tensor([[3e38, 0.0]], requires_grad=True)
    loss = weak_assume_negative_loss(
        logits, torch.tensor([[1, -1]]), weight=2.0, trust_negatives=trust, reduction="sum"
    )
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(2 * math.log(2)))
    assert logits.grad.isfinite().all()
