"""The n-order losses in closed form: every order costs what one costs, and no label pair is formed.

Notation, for probabilities s (student) and t (teacher) of shape (B, C), each row centred on its mean over labels:

    u = (t + s) − mean        v = (t − s) − mean        w = u∘v

    instance:  W1 = Σ_k w     W2 = Σ_k w²     U2 = Σ_k u²     V2 = Σ_k v²               (B,) each
    batch:     g = Σ_i w_i/B  (C,)            G = (uᵀv + vᵀu)/(2B)  (C, C), g = diag G

and the loss is a quadratic form in these few numbers with the coefficients of ``coefficients.py``. The *difference*
v is formed from t − s directly: a form in t² − s² would lose it to rounding once the student is close to the teacher.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature, plus, plus_product
from mlcorr._precision import no_autocast
from mlcorr.ops.norder.coefficients import Coefficients


def instance_loss(student: Tensor, teacher: Tensor, plan: Coefficients) -> Tensor:
    """Return the loss of every instance, (...,), of probabilities (..., C) in float32 or float64."""
    *_, loss = _ClosedForm.apply(student, teacher, plan, True, False)
    return cast(Tensor, loss)


def batch_loss(student: Tensor, teacher: Tensor, plan: Coefficients, dependency: str = "mean_square") -> Tensor:
    """Return the loss of the batch, (), of probabilities (B, C) in float32 or float64."""
    if dependency == "square_of_sums":
        # Ψ_kl = B·(mean_k − mean_l)²: B² times the instance form of the batch means.
        rows = student.shape[0]
        size = max(rows, 1)
        return rows * rows * instance_loss(student.sum(dim=0) / size, teacher.sum(dim=0) / size, plan)
    *_, loss = _ClosedForm.apply(student, teacher, plan, False, True)
    return cast(Tensor, loss)


def both_losses(student: Tensor, teacher: Tensor, plan: Coefficients) -> tuple[Tensor, Tensor]:
    """Return ``instance_loss`` and ``batch_loss`` (of mean squares), which share one pass over (B, C)."""
    _, _, _, _, _, of_instances, *_, of_batch = _ClosedForm.apply(student, teacher, plan, True, True)
    return of_instances, of_batch


class _ClosedForm(torch.autograd.Function):
    """(s, t) → u, v, then [W1, U2, V2, loss (B,)] if ``instance``, then [B·g, Gram matrices, loss ()] if ``batch``.

    What is not a loss is an output only because the backward is then a differentiable function of differentiable
    tensors, so that its own derivative needs no code.
    """

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        student: Tensor, teacher: Tensor, plan: Coefficients, instance: bool, batch: bool
    ) -> tuple[Tensor, ...]:
        u, v = centred_sum_and_difference(student, teacher)
        outputs = [u, v]
        if instance:
            outputs += instance_form(u, v, plan)
        if batch:
            with no_autocast(student):
                outputs += batch_form(u, v, (u * v).sum(dim=0), plan)
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, ctx.plan, ctx.instance, ctx.batch = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        u, v, *saved = ctx.saved_tensors
        grad_u, grad_v, *grads_of_levels = grads
        results: list[Tensor | None] = []
        # u = t + s and v = t − s: the student (−1) sees ∂/∂u − ∂/∂v, the teacher (+1) ∂/∂u + ∂/∂v.
        for index, sign in enumerate((-1, 1)):
            if not ctx.needs_input_grad[index]:
                results.append(None)
                continue
            total = plus(grad_u, None if grad_v is None else sign * grad_v)
            turned = torch.add(v, u, alpha=sign)  # ∂w/∂u + sign·∂w/∂v
            if ctx.instance:
                total = plus(total, instance_gradient(sign, u, v, turned, saved[:4], ctx.plan, grads_of_levels[:4]))
            if ctx.batch:
                first = 4 if ctx.instance else 0
                with no_autocast(u):
                    parts = batch_gradient(sign, u, v, turned, saved[first:], ctx.plan, grads_of_levels[first:])
                total = plus(total, _joined(*parts, turned))
            results.append(None if total is None else centred_(total))
        return *results, None, None, None


def centred_(x: Tensor) -> Tensor:
    """Subtract from ``x`` its mean over labels, in place: fresh memory costs more than the arithmetic."""
    return x.sub_(x.sum(dim=-1, keepdim=True), alpha=1 / x.shape[-1])


def centred_sum_and_difference(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and v."""
    return centred_(teacher + student), centred_(teacher - student)


