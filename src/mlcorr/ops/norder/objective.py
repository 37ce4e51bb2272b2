"""BCE, MLD and the instance level of the n-order loss in one pass over the logits.

The three read the same logits and need the same sigmoids, so that together they cost little more than the dearest of
them. The notation is that of ``closed_form.py``; x and z are the student's and the teacher's logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mlcorr._autograd import fixed_signature
from mlcorr.ops.norder import closed_form
from mlcorr.ops.norder.coefficients import Coefficients


class ObjectiveTerms(NamedTuple):
    """The three weighted terms, each (), and the probabilities (..., C) that they were formed from."""

    student: Tensor
    teacher: Tensor
    base: Tensor
    mld: Tensor
    instance: Tensor


def objective_terms(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    target_weight: Tensor | float,
    mld_weight: float,
    plan: Coefficients,
) -> ObjectiveTerms:
    """Return Σ target_weight·BCE, mld_weight·Σ MLD and the sum of the instances' n-order losses.

    Logits and ``target`` are (..., C), of one dtype, float32 or float64; ``target_weight`` (a number or (..., C))
    is 0 where a target is unknown. Weights of the instance term are in ``plan``, which is linear in them.
    """
    outputs = _Objective.apply(student, teacher, target, target_weight, mld_weight, plan)
    return ObjectiveTerms(*outputs[:2], *outputs[-3:])


class _Objective(torch.autograd.Function):
    """(x, z, y, …) → s, t, u, v, W1, U2, V2, then the three terms.

    What is between the probabilities and the terms is an output only because the backward is then a differentiable
    function of differentiable tensors, so that its own derivative needs no code.
    """

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        target_weight: Tensor | float,
        mld_weight: float,
        plan: Coefficients,
    ) -> tuple[Tensor, ...]:
        s, t = student.sigmoid(), teacher.sigmoid()
        # softplus(x) = max(x, 0) + softplus(−|x|), and the second summand is small: kept apart from the first, it is
        # not rounded away where the firsts cancel, that is where student, teacher and target confidently agree.
        positive = student.clamp(min=0)
        small = F.softplus(student.abs().neg_())
        base = (torch.addcmul(positive, target, student, value=-1) + small) * target_weight
        mld = small - F.softplus(teacher.abs().neg_())
        mld = torch.addcmul(mld, teacher.neg().sigmoid_(), positive - teacher.clamp(min=0))
        mld = torch.addcmul(mld, t, teacher.clamp(max=0) - student.clamp(max=0))
        u, v = closed_form.centred_sum_and_difference(s, t)
        w1, w2, u2, v2 = closed_form.row_sums(u, v)
        instance = closed_form.instance_form(plan, w1, w2, u2, v2)
        return s, t, u, v, w1, u2, v2, base.sum(), mld_weight * mld.sum(), instance.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        student, teacher, target, target_weight, ctx.mld_weight, ctx.plan = inputs
        ctx.set_materialize_grads(False)
        weighted = isinstance(target_weight, Tensor)
        ctx.target_weight = None if weighted else target_weight
        ctx.save_for_backward(student, teacher, target, target_weight if weighted else None, *output[:7])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        student, teacher, target, target_weight, s, t, u, v, w1, u2, v2 = ctx.saved_tensors
        if target_weight is None:
            target_weight = ctx.target_weight
        grad_s, grad_t, grad_u, grad_v, grad_w1, grad_u2, grad_v2, base, mld, instance = grads
        grad_w2 = None
        if mld is not None:
            mld = ctx.mld_weight * mld
        if instance is not None:
            alpha, beta, gamma = ctx.plan
            grad_w1 = _plus(grad_w1, (2 * beta * instance) * w1)
            grad_w2 = alpha * instance
            grad_u2 = _plus(grad_u2, (gamma * instance) * v2)
            grad_v2 = _plus(grad_v2, (gamma * instance) * u2)
        statistics = (grad_u, grad_v, grad_w1, grad_w2, grad_u2, grad_v2)
        to_student = to_teacher = to_target = None
        if ctx.needs_input_grad[0]:
            probability = _plus(grad_s, closed_form.gradient(-1, u, v, statistics, instance=True, batch=False))
            if probability is not None:
                to_student = torch.ops.aten.sigmoid_backward(probability, s)
            if base is not None:
                to_student = _plus(to_student, (s - target) * (target_weight * base))
            if mld is not None:
                to_student = _plus(to_student, (s - t) * mld)
        if ctx.needs_input_grad[1]:
            probability = _plus(grad_t, closed_form.gradient(+1, u, v, statistics, instance=True, batch=False))
            if probability is not None:
                to_teacher = torch.ops.aten.sigmoid_backward(probability, t)
            if mld is not None:
                # ∂MLD/∂t is z − x, and t is flat where it is large; halved, the difference does not overflow.
                half = torch.sub(0.5 * teacher, student, alpha=0.5)
                to_teacher = _plus(to_teacher, torch.ops.aten.sigmoid_backward(half, t) * (2 * mld))
        if ctx.needs_input_grad[2] and base is not None:
            to_target = student * (target_weight * -base)
        return to_student, to_teacher, to_target, None, None, None


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
