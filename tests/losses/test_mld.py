"""MLDLoss against its definition with 60 digits."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import MLDLoss
from mlcorr._reduction import Reduction
from mlcorr.functional import mld_loss
from tests.reference.losses import bernoulli_divergence, sigmoid

logits = st.floats(-50, 50)


def entry(student: float, teacher: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    s = torch.tensor([student], dtype=dtype, requires_grad=True)
    loss = mld_loss(s, torch.tensor([teacher], dtype=dtype), reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, s)[0]


@settings(max_examples=300, deadline=None)
@given(student=logits, teacher=logits)
def test_equals_the_definition(student: float, teacher: float) -> None:
    value, gradient = entry(student, teacher)
    assert value.item() == pytest.approx(bernoulli_divergence(student, teacher), rel=1e-12, abs=1e-15)
    sign = 1 if teacher < 0 else -1  # next to 1, what is subtracted would have no digits
    expected = sign * (sigmoid(sign * student) - sigmoid(sign * teacher))
    assert gradient.item() == pytest.approx(expected, rel=1e-10, abs=1e-16)


@settings(max_examples=100, deadline=None)
@given(student=st.floats(-1, 1), teacher=st.floats(20, 40), sign=st.sampled_from([-1, 1]))
def test_two_confident_networks_are_compared_without_cancellation(student: float, teacher: float, sign: int) -> None:
    value, _ = entry(sign * (teacher + student), sign * teacher)
    expected = bernoulli_divergence(sign * (teacher + student), sign * teacher)
    # Both are about e^-20 and smaller; a difference of numbers as large as the logits would be noise of 1e-15.
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-23)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_are_finite_and_true(dtype: torch.dtype) -> None:
    values = [0.0, 1e-7, -1e-7, 0.5, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4]
    for student, teacher in itertools.product(values, values):
        value, gradient = entry(student, teacher, dtype)
        s, t = (torch.tensor(x, dtype=dtype).item() for x in (student, teacher))
        truth, truth_gradient = entry(s, t)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(truth.item(), rel=1e-6, abs=1e-7)
        assert gradient.item() == pytest.approx(truth_gradient.item(), rel=torch.finfo(dtype).eps, abs=1e-7)


def test_the_largest_logits() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        largest = torch.finfo(dtype).max
        for student, teacher in itertools.product((largest, -largest, 0.0), repeat=2):
            value, gradient = entry(student, teacher, dtype)
            assert value.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize(("inputs", "temperature"), [("logits", 1.0), ("logits", 2.5), ("probabilities", 1.0)])
def test_derivatives_of_both_sides(inputs: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    if inputs == "probabilities":
        student, teacher = student.sigmoid(), teacher.sigmoid()
    arguments = (student.requires_grad_(), teacher.requires_grad_())

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return mld_loss(s, t, inputs=inputs, temperature=temperature)

    assert torch.autograd.gradcheck(loss, arguments)
    assert torch.autograd.gradgradcheck(loss, arguments)
    torch.testing.assert_close(
        torch.func.grad(loss)(student.detach(), teacher.detach()), torch.autograd.grad(loss(*arguments), student)[0]
    )
    mapped = torch.func.vmap(loss)(torch.stack([student, teacher]), torch.stack([teacher, student]))
    torch.testing.assert_close(mapped, torch.stack([loss(student, teacher), loss(teacher, student)]))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_no_temperature_makes_the_largest_logits_overflow(temperature: float) -> None:
    largest = torch.finfo(torch.float64).max / 2**10
    student = torch.tensor([-largest, largest, -largest, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([largest, largest, 0.0, -largest, 2.0], dtype=torch.float64, requires_grad=True)
    loss = mld_loss(student, teacher, temperature=temperature, reduction="none")
    loss.sum().backward()
    # Of sure networks, temperature·|student|; half of it where the teacher has no opinion.
    usual = temperature**2 * bernoulli_divergence(1 / temperature, 2 / temperature)
    flat = temperature**2 * bernoulli_divergence(0.0, -1e4)
    expected = torch.tensor([temperature * largest, 0.0, temperature * largest / 2, flat, usual], dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    slopes = [-1, 0, -0.5, 0.5, sigmoid(1 / temperature) - sigmoid(2 / temperature)]
    torch.testing.assert_close(student.grad, temperature * torch.tensor(slopes, dtype=torch.float64))
    usual = sigmoid(2 / temperature) * sigmoid(-2 / temperature)
    torch.testing.assert_close(teacher.grad, torch.tensor([0, 0, largest / 4, 0, usual], dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sure", [-17.0, 8.0, 17.0, 30.0])
def test_two_confident_networks_have_gradients_without_cancellation(sure: float, temperature: float) -> None:
    """Their probabilities in float32 are 1, whose difference is 0 or has no digits."""
    pair = temperature * (sure + torch.randn(2, 50, generator=torch.Generator().manual_seed(0)))

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in pair]
        found = torch.autograd.grad(mld_loss(*leaves, temperature=temperature, reduction="sum"), leaves)
        return tuple(x.double() for x in found)

    for found, exact in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=0)
    expected = [temperature * (-sigmoid(-x / temperature) + sigmoid(-y / temperature)) for x, y in pair.T.tolist()]
    torch.testing.assert_close(gradients(torch.float64)[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["sum", "batchmean", "mean"])
def test_a_low_temperature_keeps_sums_from_overflow(reduction: Reduction) -> None:
    largest = torch.full((2, 4), torch.finfo(torch.float32).max, requires_grad=True)
    loss = mld_loss(largest, -largest.detach(), temperature=1e-3, reduction=reduction)
    of = {"sum": 8, "batchmean": 4, "mean": 1}[reduction]
    torch.testing.assert_close(loss.double(), of * 1e-3 * largest[0, 0].double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, largest)[0], torch.full((2, 4), of / 8 * 1e-3))


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (torch.float64, 4e-12)])
@pytest.mark.parametrize("temperature", [1.5, 4.0, 30.0, 100.0, 1e4, 1e9])
def test_a_high_temperature_does_not_enlarge_rounding(temperature: float, dtype: torch.dtype, accuracy: float) -> None:
    """T² times what rounding leaves of a difference of softplus would be off by a tenth at 100."""
    student, teacher = 3 * torch.randn(2, 200, dtype=dtype, generator=torch.Generator().manual_seed(0))
    loss = mld_loss(student, teacher, temperature=temperature, reduction="none")
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    exact = [temperature**2 * bernoulli_divergence(s / temperature, t / temperature) for s, t in pairs]
    torch.testing.assert_close(loss.double(), torch.tensor(exact, dtype=torch.float64), rtol=accuracy, atol=0)


@pytest.mark.parametrize("temperature", [0, 1e-13, 2.0**-1074, 1e13, 1e308])
def test_a_temperature_beyond_what_float32_can_square_is_an_error(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a number in "):
        mld_loss(torch.zeros(2, 3), torch.ones(2, 3), temperature=temperature)


def test_a_sure_teacher_of_probabilities_has_a_gradient() -> None:
    """It is the difference of the clamped logarithms, of p and of 1 − p."""
    student = torch.tensor([0.5, 0.5, 0.0, 1.0, 1.0], dtype=torch.float64)
    teacher = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.25], dtype=torch.float64, requires_grad=True)
    mld_loss(student, teacher, inputs="probabilities", reduction="sum").backward()
    half = torch.tensor(0.5, dtype=torch.float64).log()
    of_quarter = torch.tensor(1 / 3, dtype=torch.float64).log() - 100
    expected = torch.stack([-100 - half + half, 100 + half - half, 0 * half, -200 + 0 * half, of_quarter])
    torch.testing.assert_close(teacher.grad, expected)


def test_probabilities_of_0_and_1_have_finite_gradients_on_both_sides() -> None:
    certain = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    student, teacher = (x.flatten().requires_grad_() for x in torch.meshgrid(certain, certain, indexing="ij"))
    loss = mld_loss(student, teacher, inputs="probabilities")
    to_student, to_teacher = torch.autograd.grad(loss, (student, teacher))
    agree = student == teacher
    assert (to_student[agree] == 0).all()
    assert (to_teacher[agree] == 0).all()
    assert to_student.isfinite().all()
    # The logarithms of 0 are −100: log(t / (1 − t)) − log(s / (1 − s)) of the clamped ones.
    logit = {0.0: -100.0, 0.5: 0.0, 1.0: 100.0}
    expected = [logit[t] - logit[s] for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(to_teacher, torch.tensor(expected, dtype=torch.float64))


def test_masked_probabilities_leave_second_derivatives_finite() -> None:
    student, teacher = torch.rand(2, 3, 4, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True, False, True, True]]).expand(3, 4)
    loss = mld_loss(student, teacher, mask, inputs="probabilities")
    first = torch.autograd.grad(loss.square(), (student, teacher), create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), (student, teacher))
    assert all(x.isfinite().all() and (x[~mask] == 0).all() for x in second)


def test_temperature_is_that_of_hinton() -> None:
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    expected = 9 * mld_loss(student / 3, teacher / 3)
    torch.testing.assert_close(mld_loss(student, teacher, temperature=3.0), expected)


def test_probabilities_equal_logits_and_are_clamped() -> None:
    student, teacher = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    from_probabilities = mld_loss(student.sigmoid(), teacher.sigmoid(), inputs="probabilities")
    torch.testing.assert_close(from_probabilities, mld_loss(student, teacher), rtol=1e-12, atol=0)
    certain = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    loss = mld_loss(certain, torch.tensor([0.0, 1.0, 1.0, 0.0]), inputs="probabilities", reduction="none")
    assert loss.tolist() == [0.0, 0.0, 100.0, 100.0]
    loss.sum().backward()
    assert certain.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_masks_and_reductions(reduction: str) -> None:
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 0] = False
    entries = mld_loss(student, teacher, reduction="none") * mask
    expected = {
        "none": entries,
        "sum": entries.sum(),
        "mean": entries.sum() / mask.sum(),
        "batchmean": entries.sum() / mask.any(-1).sum(),
    }[reduction]
    # What a masked entry holds is nobody's business.
    student = student.masked_fill(~mask, float("nan")).requires_grad_()
    loss = mld_loss(student, teacher.masked_fill(~mask, float("inf")), mask, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert (student.grad[~mask] == 0).all()
    assert student.grad.isfinite().all()


def test_nothing_valid_gives_zero() -> None:
    for shape in ((0, 4), (3, 4), (3, 0)):
        student = torch.randn(shape, requires_grad=True)
        for reduction in ("mean", "sum", "batchmean"):
            loss = mld_loss(student, torch.randn(shape), torch.zeros(shape, dtype=torch.bool), reduction=reduction)
            assert loss.item() == 0.0
            loss.backward()
            assert student.grad.abs().sum() == 0


def test_weights_are_buffers() -> None:
    weight = torch.tensor([1.0, 0.0, 2.0])
    loss = MLDLoss(weight=weight, reduction="none")
    assert list(loss.state_dict()) == ["weight"]
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(loss(student, teacher), weight * MLDLoss(reduction="none")(student, teacher))


def test_compiles() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    mask = torch.rand(4, 3) < 0.7
    loss = MLDLoss(temperature=2.0)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher, mask), loss(student, teacher, mask))


ZEROS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^temperature: .*got 0", lambda: mld_loss(ZEROS, ZEROS, temperature=0.0)),
        (ValueError, "^temperature: .*nan", lambda: MLDLoss(temperature=float("nan"))),
        (ValueError, "^temperature: .*prob", lambda: mld_loss(ZEROS, ZEROS, temperature=2.0, inputs="probabilities")),
        (ValueError, "^temperature: .*prob", lambda: MLDLoss(temperature=2.0, inputs="probabilities")),
        (TypeError, "^temperature: ", lambda: MLDLoss(temperature="2")),
        (ValueError, "^reduction: .*'max'", lambda: mld_loss(ZEROS, ZEROS, reduction="max")),
        (ValueError, "^inputs: ", lambda: MLDLoss(inputs="odds")),
        (TypeError, "^teacher: .*int64", lambda: mld_loss(ZEROS, ZEROS.long())),
        (ValueError, r"^teacher: .*\(2, 4\)", lambda: mld_loss(ZEROS, torch.zeros(2, 4))),
        (TypeError, "^mask: .*bool.*float32", lambda: mld_loss(ZEROS, ZEROS, ZEROS)),
        (ValueError, r"^mask: .*\(3,\)", lambda: mld_loss(ZEROS, ZEROS, torch.ones(3, dtype=torch.bool))),
        (ValueError, r"^weight: .*\(4,\)", lambda: mld_loss(ZEROS, ZEROS, weight=torch.ones(4))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()
