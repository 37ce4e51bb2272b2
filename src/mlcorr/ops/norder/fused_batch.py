"""The batch level in closed form over the logits themselves: kernels around the matrix products of the library.

The value and the first derivative are ``closed_form.py``'s, those of higher order PyTorch's of that file's form.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

import mlcorr.ops.norder.operators  # noqa: F401  (registers torch.ops.mlcorr)
from mlcorr._autograd import fixed_signature
from mlcorr._precision import compute_dtype, no_autocast
from mlcorr.ops.norder import closed_form
from mlcorr.ops.norder.coefficients import Coefficients


def batch_loss(student: Tensor, teacher: Tensor, plan: Coefficients, logits: bool = True) -> Tensor:
    """Return the loss of the batch, (), of mean squares; of logits or probabilities (B, C) of any floating dtype."""
    loss, *_ = _Batch.apply(student, teacher, *plan, logits)
    return cast(Tensor, loss)


class _Batch(torch.autograd.Function):
    """(x, z, …) → loss (), and for the backward u, v, B·g and the Gram matrices."""

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        student: Tensor, teacher: Tensor, alpha: float, beta: float, gamma: float, logits: bool
    ) -> tuple[Tensor, ...]:
        _, statistics = torch.ops.mlcorr.norder_rows(student, teacher, None, None, None, 0.0, 0.0, 0.0, logits, False)
        u, v, sums = torch.ops.mlcorr.norder_centred(student, teacher, statistics, logits)
        with no_autocast(u):
            *rest, loss = closed_form.batch_form(u, v, sums.sum(dim=0), Coefficients(alpha, beta, gamma))
        return loss, u, v, *rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.settings = inputs[2:]
        ctx.save_for_backward(*inputs[:2], *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        three = (*saved, *[None] * (8 - len(saved)))  # Gram matrices; there is one where C <= B
        results: list[Tensor | None] = [None] * 6
        for index, sign in enumerate((-1, 1)):
            if ctx.needs_input_grad[index] and grads[0] is not None:
                results[index] = _BatchGradient.apply(grads[0], *three, *ctx.settings, sign)
        return tuple(results)


class _BatchGradient(torch.autograd.Function):
    """The gradient of ``_Batch`` to the student (sign −1) or the teacher (+1), times ``grad``; and its derivative."""

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        grad: Tensor,
        student: Tensor,
        teacher: Tensor,
        u: Tensor,
        v: Tensor,
        g: Tensor,
        gram: Tensor,
        vv: Tensor | None,
        uv: Tensor | None,
        alpha: float,
        beta: float,
        gamma: float,
        logits: bool,
        sign: int,
    ) -> Tensor:
        turned = torch.add(v, u, alpha=sign)
        grams = (gram,) if vv is None else (gram, vv, uv)
        with no_autocast(u):
            product, of_g = closed_form.batch_gradient(
                sign,
                u,
                v,
                turned,
                (g, *grams, None),
                Coefficients(alpha, beta, gamma),
                (*[None] * (1 + len(grams)), grad),
            )
            # The products' rows sum to 0, as u's and v's do.
            means = turned @ cast(Tensor, of_g) / u.shape[1]
        probability = student if sign < 0 else teacher
        gradient: Tensor = torch.ops.mlcorr.norder_batch_gradient(product, u, v, of_g, means, probability, logits, sign)
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        *ctx.settings, ctx.sign = inputs[9:]
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        def gradient(grad: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
            pullback = torch.func.vjp(lambda s, t: _plain_loss(s, t, *ctx.settings), student, teacher)[1]
            to_student, to_teacher = pullback(grad)
            return cast(Tensor, to_student if ctx.sign < 0 else to_teacher)

        return *torch.func.vjp(gradient, *ctx.saved_tensors)[1](grads[0]), *[None] * 11


def _plain_loss(student: Tensor, teacher: Tensor, alpha: float, beta: float, gamma: float, logits: bool) -> Tensor:
    dtype = compute_dtype(student, teacher)
    s, t = student.to(dtype), teacher.to(dtype)
    if logits:
        s, t = s.sigmoid(), t.sigmoid()
    return closed_form.batch_loss(s, t, Coefficients(alpha, beta, gamma))