def instance_form(u: Tensor, v: Tensor, plan: Coefficients) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W1, U2, V2 and the loss of every instance, α·W2 + β·W1² + γ·U2·V2."""
    w = u * v
    w1, w2 = w.sum(dim=-1), (w * w).sum(dim=-1)
    u2, v2 = (u * u).sum(dim=-1), (v * v).sum(dim=-1)
    return w1, u2, v2, plan.alpha * w2 + plan.beta * w1 * w1 + plan.gamma * u2 * v2


def instance_gradient(
    sign: int, u: Tensor, v: Tensor, turned: Tensor, values: Any, plan: Coefficients, grads: Any
) -> Tensor | None:
    """Return (∂/∂u + sign·∂/∂v) of what ``instance_form`` returned as ``values``, times ``grads`` (or None).

    It needs no centring of its own; the caller centres the sum of all such parts.
    """
    w1, u2, v2, _ = values
    grad_w1, grad_u2, grad_v2, loss = grads
    grad_w2 = None
    if loss is not None:
        grad_w1 = plus(grad_w1, (2 * plan.beta * loss) * w1)
        grad_w2 = plan.alpha * loss
        grad_u2 = plus(grad_u2, (plan.gamma * loss) * v2)
        grad_v2 = plus(grad_v2, (plan.gamma * loss) * u2)
    elif grad_w1 is None and grad_u2 is None and grad_v2 is None:
        return None
    to_w1, to_w2, to_u2, to_v2 = (
        u.new_zeros(()) if grad is None else grad.unsqueeze(-1) for grad in (grad_w1, grad_w2, grad_u2, grad_v2)
    )
    part = torch.addcmul(to_w1, u * v, to_w2, value=2).mul_(turned)
    return torch.addcmul(torch.addcmul(part, u, to_u2, value=2), v, to_v2, value=2 * sign)


def batch_form(u: Tensor, v: Tensor, g: Tensor, plan: Coefficients) -> list[Tensor]:
    """Return B·g (which is ``g``), Gram matrices that give ‖G‖², and the loss α·Σg² + (β − γ)·(Σg)² + 2γ·‖G‖².

    They are uuᵀ, vvᵀ, uvᵀ (B, B) when B < C, so that no (C, C) tensor exists, and uᵀv + vᵀu (C, C) otherwise.
    """
    alpha, beta, gamma = _batch_plan(u, plan)
    if u.shape[0] < u.shape[1]:
        uu, vv, uv = grams = [u @ u.T, v @ v.T, u @ v.T]
        norm = ((uu * vv).sum() + (uv * uv.T).sum()) / 2
    else:
        product = u.T @ v
        grams = [product + product.T]
        norm = grams[0].square().sum() / 4
    total = g.sum()
    return [g, *grams, alpha * (g * g).sum() + (beta - gamma) * total * total + 2 * gamma * norm]


def batch_gradient(
    sign: int, u: Tensor, v: Tensor, turned: Tensor, values: Any, plan: Coefficients, grads: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Return (∂/∂u + sign·∂/∂v) of what ``batch_form`` returned as ``values``, times ``grads``, not centred.

    It is the first result plus the second, which is (C,), times ``turned``; None is 0.
    """
    g, *grams, _ = values
    grad_g, *grad_grams, loss = grads
    # What multiplies u and v from the left, or ``turned`` from the right.
    matrices: list[Tensor | None]
    if len(grams) == 1:
        matrices = [None if grad_grams[0] is None else grad_grams[0] + grad_grams[0].T]
    else:
        to_uu, to_vv, to_uv = (grad if grad is None or k == 2 else grad + grad.T for k, grad in enumerate(grad_grams))
        matrices = [
            plus(to_uu, None if to_uv is None else sign * to_uv.T),
            plus(to_uv, None if to_vv is None else sign * to_vv),
        ]
    if loss is not None:
        alpha, beta, gamma = _batch_plan(u, plan)
        grad_g = plus(grad_g, (2 * loss) * (alpha * g + (beta - gamma) * g.sum()))
        scale = 2 * gamma * loss
        if len(grams) == 1:
            matrices = [plus(matrices[0], scale * grams[0])]
        else:
            uu, vv, uv = grams
            matrices = [
                plus(matrices[0], scale * torch.add(vv, uv, alpha=sign)),
                plus(matrices[1], scale * torch.add(uv.T, uu, alpha=sign)),
            ]
    factors = (turned,) if len(grams) == 1 else (u, v)
    total: Tensor | None = None
    for matrix, factor in zip(matrices, factors, strict=True):
        if matrix is not None:
            product = factor @ matrix if factor is turned else matrix @ factor
            total = product if total is None else total.add_(product)
    return total, grad_g


def _joined(total: Tensor | None, grad_g: Tensor | None, turned: Tensor) -> Tensor | None:
    return total if grad_g is None else plus_product(total, turned, grad_g)


def _batch_plan(u: Tensor, plan: Coefficients) -> Coefficients:
    """Return the coefficients for B·g and B²·‖G‖²."""
    return plan.scaled(1 / max(u.shape[0] * u.shape[0], 1))
