"""The closed form over the logits themselves, by kernels: the instance level, alone or with BCE and MLD in its pass.

The first derivative is a kernel too; those of higher order are PyTorch's, of ``_plain_terms``, which says the same as
the kernels in differentiable operations. The batch level is in ``fused_batch.py``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

import mlcorr.ops.norder.operators  # noqa: F401  (registers torch.ops.mlcorr)
from mlcorr._autograd import fixed_signature
from mlcorr._precision import compute_dtype
from mlcorr.ops.norder import masked_closed_form
from mlcorr.ops.norder.coefficients import Coefficients
from mlcorr.ops.norder.launching import UNIT


class RowTerms(NamedTuple):
    """Of a row or of many: the instance's loss, Σ BCE, whether a target is known (0 or 1), Σ MLD.

    The two sums are in ``UNIT``, so that they do not overflow where their means over rows do not.
    """

    instance: Tensor
    base: Tensor
    known: Tensor
    mld: Tensor


def row_terms(
    student: Tensor,
    teacher: Tensor,
    plan: Coefficients | Tensor,
    *,
    mask: Tensor | None = None,
    target: Tensor | None = None,
    logits: bool = True,
    mld: bool = False,
) -> Tensor:
    """Return the terms (..., 4), as in ``RowTerms``, of all rows of student and teacher, (..., C), in one pass.

    Args:
        student: logits, or probabilities where not ``logits``; of any floating dtype.
        teacher: the same.
        plan: α, β, γ, or those of each row, (..., 3), in the dtype that is computed in.
        mask: bool (..., C), the entries of instance level and MLD, or None for all.
        target: of any real dtype, < 0 where unknown; without it, ``base`` and ``known`` are 0.
        logits: whether the inputs are logits; MLD and BCE are of logits only.
        mld: whether MLD is asked for; else it is 0.
    """
    leading, labels = student.shape[:-1], student.shape[-1]
    rows = [None if x is None else x.reshape(-1, labels) for x in (student, teacher, mask, target)]
    if torch.compiler.is_compiling() and not isinstance(plan, Tensor):
        # An operator's numbers are constants of the graph; these may depend on sizes that vary.
        each = [student.new_full((), number, dtype=compute_dtype(student, teacher)) for number in plan]
        plan = torch.stack(each).expand(*leading, 3)
    per_row = plan.reshape(-1, 3) if isinstance(plan, Tensor) else None
    numbers = (0.0, 0.0, 0.0) if isinstance(plan, Tensor) else tuple(plan)
    terms, _ = _Rows.apply(*rows, per_row, *numbers, logits, mld)
    return cast(Tensor, terms.reshape(*leading, 4))


class _Rows(torch.autograd.Function):
    """(x, z, mask, target, plan, α, β, γ, …) → terms (rows, 4), statistics (rows, 8)."""

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        target: Tensor | None,
        plan: Tensor | None,
        alpha: float,
        beta: float,
        gamma: float,
        logits: bool,
        mld: bool,
    ) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = torch.ops.mlcorr.norder_rows(
            student, teacher, mask, target, plan, alpha, beta, gamma, logits, mld
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.settings = inputs[5:]
        ctx.save_for_backward(*inputs[:5], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        student, teacher, mask, target, plan, statistics = ctx.saved_tensors
        grad_terms, _ = grads
        results: list[Tensor | None] = [None] * 10
        if grad_terms is None:
            return tuple(results)
        to_student, to_teacher, _, to_target, *_ = ctx.needs_input_grad
        if to_student or to_teacher:
            found = _RowsGradient.apply(
                grad_terms, student, teacher, mask, target, plan, statistics, *ctx.settings, to_student, to_teacher
            )
            results[0] = found[0] if to_student else None
            results[1] = found[1] if to_teacher else None
        if to_target:
            results[3] = (torch.where(target >= 0, -student, 0.0) * (grad_terms[:, 1:2] / UNIT)).to(target.dtype)
        return tuple(results)


class _RowsGradient(torch.autograd.Function):
    """What ``_Rows.backward`` returns, and its derivative."""

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        grad_terms: Tensor,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        target: Tensor | None,
        plan: Tensor | None,
        statistics: Tensor,
        alpha: float,
        beta: float,
        gamma: float,
        logits: bool,
        mld: bool,
        to_student: bool,
        to_teacher: bool,
    ) -> tuple[Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor] = torch.ops.mlcorr.norder_rows_backward(
            grad_terms, student, teacher, mask, target, plan, statistics,
            alpha, beta, gamma, logits, mld, to_student, to_teacher,
        )  # fmt: skip
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.settings, ctx.asked = inputs[7:12], inputs[12:]
        ctx.save_for_backward(*inputs[:6])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad_terms, student, teacher, mask, target, plan = ctx.saved_tensors
        asked = [index for index, one in enumerate(ctx.asked) if one]

        def gradients(
            grad_terms: Tensor, student: Tensor, teacher: Tensor, target: Tensor | None = target
        ) -> tuple[Tensor, ...]:
            def terms(student: Tensor, teacher: Tensor) -> Tensor:
                return _plain_terms(student, teacher, mask, target, plan, *ctx.settings)

            both = torch.func.vjp(terms, student, teacher)[1](grad_terms)
            return tuple(both[index] for index in asked)

        soft = (target,) if ctx.needs_input_grad[4] else ()
        found = torch.func.vjp(gradients, grad_terms, student, teacher, *soft)[1](tuple(grads[k] for k in asked))
        return *found[:3], None, found[3] if soft else None, *[None] * 9


def _plain_terms(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    target: Tensor | None,
    plan: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    logits: bool,
    mld: bool,
) -> Tensor:
    """Return the terms (rows, 4) in operations that PyTorch differentiates as often as asked."""
    dtype = compute_dtype(student, teacher)
    x, z = student.to(dtype), teacher.to(dtype)
    none = x.new_zeros(x.shape[:-1])
    base = known = divergence = none
    if target is not None:
        is_known = target >= 0
        y = torch.where(is_known, target, 0).to(dtype)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.where(is_known, x, 0.0), y, reduction="none")
        base = torch.where(is_known, loss / UNIT, 0.0).sum(dim=-1)
        known = is_known.any(dim=-1).to(dtype)
    if mask is not None:
        x, z = torch.where(mask, x, 0.0), torch.where(mask, z, 0.0)
    if mld:
        logsigmoid = torch.nn.functional.logsigmoid
        loss = z.sigmoid() * (logsigmoid(z) - logsigmoid(x)) + (-z).sigmoid() * (logsigmoid(-z) - logsigmoid(-x))
        divergence = (loss / UNIT if mask is None else torch.where(mask, loss / UNIT, 0.0)).sum(dim=-1)
    s, t = (x.sigmoid(), z.sigmoid()) if logits else (x, z)
    w1, w2, u2, v2 = masked_closed_form.sums(s, t, mask)
    coefficients = (alpha, beta, gamma) if plan is None else plan.unbind(dim=-1)
    instance = coefficients[0] * w2 + coefficients[1] * w1 * w1 + coefficients[2] * u2 * v2
    return torch.stack([instance, base, known, divergence], dim=-1)
