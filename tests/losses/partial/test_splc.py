"""SPLCLoss against its definition and the authors' program."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings

from mlcorr import SPLCLoss
from mlcorr.functional import splc_loss
from tests.losses.partial.terms import assert_entries, exponents, logits, random_batch, soft_labels
from tests.reference import partial as reference


@settings(max_examples=250, deadline=None)
@given(
    x=logits,
    y=soft_labels,
    tau=st.sampled_from([0.0, 0.6, 1.0]) | st.floats(0, 1),
    margin=st.sampled_from([0.0, 1.0]) | st.floats(0, 2),
    gamma=exponents,
    correct=st.booleans(),
    trust=st.booleans(),
)
def test_equals_the_definition(
    x: float, y: float, tau: float, margin: float, gamma: float, correct: bool, trust: bool
) -> None:
    assume(abs(reference.sigmoid(x) - tau) > 1e-12)  # at tau itself, rounding chooses
    parameters = {"tau": tau, "margin": margin, "gamma": gamma, "correct": correct}
    expected = reference.splc(x, y, **parameters, trust=trust)
    assert_entries(splc_loss, [[x]], [[y]], [[expected]], trust_negatives=trust, **parameters)


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
@pytest.mark.parametrize(("tau", "margin", "gamma", "change_epoch"), [(0.6, 1.0, 2.0, 1), (0.3, 0.5, 1.0, 2)])
def test_equals_the_official_program(epoch: int, tau: float, margin: float, gamma: float, change_epoch: int) -> None:
    x, y = random_batch(0, 6, 5, unknown=False)
    pairs = zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
    expected = sum(reference.official_splc(*pair, tau, margin, gamma, epoch, change_epoch) for pair in pairs)
    criterion = SPLCLoss(tau=tau, margin=margin, gamma=gamma, change_epoch=change_epoch)
    assert criterion(x, y, epoch).item() == pytest.approx(expected, rel=1e-12)


def test_without_an_epoch_it_corrects() -> None:
    x, y = torch.tensor([[3.0, -3.0]]), torch.tensor([[-1, -1]])
    criterion = SPLCLoss(change_epoch=4)
    assert criterion(x, y) == criterion(x, y, 4) != criterion(x, y, 3)
    assert SPLCLoss(change_epoch=0)(x, y, 0) == criterion(x, y)
    with pytest.raises(ValueError, match=r"^epoch: .*-1"):
        criterion(x, y, -1)
    with pytest.raises(TypeError, match=r"^epoch: .*1\.0"):
        criterion(x, y, 1.0)


def test_what_a_zero_is() -> None:
    x, y = random_batch(1, 6, 5, unknown=True)
    assert splc_loss(x, y) == splc_loss(x, y.clamp(min=0)) == splc_loss(x, torch.where(y == 0, -1, y))
    trusting = splc_loss(x, y, trust_negatives=True, reduction="none")
    uncorrected = splc_loss(x, y, correct=False, reduction="none")
    corrected = splc_loss(x, y, reduction="none")
    assert (corrected != uncorrected)[y == 0].any()
    assert torch.equal(trusting[y == 0], uncorrected[y == 0])
    assert torch.equal(trusting[y != 0], corrected[y != 0])


def test_correction_has_no_margin_and_pulls_up() -> None:
    x = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    splc_loss(x, torch.tensor([[-1]])).backward()
    assert x.grad.item() == pytest.approx(reference.focal_positive(1.0, 2.0)[1], rel=1e-12)
    assert x.grad.item() < 0


def test_at_tau_itself_nothing_is_corrected() -> None:
    x = torch.tensor([0.0, 1e-3], requires_grad=True)
    splc_loss(x, torch.tensor([-1, -1]), tau=0.5).backward()
    assert (x.grad < 0).tolist() == [False, True]


def test_epochs_compile() -> None:
    criterion = SPLCLoss()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    x, y = torch.tensor([[3.0, -3.0]]), torch.tensor([[-1, 1]])
    for epoch in (0, 1, 2, 3):
        torch.testing.assert_close(compiled(x, y, epoch), criterion(x, y, epoch))
