"""BCE, MLD and the instance level of the n-order loss in one pass over the logits.

The three read the same logits and need the same sigmoids, so that together they cost little more than the dearest of
them. The notation is that of ``closed_form.py``; x and z are the student's and the teacher's logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature, plus, plus_product
from mlcorr._precision import half_difference
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
        small = student.abs().neg_().exp_().log1p_()
        base = torch.addcmul(positive, target, student, value=-1).add_(small).mul_(target_weight)
        mld = small - teacher.abs().neg_().exp_().log1p_()
        mld.add_((positive - teacher.clamp(min=0)).mul_(teacher.neg().sigmoid_()))
        mld.add_((teacher.clamp(max=0) - student.clamp(max=0)).mul_(t))
        u, v = closed_form.centred_sum_and_difference(s, t)
        *sums, instance = closed_form.instance_form(u, v, plan)
        return s, t, u, v, *sums, base.sum(), mld.mul_(mld_weight).sum(), instance.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        student, teacher, target, target_weight, ctx.mld_weight, ctx.plan = inputs
        ctx.set_materialize_grads(False)
        weighted = isinstance(target_weight, Tensor)
        ctx.target_weight = None if weighted else target_weight
        ctx.save_for_backward(student, teacher, target, target_weight if weighted else None, *output[:7])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        student, teacher, target, target_weight, s, t, u, v, *sums = ctx.saved_tensors
        if target_weight is None:
            target_weight = ctx.target_weight
        grad_s, grad_t, grad_u, grad_v, *grads_of_sums, base, mld, instance = grads
        if mld is not None:
            mld = ctx.mld_weight * mld
        to_student = to_teacher = to_target = None

        def to_probability(sign: int) -> Tensor | None:
            turned = torch.add(v, u, alpha=sign)
            part = closed_form.instance_gradient(
                sign, u, v, turned, (*sums, None), ctx.plan, (*grads_of_sums, instance)
            )
            part = plus(part, plus(grad_u, None if grad_v is None else sign * grad_v))
            return None if part is None else closed_form.centred_(part)

        if ctx.needs_input_grad[0]:
            probability = plus(grad_s, to_probability(-1))
            if probability is not None:
                to_student = torch.ops.aten.sigmoid_backward(probability, s)
            if base is not None:
                to_student = plus_product(to_student, (s - target).mul_(target_weight), base)
            if mld is not None:
                # s − t, of which there are no digits where both are next to 1
                difference = s * teacher.neg().sigmoid() - t * student.neg().sigmoid()
                to_student = plus_product(to_student, difference, mld)
        if ctx.needs_input_grad[1]:
            probability = plus(grad_t, to_probability(+1))
            if probability is not None:
                to_teacher = torch.ops.aten.sigmoid_backward(probability, t)
            if mld is not None:
                # ∂MLD/∂t is z − x; halved, the difference does not overflow. It may be large where t is flat, of which
                # the slope t·(1 − t) of a rounded t would know nothing.
                half = half_difference(teacher, student) * (t * teacher.neg().sigmoid())
                to_teacher = plus(to_teacher, half * (2 * mld))
        if ctx.needs_input_grad[2] and base is not None:
            to_target = student * (target_weight * -base)
        return to_student, to_teacher, to_target, None, None, None
