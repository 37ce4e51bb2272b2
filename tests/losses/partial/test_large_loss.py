"""LargeLoss against its definition and the authors' program, what it modifies, and its epochs."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr import LargeLoss
from mlcorr.functional import assume_negative_loss, correct_large_losses, large_loss
from tests.losses.partial.terms import assert_entries, logits, random_batch, soft_labels
from tests.reference import partial as reference


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.tuples(logits | st.sampled_from([0.0, 1.0]), soft_labels), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]) | st.floats(0, 1),
    correct=st.booleans(),
)
def test_equals_the_definition(rows: list[list[tuple[float, float]]], share: float, correct: bool) -> None:
    x, y = [[x for x, _ in row] for row in rows], [[y for _, y in row] for row in rows]
    expected = reference.large_loss(x, y, share, correct)
    modification = "correction" if correct else "rejection"
    assert_entries(large_loss, x, y, expected, share=share, modification=modification)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
@pytest.mark.parametrize(("scheme", "modification"), [("LL-R", "rejection"), ("LL-Ct", "correction")])
def test_equals_the_official_program(share: float, scheme: str, modification: str) -> None:
    x, observed = random_batch(0, 8, 6, unknown=False)
    assert (observed == 0).sum() >= share * 48
    expected = reference.official_large_loss(x.tolist(), observed.tolist(), share, scheme)
    target = torch.where(observed == 1, 1, -1)
    actual = large_loss(x, target, share=share, modification=modification)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_correction_is_cross_entropy_to_corrected_targets() -> None:
    x, y = random_batch(1, 6, 5, unknown=True)
    for share in (0.0, 0.2, 1.0):
        corrected = correct_large_losses(x, y, share=share)
        assert large_loss(x, y, share=share, modification="correction") == assume_negative_loss(x, corrected)


def test_what_is_modified() -> None:
    x = torch.tensor([[9.0, 1.0, 1.0], [8.0, 1.0, 5.0]])
    y = torch.tensor([[0, -1, -1], [1, -1, -1]])

    def modified(share: float) -> list[list[bool]]:
        rejected = large_loss(x, y, share=share, reduction="none") == 0
        corrected = correct_large_losses(x, y, share=share)
        assert torch.equal(corrected, torch.where(rejected, 1, y))
        return rejected.tolist()

    assert modified(0.0) == [[False] * 3] * 2
    assert modified(0.1) == [[False] * 3, [False, False, True]]
    # Two of six; of three equal ones the first. Known ones never, however large.
    assert modified(2 / 6) == [[False, True, False], [False, False, True]]
    assert modified(1.0) == [[False, True, True]] * 2


def test_rounding_does_not_add_an_entry() -> None:
    x, y = torch.arange(10.0), torch.full((10,), -1)
    assert (3 * 0.1) * 10 > 3
    assert (correct_large_losses(x, y, share=3 * 0.1) == 1).sum() == 3
    assert (correct_large_losses(x, y, share=0.31) == 1).sum() == 4


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float64])
def test_corrected_targets_are_new_and_keep_their_dtype(dtype: torch.dtype) -> None:
    x, y = random_batch(2, 4, 5, unknown=True)
    y = y.to(dtype)
    before = y.clone()
    corrected = correct_large_losses(x.requires_grad_(), y, share=0.1)
    assert corrected.dtype == dtype
    assert not corrected.requires_grad
    assert torch.equal(y, before)
    changed = corrected != y
    assert changed.sum() == 2
    assert (y[changed] == -1).all()
    everything_known = y >= 0
    assert torch.equal(correct_large_losses(x, everything_known, share=1.0), everything_known)


def test_nothing_unknown_and_everything_unknown() -> None:
    x, y = random_batch(3, 4, 5, unknown=False)
    for modification in ("rejection", "correction"):
        assert large_loss(x, y, share=1.0, modification=modification) == assume_negative_loss(x, y)
    unknown = torch.full_like(y, -1)
    assert large_loss(x, unknown, share=1.0) == 0
    all_positive = assume_negative_loss(x, torch.ones_like(y))
    assert large_loss(x, unknown, share=1.0, modification="correction") == all_positive


@pytest.mark.parametrize(
    ("scheme", "modification", "shares"),
    [
        ("rejection", "rejection", [0.0, 0.3, 0.6, 0.9, 1.0]),
        ("temporary_correction", "correction", [0.0, 0.3, 0.6, 0.9, 1.0]),
        ("permanent_correction", "correction", [0.0, 0.3, 0.3, 0.3, 0.3]),
    ],
)
def test_epochs(scheme: str, modification: str, shares: list[float]) -> None:
    x, y = random_batch(4, 5, 4, unknown=True)
    criterion = LargeLoss(relative_share=0.3, modification=scheme)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for epoch, share in enumerate(shares):
        assert criterion.share(epoch) == pytest.approx(share)
        expected = large_loss(x, y, share=share, modification=modification)
        assert criterion(x, y, epoch) == expected
        torch.testing.assert_close(compiled(x, y, epoch), expected)


def test_permanent_correction_uses_up_the_unknown() -> None:
    x, y = random_batch(5, 6, 5, unknown=True)
    criterion = LargeLoss(relative_share=0.1, modification="permanent_correction")
    unknown = int((y == -1).sum())
    for epoch in range(4):
        y = correct_large_losses(x, y, share=criterion.share(epoch))
        assert int((y == -1).sum()) == max(unknown - 3 * epoch, 0)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^modification: .*'LL-R'", lambda x: large_loss(x, x, share=0.1, modification="LL-R")),
        (ValueError, "^modification: .*'correction'", lambda _: LargeLoss(relative_share=0, modification="correction")),
        (ValueError, "^share: .*1.5", lambda x: correct_large_losses(x, x, share=1.5)),
        (TypeError, "^input: .*int64", lambda x: correct_large_losses(x.long(), x, share=0.5)),
        (ValueError, "^target: ", lambda x: correct_large_losses(x, x[:, :1], share=0.5)),
        (ValueError, "^epoch: .*-1", lambda x: LargeLoss(relative_share=0.1)(x, x, -1)),
        (TypeError, r"^epoch: .*1\.5", lambda x: LargeLoss(relative_share=0.1)(x, x, 1.5)),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3))
