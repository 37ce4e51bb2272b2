"""Multi-label logits distillation (MLD): every label's probability is distilled as a Bernoulli distribution."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mlcorr._autograd import fixed_signature
from mlcorr._checks import (
    check_broadcastable,
    check_choice,
    check_factor,
    check_floating,
    check_mask,
    check_number,
    check_same,
)
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype, half_difference, no_autocast
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses._probabilities import log_probabilities, widen_probabilities

Inputs: TypeAlias = Literal["logits", "probabilities"]


def mld_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    inputs: Inputs = "logits",
    reduction: Reduction = "batchmean",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Σ_k KL(Bernoulli(t_k) ‖ Bernoulli(s_k)), averaged over the batch as in L2D and MDKD.

    With p = σ(logit / temperature), temperature² · Σ_k [ t_k·log(t_k/s_k) + (1 − t_k)·log((1 − t_k)/(1 − s_k)) ].
    The gradient to a student's logit is temperature · (s − t), exactly 0 where student and teacher agree.

    Args:
        student: Logits (..., C) of the student, or probabilities with ``inputs="probabilities"``; float16, bfloat16,
            float32 or float64.
        teacher: The same of the teacher. It gets a gradient if it requires one.
        mask: Boolean (..., C), True where the entry counts.
        temperature: From 1e-12 to 1e12; divides the logits as in Hinton et al., and its square multiplies the loss.
            Only 1 with ``inputs="probabilities"``.
        weight: Factor per label (C,) or any shape that broadcasts to the inputs'.
        inputs: "logits" or "probabilities" in [0, 1]; of probabilities the logarithms are clamped at −100.
        reduction: "batchmean" (sum over labels, mean over rows with a valid entry), "mean" over valid entries,
            "sum" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 when an input is float64. No valid entry gives 0.

    Raises:
        TypeError: An input is no floating-point tensor, the mask not boolean, or ``group`` no process group.
        ValueError: Shapes or devices differ, or a parameter is outside its range.

    Differs from the authors' code:
        L2D clamps probabilities to [1e-8, 1 − 1e-8], the upper end of which is 1 in float32, and takes logarithms,
        which are NaN or infinite for confident logits; here everything is formed from the logits and finite for all of
        them.

    Reference:
        Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023; Eq. 2 of MDKD (ACM Multimedia 2024).

    Example:
        >>> import torch
        >>> from mlcorr.functional import mld_loss
        >>> mld_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1e4]]))
        tensor(0.6931)
    """
    temperature = _check_configuration(temperature, inputs, reduction)
    group = check_group("group", group)
    check_floating("student", student)
    check_floating("teacher", teacher)
    check_same("teacher", teacher, "student", student)
    if mask is not None:
        check_mask("mask", mask, "student", student)
    if check_factor("weight", weight) is not None:
        check_broadcastable("weight", weight, "student", student)
    dtype = compute_dtype(student, teacher)
    if inputs == "logits":
        student, teacher = student.to(dtype), teacher.to(dtype)
    else:
        student, teacher = widen_probabilities(student, dtype), widen_probabilities(teacher, dtype)
    if mask is not None:
        # Before the mathematics, so that a NaN in a masked entry reaches neither value nor gradient; and by something
        # that has derivatives of every order.
        anything = 0.0 if inputs == "logits" else 0.5
        student, teacher = torch.where(mask, student, anything), torch.where(mask, teacher, anything)
    if inputs == "logits":
        divergence: Tensor = _BernoulliDivergence.apply(student, teacher, temperature)
    else:
        with no_autocast(student):
            (log_s, log_not_s), (log_t, log_not_t) = log_probabilities(student), log_probabilities(teacher)
        divergence = teacher * (log_t - log_s) + (1 - teacher) * (log_not_t - log_not_s)
    if weight is not None:
        divergence = divergence * weight.to(dtype)
    if temperature < 1:
        divergence = temperature * divergence  # now, since a sum of what is T times too large may overflow
    loss = reduce(divergence, mask, reduction, group)
    return temperature * loss if temperature > 1 else loss


