"""The n-order losses in closed form: every order costs what one costs, and no label pair is formed.

Notation, for probabilities s (student) and t (teacher) of shape (B, C), each row centred on its mean over labels:

    u = (t + s) − mean        v = (t − s) − mean        w = u∘v

    instance:  W1 = Σ_k w     W2 = Σ_k w²     U2 = Σ_k u²     V2 = Σ_k v²               (B,) each
    batch:     g = Σ_i w_i/B  (C,)            G = (uᵀv + vᵀu)/(2B)  (C, C), g = diag G

and the loss is a quadratic form in these few numbers with the coefficients of ``coefficients.py``. The *difference*
v is formed from t − s directly: a form in t² − s² would lose it to rounding once the student is close to the teacher.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature
from mlcorr._precision import no_autocast
from mlcorr.ops.norder.coefficients import Coefficients


def instance_loss(student: Tensor, teacher: Tensor, plan: Coefficients) -> Tensor:
    """Return the loss of every instance, (...,), of probabilities (..., C) in float32 or float64."""
    _, _, *sums = _Statistics.apply(student, teacher, True, False)
    return instance_form(plan, *sums)


def batch_loss(student: Tensor, teacher: Tensor, plan: Coefficients, dependency: str = "mean_square") -> Tensor:
    """Return the loss of the batch, (), of probabilities (B, C) in float32 or float64."""
    rows = student.shape[0]
    if dependency == "square_of_sums":
        # Ψ_kl = B·(mean_k − mean_l)²: B² times the instance form of the batch means.
        size = max(rows, 1)
        return rows * rows * instance_loss(student.sum(dim=0) / size, teacher.sum(dim=0) / size, plan)
    _, _, *grams = _Statistics.apply(student, teacher, False, True)
    return _batch_form(plan, rows, *grams)


def both_losses(student: Tensor, teacher: Tensor, plan: Coefficients) -> tuple[Tensor, Tensor]:
    """Return ``instance_loss`` and ``batch_loss`` (of mean squares), which share one pass over (B, C)."""
    _, _, *statistics = _Statistics.apply(student, teacher, True, True)
    return instance_form(plan, *statistics[:4]), _batch_form(plan, student.shape[0], *statistics[4:])


def instance_form(plan: Coefficients, w1: Tensor, w2: Tensor, u2: Tensor, v2: Tensor) -> Tensor:
    """Return α·W2 + β·W1² + γ·U2·V2."""
    return plan.alpha * w2 + plan.beta * w1 * w1 + plan.gamma * u2 * v2


def _batch_form(plan: Coefficients, rows: int, g: Tensor, *grams: Tensor) -> Tensor:
    """α·Σg² + (β − γ)·(Σg)² + 2γ·‖G‖²; the arguments are B·g and what gives B²·‖G‖²."""
    if len(grams) == 1:
        norm = grams[0].square().sum() / 4
    else:
        uu, vv, uv = grams
        norm = ((uu * vv).sum() + (uv * uv.T).sum()) / 2
    total = g.sum()
    form = plan.alpha * g.square().sum() + (plan.beta - plan.gamma) * total * total + 2 * plan.gamma * norm
    return form / max(rows * rows, 1)


def centred_sum_and_difference(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and v."""
    share = 1 / student.shape[-1]
    u, v = teacher + student, teacher - student
    return (
        u.sub_(u.sum(dim=-1, keepdim=True), alpha=share),
        v.sub_(v.sum(dim=-1, keepdim=True), alpha=share),
    )


def row_sums(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W1, W2, U2 and V2."""
    w = u * v
    return w.sum(dim=-1), (w * w).sum(dim=-1), (u * u).sum(dim=-1), (v * v).sum(dim=-1)


class _Statistics(torch.autograd.Function):
    """(s, t) → u, v, then [W1, W2, U2, V2] if ``instance``, then [B·g and Gram matrices] if ``batch``.

    The Gram matrices are uuᵀ, vvᵀ, uvᵀ (B, B) when B < C, so that no (C, C) tensor exists, else uᵀv + vᵀu (C, C).
    u and v are outputs only because the backward is then a differentiable function of differentiable
    tensors: its own derivative needs no code. They are not to be used by the caller.
    """

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(student: Tensor, teacher: Tensor, instance: bool, batch: bool) -> tuple[Tensor, ...]:
        u, v = centred_sum_and_difference(student, teacher)
        statistics = [u, v]
        if instance:
            statistics += row_sums(u, v)
        if batch:
            statistics.append((u * v).sum(dim=0))
            with no_autocast(student):
                if student.shape[0] < student.shape[1]:
                    statistics += [u @ u.T, v @ v.T, u @ v.T]
                else:
                    product = u.T @ v
                    statistics.append(product + product.T)
        return tuple(statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, ctx.instance, ctx.batch = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        u, v = ctx.saved_tensors
        with no_autocast(u):
            # u = t + s and v = t − s: the student sees v's gradient with the sign −1, the teacher with +1.
            return (
                gradient(-1, u, v, grads, ctx.instance, ctx.batch) if ctx.needs_input_grad[0] else None,
                gradient(+1, u, v, grads, ctx.instance, ctx.batch) if ctx.needs_input_grad[1] else None,
                None,
                None,
            )


def gradient(sign: int, u: Tensor, v: Tensor, grads: tuple[Any, ...], instance: bool, batch: bool) -> Tensor | None:
    """Return the gradient of ``_Statistics`` to the student's (sign −1) or the teacher's (+1) probabilities.

    ``grads`` belong to its outputs, each a tensor or None; the result is None if all are. It is their sum, each times
    ∂/∂u + sign·∂/∂v, centred over labels as u and v are.
    """
    grad_u, grad_v, *rest = grads
    turned = torch.add(v, u, alpha=sign)  # ∂w/∂u + sign·∂w/∂v
    parts = []
    if instance:
        sums, rest = rest[:4], rest[4:]
        if any(grad is not None for grad in sums):
            # In a double backward some of the four may be absent (the loss is linear in W2).
            w1, w2, u2, v2 = (u.new_zeros(()) if grad is None else grad.unsqueeze(-1) for grad in sums)
            part = torch.addcmul(w1, u * v, w2, value=2) * turned
            parts.append(torch.addcmul(torch.addcmul(part, u, u2, value=2), v, v2, value=2 * sign))
    if batch and rest[0] is not None:
        g, *grams = rest
        part = g * turned
        if len(grams) == 1:
            parts.append(torch.addmm(part, turned, _twice_symmetric(grams[0])))
        else:
            uu, vv, uv = grams
            part = torch.addmm(part, _twice_symmetric(uu) + sign * uv.T, u)
            parts.append(torch.addmm(part, uv + sign * _twice_symmetric(vv), v))
    if grad_u is not None:
        parts.append(grad_u)
    if grad_v is not None:
        parts.append(sign * grad_v)
    if not parts:
        return None
    total = functools.reduce(torch.add, parts)
    return total - total.mean(dim=-1, keepdim=True)


def _twice_symmetric(matrix: Tensor) -> Tensor:
    return matrix + matrix.T
