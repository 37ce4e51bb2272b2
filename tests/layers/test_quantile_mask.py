"""quantile_mask against a quantile without rounding, and what purify and spatial_aware_logits make of scores."""

from __future__ import annotations

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr.functional import purify, quantile_mask, spatial_aware_logits
from mlcorr.layers.spatial_purified_attention import _rank
from tests.reference import oprl as loops

HALVES = [torch.float16, torch.bfloat16]
PERCENTS = range(101)


def exact_ranks(size: int) -> np.ndarray:
    """⌈τ·(N − 1)⌉ for τ = 0.00 ... 1.00 in whole numbers."""
    return -(-np.array(PERCENTS) * (size - 1) // 100)


def test_mask_is_that_of_an_exact_quantile_for_every_size() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 401):
        # Whole numbers divisible by 100: interpolation between them at a hundredth is exact.
        row = (torch.randperm(size, generator=generator) * 100).float()
        ordered = row.sort().values.double().numpy()
        position = np.array(PERCENTS) * (size - 1)
        low, high = ordered[position // 100], ordered[-(-position // 100)]
        threshold = low + (high - low) / 100 * (position % 100)
        masks = torch.stack([quantile_mask(row, percent / 100) for percent in PERCENTS])
        assert torch.equal(masks, torch.from_numpy(row.numpy()[None] >= threshold[:, None])), size
        assert masks.sum(-1).tolist() == (size - exact_ranks(size)).tolist()


def test_ranks_of_numbers_and_of_tensors() -> None:
    sizes = torch.arange(1, 1301)
    for percent in PERCENTS:
        expected = [-(-percent * (size - 1) // 100) for size in sizes.tolist()]
        assert _rank(percent / 100, sizes).tolist() == expected
        assert [_rank(percent / 100, size) for size in sizes.tolist()] == expected
    for parts in (3, 7, 11):  # not decimals, and maps of millions of positions
        for part in range(parts + 1):
            size = parts * 1_200_000 // 3 + 1
            assert _rank(part / parts, size) == _rank(part / parts, torch.tensor(size)) == part * (size - 1) // parts


def test_padded_mask_is_that_of_the_valid_scores_for_every_number_of_them() -> None:
    size = 150
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(size + 1, size, generator=generator)
    valid = torch.stack([torch.randperm(size, generator=generator) < count for count in range(size + 1)])
    ranks = np.stack([exact_ranks(max(count, 1)) for count in range(size + 1)])
    ordered = torch.where(valid, scores, float("inf")).sort(-1).values
    hidden = torch.where(valid, scores, float("nan"))
    for percent in PERCENTS:
        threshold = ordered.gather(-1, torch.from_numpy(ranks[:, percent : percent + 1]))
        expected = valid & (scores >= threshold)
        assert torch.equal(quantile_mask(hidden, percent / 100, valid), expected), percent
    assert not expected[0].any()


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3).map(float) | st.floats(-1e3, 1e3, width=16), min_size=1, max_size=30),
    tau=st.fractions(0, 1, max_denominator=1000),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_mask_with_ties_in_every_dtype(values: list[float], tau: Fraction, dtype: torch.dtype) -> None:
    scores = torch.tensor(values, dtype=dtype)
    assert quantile_mask(scores, float(tau)).tolist() == loops.quantile_mask(scores.tolist(), tau)


def test_mask_properties() -> None:
    scores = torch.randn(3, 4, 50, dtype=torch.float64)
    counts = torch.stack([quantile_mask(scores, percent / 100).sum(-1) for percent in PERCENTS])
    assert (counts.diff(dim=0) <= 0).all()
    assert (counts >= 1).all()
    assert (counts[0] == 50).all()
    assert (counts[-1] == 1).all()
    equal = torch.full((2, 7), -1.5)
    for tau in (0.0, 0.3, 1.0):
        assert quantile_mask(equal, tau).all()
        torch.testing.assert_close(purify(equal, tau), torch.full((2, 7), 1 / 7))
    # Two neighbouring floats, between which an interpolated threshold may be rounded onto the lower one.
    neighbours = torch.tensor([1.0, 1.0 + 2**-23])
    assert quantile_mask(neighbours, 0.5).tolist() == [False, True]


def test_nan_is_not_hidden() -> None:
    scores = torch.randn(2, 9)
    scores[0, 3] = float("nan")
    for valid in (None, torch.ones(2, 9, dtype=torch.bool)):
        for tau in (0.0, 0.5, 1.0):
            weights, logits = purify(scores, tau, valid), spatial_aware_logits(scores, 3, valid)
            assert quantile_mask(scores, tau, valid)[0, 3]
            assert weights[0].isnan().all()
            assert weights[1].isfinite().all()
            assert logits.isnan().tolist() == [True, False]


def test_plain_attention_and_the_maximum() -> None:
    scores = torch.randn(4, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(purify(scores, 0.0), scores.softmax(-1), rtol=1e-15, atol=0)
    assert torch.equal(purify(scores, 1.0).argmax(-1), scores.argmax(-1))
    assert (purify(scores, 1.0).max(-1).values == 1).all()


def test_top_k_properties() -> None:
    scores = torch.randn(4, 5, 9, dtype=torch.float64)
    by_k = torch.stack([spatial_aware_logits(scores, k).sigmoid() for k in range(1, 12)])
    torch.testing.assert_close(by_k[0], scores.max(-1).values.sigmoid())
    torch.testing.assert_close(by_k[8], scores.sigmoid().mean(-1))
    assert torch.equal(by_k[8], by_k[10])
    assert (by_k.diff(dim=0) <= 0).all()
    torch.testing.assert_close(spatial_aware_logits(scores, 1), scores.max(-1).values, rtol=1e-12, atol=1e-13)


def test_auxiliary_logit_does_not_saturate() -> None:
    scores = torch.tensor([[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [40.0, 40.0, 40.0]], requires_grad=True)
    logits = spatial_aware_logits(scores, 3)
    torch.testing.assert_close(logits, torch.tensor([1e4, -1e4, 40.0]))
    logits.sum().backward()
    torch.testing.assert_close(scores.grad, torch.full((3, 3), 1 / 3))


def test_dropped_positions_get_no_gradient_from_the_classification() -> None:
    scores = torch.randn(2, 3, 20, requires_grad=True)
    weights = purify(scores, 0.6)
    (weights * torch.randn_like(weights)).sum().backward()
    assert torch.equal(scores.grad != 0, quantile_mask(scores, 0.6))


@pytest.mark.parametrize("dtype", HALVES)
def test_functions_round_half_precision_once(dtype: torch.dtype) -> None:
    scores = (5 * torch.randn(4, 5, 60)).to(dtype)
    for valid in (None, torch.rand(4, 5, 60) < 0.5):
        assert torch.equal(purify(scores, 0.5, valid), purify(scores.float(), 0.5, valid).to(dtype))
        assert torch.equal(spatial_aware_logits(scores, 3, valid), spatial_aware_logits(scores.float(), 3, valid))
        exact = [purify(scores.float(), 0.5, valid), spatial_aware_logits(scores.float(), 3, valid)]
        with torch.autocast("cpu", dtype=dtype):
            mixed = [purify(scores.float(), 0.5, valid), spatial_aware_logits(scores.float(), 3, valid)]
        assert all(torch.equal(a, b) for a, b in zip(mixed, exact, strict=True))


def test_function_transforms() -> None:
    scores = torch.randn(3, 4, 9, dtype=torch.float64)
    valid = torch.rand(3, 1, 9) < 0.7
    factor = torch.randn(4, 9, dtype=torch.float64)

    def score(s: Tensor, v: Tensor) -> Tensor:
        return (purify(s, 0.3, v) * factor).sum() + (purify(s, 0.6) * factor).sum() + spatial_aware_logits(s).sum()

    mapped = torch.func.vmap(torch.func.grad(score))(scores, valid)
    leaf = scores.clone().requires_grad_()
    sum(score(s, v) for s, v in zip(leaf, valid, strict=True)).backward()
    torch.testing.assert_close(mapped, leaf.grad, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(
        lambda s: score(s, valid[0]), scores[0].clone().requires_grad_(), fast_mode=True
    )