class MLDLoss(SharesGroup, WholeState):
    """Module of :func:`mlcorr.functional.mld_loss`; the default is L2D's and MDKD's: sum over labels, batch mean.

    Parameters are those of the function; ``weight`` becomes a buffer, so that it moves with ``.to()``.

    Shape:
        - student, teacher, mask: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import MLDLoss
        >>> MLDLoss(temperature=2.0)(torch.zeros(4, 3), torch.full((4, 3), 2.0))
        tensor(1.3313)
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        weight: Tensor | None = None,
        inputs: Inputs = "logits",
        reduction: Reduction = "batchmean",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.temperature = _check_configuration(temperature, inputs, reduction)
        self.inputs = inputs
        self.reduction = reduction
        self.group = check_group("group", group)
        self.register_buffer("weight", check_factor("weight", weight))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.mld_loss`."""
        return mld_loss(
            student,
            teacher,
            mask,
            temperature=self.temperature,
            weight=self.weight,
            inputs=self.inputs,
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"temperature={self.temperature:g}, inputs={self.inputs!r}, reduction={self.reduction!r}"


def _check_configuration(temperature: float, inputs: Inputs, reduction: Reduction) -> float:
    check_choice("inputs", inputs, ("logits", "probabilities"))
    check_choice("reduction", reduction, REDUCTIONS)
    checked = check_number("temperature", temperature, minimum=1e-12, maximum=1e12)  # float32 holds squares of them
    if inputs == "probabilities" and checked != 1.0:
        raise ValueError(f"temperature: expected 1 with inputs='probabilities', got {checked}; pass logits")
    return checked


class _BernoulliDivergence(torch.autograd.Function):
    """T·KL(Bernoulli(σ(t/T)) ‖ Bernoulli(σ(s/T))) of logits, entry by entry, which no logit of theirs overflows.

    KL = softplus(s) − softplus(t) + σ(t)·(t − s) is unchanged when both logits change sign. It is evaluated on the
    side where the teacher's is negative: there softplus(t) and σ(t) keep full relative precision however confident
    the teacher is, and a student that agrees with it is compared without cancellation of large numbers.
    """

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        flipped = torch.where(teacher > 0, -student, student)
        negative = -teacher.abs()
        divergence = _minus_softplus(negative, temperature) - _minus_softplus(flipped, temperature)
        probability = (negative if temperature == 1.0 else negative / temperature).sigmoid()
        half = half_difference(negative, flipped)
        divergence = torch.addcmul(divergence, probability, half, value=2)
        if temperature <= 1:
            return divergence
        # T² enlarges the rounding of summands that a high temperature makes all but equal.
        distance = half * (-2 / temperature)
        near = distance.abs() < 1
        return torch.where(near, temperature * _near(probability, torch.where(near, distance, 0.0)), divergence)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        student, teacher, ctx.temperature = inputs
        ctx.save_for_backward(student, teacher)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        student, teacher = ctx.saved_tensors
        t = teacher if ctx.temperature == 1.0 else teacher / ctx.temperature
        grad_student = grad_teacher = None
        if ctx.needs_input_grad[0]:
            s = student if ctx.temperature == 1.0 else student / ctx.temperature
            # σ(s) − σ(t), of which there are no digits where both are next to 1
            grad_student = grad * (s.sigmoid() * t.neg().sigmoid() - t.sigmoid() * s.neg().sigmoid())
        if ctx.needs_input_grad[1]:
            slope = t.sigmoid() * t.neg().sigmoid()
            grad_teacher = (grad / ctx.temperature) * (2 * slope * half_difference(teacher, student))
        return grad_student, grad_teacher, None


def _near(p: Tensor, distance: Tensor) -> Tensor:
    """Return the divergence of p <= 1/2 and a probability whose logit is ``distance`` further, which is less than 1."""
    slope = p * (1 - p)
    # Three terms of its series; from here on the difference has as many digits.
    series = slope * distance.square() / 2 * (1 + distance * ((1 - 2 * p) / 3 + distance * (1 - 6 * slope) / 12))
    few = 4 * torch.finfo(p.dtype).eps ** 0.25
    return torch.where(distance.abs() < few, series, (p * distance.expm1()).log1p() - p * distance)


def _minus_softplus(x: Tensor, temperature: float) -> Tensor:
    """Return −T·log(1 + exp(x/T))."""
    if temperature == 1.0:
        return F.logsigmoid(-x)
    return torch.sub(-x.clamp(min=0), (x.abs() / -temperature).exp().log1p(), alpha=temperature)
