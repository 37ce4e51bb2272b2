"""AsymmetricLoss against the definition, the authors' program and explicit gradients."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import AsymmetricLoss
from mlcorr.functional import asymmetric_loss, binary_cross_entropy_loss
from tests.reference import losses as reference

GAMMAS = [0.0, 0.3, 1.0, 2.0, 4.0]
exponents = st.sampled_from(GAMMAS) | st.floats(0.0, 6.0)
clips = st.sampled_from([0.0, 0.05, 0.5]) | st.floats(0.001, 0.9)


def entry(x: float, y: float, *, dtype: torch.dtype = torch.float64, **keywords: object) -> tuple[float, float]:
    logit = torch.tensor([x], dtype=dtype, requires_grad=True)
    loss = asymmetric_loss(logit, torch.tensor([y]), **keywords)
    loss.backward()
    return loss.item(), logit.grad.item()


@settings(max_examples=300, deadline=None)
@given(
    x=st.floats(-15, 15),
    y=st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    gamma_neg=exponents,
    gamma_pos=exponents,
    clip=clips,
    inputs=st.sampled_from(["logits", "probabilities"]),
)
def test_equals_the_definition(
    x: float, y: float, gamma_neg: float, gamma_pos: float, clip: float, inputs: str
) -> None:
    p = reference.sigmoid(x)
    y = float(torch.tensor(y))  # what the float32 target holds
    parameters = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    expected = reference.asymmetric(p, y, **parameters)
    slope = 1.0 if inputs == "logits" else p * (1 - p)
    for detach, gradient in (
        (True, reference.asymmetric_gradient_detached),
        (False, reference.asymmetric_gradient),
    ):
        value, actual = entry(x if inputs == "logits" else p, y, **parameters, detach_focal=detach, inputs=inputs)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-15)
        # Where p is the clip itself the slope jumps; the definition is asked on either side.
        if abs(p - clip) > 1e-12:
            assert actual * slope == pytest.approx(gradient(p, y, **parameters), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("inputs", ["logits", "probabilities"])
@pytest.mark.parametrize(("gamma_neg", "gamma_pos"), [(4.0, 1.0), (4.0, 0.0), (2.0, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_equals_the_official_program(inputs: str, gamma_neg: float, gamma_pos: float, clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(8, 5, dtype=torch.float64, generator=generator)
    target = torch.randint(2, (8, 5), generator=generator)
    expected = sum(
        reference.official_asymmetric(reference.sigmoid(x), y, gamma_neg, gamma_pos, clip)
        for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
    )
    x = logits if inputs == "logits" else logits.sigmoid()
    actual = asymmetric_loss(x, target, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, inputs=inputs)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1e-40, 1e-9, 0.05, 1.0])
def test_every_finite_logit_has_a_finite_value_and_gradient(dtype: torch.dtype, detach: bool, clip: float) -> None:
    largest = torch.finfo(dtype).max
    values = [0.0, 1e-7, -1e-7, 20.0, -20.0, -30.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, largest, -largest]
    values += [math.log(0.05 / 0.95)]  # p = clip
    logits = torch.tensor(values, dtype=torch.float64).to(dtype)
    for gamma_neg, gamma_pos, y in itertools.product(GAMMAS, [0.0, 0.3, 1.0], [0.0, 1.0, 0.5]):
        parameters = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip, "detach_focal": detach}
        x = logits.clone().requires_grad_()
        loss = asymmetric_loss(x, torch.full_like(x, y), reduction="none", **parameters)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert x.grad.isfinite().all()
        exact = logits.double()
        truth = asymmetric_loss(exact, torch.full_like(exact, y), reduction="none", **parameters)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_lost_positive_is_pulled_with_full_force(dtype: torch.dtype) -> None:
    for gamma_pos, detach in itertools.product((0.0, 0.1, 1.0), (True, False)):
        _, gradient = entry(-30.0, 1.0, dtype=dtype, gamma_pos=gamma_pos, detach_focal=detach)
        assert gradient == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_probabilities_at_their_ends(detach: bool) -> None:
    p = torch.tensor([0.0, 1.0, 0.0, 1.0, 1e-40, 1e-30], requires_grad=True)
    y = torch.tensor([0, 1, 1, 0, 1, 1])
    for gamma, clip in itertools.product(GAMMAS, (0.0, 0.05)):
        loss = asymmetric_loss(
            p, y, gamma_neg=gamma, gamma_pos=gamma, clip=clip, detach_focal=detach, inputs="probabilities"
        )
        (gradient,) = torch.autograd.grad(loss, p)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_undetached_loss_has_its_derivatives(clip: float) -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([[1.0, 0.0, 0.3, -1.0]], dtype=torch.float64).expand(3, 4)

    def loss(x: Tensor) -> Tensor:
        return asymmetric_loss(x, target, detach_focal=False, clip=clip, gamma_neg=1.5, gamma_pos=0.5)

    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.autograd.gradgradcheck(loss, (logits,))
    torch.testing.assert_close(torch.func.grad(loss)(logits.detach()), torch.autograd.grad(loss(logits), logits)[0])


def test_without_focusing_it_is_cross_entropy() -> None:
    logits, target = 5 * torch.randn(4, 6, dtype=torch.float64), torch.randint(-1, 2, (4, 6))
    actual = asymmetric_loss(logits, target, gamma_neg=0, gamma_pos=0, clip=0, reduction="batchmean")
    torch.testing.assert_close(actual, binary_cross_entropy_loss(logits, target), rtol=1e-12, atol=0)
    _, gradient = entry(0.0, 0.0, gamma_neg=2.0, gamma_pos=0.0, clip=0.0)
    assert gradient == pytest.approx(0.125)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_unknown_labels_are_left_out(reduction: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 5, generator=generator)
    target = torch.randint(-1, 2, (2, 3, 5), generator=generator)
    target[1, 1] = -1
    known = target >= 0
    entries = asymmetric_loss(logits, target.clamp(min=0), reduction="none") * known
    expected = {
        "none": entries,
        "sum": entries.sum(),
        "mean": entries.sum() / known.sum(),
        "batchmean": entries.sum() / known.any(-1).sum(),
    }[reduction]
    logits = logits.masked_fill(~known, float("nan")).requires_grad_()
    loss = asymmetric_loss(logits, target, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert (logits.grad[~known] == 0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, torch.float64])
def test_target_dtypes(dtype: torch.dtype) -> None:
    logits, target = torch.randn(4, 5), torch.randint(2, (4, 5))
    torch.testing.assert_close(asymmetric_loss(logits, target.to(dtype)), asymmetric_loss(logits, target.float()))


def test_weights() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([1, 0, 1]).expand(4, 3)
    weight, pos_weight = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 5.0, 7.0])
    loss = AsymmetricLoss(weight=weight, pos_weight=pos_weight, reduction="none")
    assert sorted(loss.state_dict()) == ["pos_weight", "weight"]
    expected = AsymmetricLoss(reduction="none")(logits, target) * weight * torch.tensor([3.0, 1.0, 7.0])
    torch.testing.assert_close(loss(logits, target), expected)


def test_an_empty_batch_and_nothing_known_give_zero() -> None:
    for target in (torch.zeros(0, 4), torch.full((3, 4), -1.0)):
        logits = torch.randn(target.shape, requires_grad=True)
        for reduction in ("mean", "sum", "batchmean"):
            loss = asymmetric_loss(logits, target, reduction=reduction)
            loss.backward()
            assert loss.item() == 0.0
            assert logits.grad.abs().sum() == 0.0


def test_compiles_and_stays_out_of_autocast() -> None:
    logits, target = torch.randn(4, 3, requires_grad=True), torch.randint(-1, 2, (4, 3))
    for loss in (AsymmetricLoss(), AsymmetricLoss(clip=0.0, detach_focal=False)):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected = torch.autograd.grad(loss(logits, target), logits)[0]
        torch.testing.assert_close(torch.autograd.grad(compiled(logits, target), logits)[0], expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert loss(logits, target) == loss(logits, target).float()
            torch.testing.assert_close(torch.autograd.grad(loss(logits, target), logits)[0], expected)
            AsymmetricLoss(inputs="probabilities")(logits.sigmoid(), target)


ZEROS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^gamma_neg: .*-1", lambda: asymmetric_loss(ZEROS, ZEROS, gamma_neg=-1)),
        (ValueError, "^gamma_pos: .*nan", lambda: AsymmetricLoss(gamma_pos=math.nan)),
        (ValueError, "^gamma_pos: .*inf", lambda: AsymmetricLoss(gamma_pos=math.inf)),
        (ValueError, "^clip: .*1.5", lambda: AsymmetricLoss(clip=1.5)),
        (TypeError, "^clip: .*None", lambda: AsymmetricLoss(clip=None)),
        (ValueError, "^reduction: ", lambda: asymmetric_loss(ZEROS, ZEROS, reduction="max")),
        (ValueError, "^inputs: ", lambda: AsymmetricLoss(inputs="odds")),
        (TypeError, "^input: .*int64", lambda: asymmetric_loss(ZEROS.long(), ZEROS)),
        (ValueError, r"^target: .*\(2, 4\)", lambda: asymmetric_loss(ZEROS, torch.zeros(2, 4))),
        (TypeError, "^target: .*list", lambda: asymmetric_loss(ZEROS, [1, 0])),
        (TypeError, "^target: .*complex", lambda: asymmetric_loss(ZEROS, ZEROS.to(torch.complex64))),
        (ValueError, "^weight: ", lambda: asymmetric_loss(ZEROS, ZEROS, weight=torch.ones(4))),
        (ValueError, "^pos_weight: ", lambda: asymmetric_loss(ZEROS, ZEROS, pos_weight=torch.ones(2, 2, 3))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("x", [-3e38, -95.0, 0.0, 90.0, 95.0, 1e4, 3e38])
@pytest.mark.parametrize("y", [0, 1])
def test_second_derivatives_are_finite(x: float, y: int) -> None:
    logits = torch.tensor([[x]], requires_grad=True)
    (gradient,) = torch.autograd.grad(asymmetric_loss(logits, torch.tensor([[y]])), logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient, logits)
    assert second.isfinite().all()
    wide = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    if abs(x) < 700:
        (gradient,) = torch.autograd.grad(asymmetric_loss(wide, torch.tensor([[y]])), wide, create_graph=True)
        torch.testing.assert_close(second.double(), torch.autograd.grad(gradient, wide)[0], rtol=1e-4, atol=1e-6)


def test_a_weight_of_positives_leaves_a_far_negative_alone() -> None:
    logits = torch.tensor([[-2e38, 3.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[0, 1]]), pos_weight=torch.tensor([3.0, 3.0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("positive", [True, False])
def test_the_slope_of_every_half_precision_probability_is_finite(positive: bool) -> None:
    """All of them: −1/p, as far as float16 has such a number, and then its largest at most."""
    p = torch.arange(0, 0x3C01, dtype=torch.int16).view(torch.float16).requires_grad_()  # 0 to 1
    target = torch.full_like(p, positive)
    asymmetric_loss(p, target, gamma_pos=0.0, gamma_neg=0.0, clip=0.0, inputs="probabilities").backward()
    assert p.grad.isfinite().all()
    slope = -1 / p.detach().double() if positive else 1 / (1 - p.detach().double())
    # At the ends themselves PyTorch's own binary cross-entropy has the slope 0.
    fits = (slope.abs() < torch.finfo(torch.float16).max) & (p > 0) & (p < 1)
    assert fits.sum() > 10_000
    torch.testing.assert_close(p.grad[fits].double(), slope[fits], rtol=2**-10, atol=0)
