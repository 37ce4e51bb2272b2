"""The closed form where some entries are left out; notation as in ``closed_form.py``.

An instance with c valid labels has the sequences of those, so that its coefficients are those of c labels. In the
batch, with u, v centred over the valid labels of their row, 0 elsewhere, and m the mask,

    D = (wᵀm + mᵀw − uᵀv − vᵀu)/B′ = XᵀY/B′,   X = [w; m; −u; −v],   Y = [m; w; v; u]   (4B, C),

so that Q = ⟨XXᵀ, YYᵀ⟩/B′², and the row sums of D are Xᵀ(Y1)/B′: a (C, C) matrix is formed only where it is the smaller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlcorr.ops.norder.coefficients import instance_coefficients, matrix_coefficients
from mlcorr.ops.norder.differences import batch_difference, valid_rows
from mlcorr.ops.products import product


def instance_loss(student: Tensor, teacher: Tensor, mask: Tensor, plan: Tensor) -> Tensor:
    """Return the loss of every instance, (...,), of probabilities (..., C) by its own row of ``plan`` (..., 3)."""
    w1, w2, u2, v2 = sums(student, teacher, mask)
    alpha, beta, gamma = plan.unbind(dim=-1)
    return alpha * w2 + beta * w1 * w1 + gamma * u2 * v2


def plan_of_rows(orders: Sequence[tuple[int, float | Tensor]], counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ over (order, weight) of weight·(α, β, γ) for each count of valid labels, (..., 3).

    An order that asks for more labels than there are adds 0.
    """
    exact = counts.cpu() if counts.device.type == "mps" else counts  # no float64 there
    plan = torch.zeros(*counts.shape, 3, dtype=torch.float64, device=exact.device)
    for order, weight in orders:
        values = torch.stack(instance_coefficients(order, exact.clamp(min=order).double()), dim=-1)
        weight = weight.to(exact.device) if isinstance(weight, Tensor) else weight
        plan = plan + weight * torch.where((exact >= order).unsqueeze(-1), values, 0.0)
    return plan.to(counts.device, dtype)


def sums(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W1, W2, U2 and V2 of every instance, (...,)."""
    u, v, _ = _centred(student, teacher, torch.ones_like(student, dtype=torch.bool) if mask is None else mask)
    w = u * v
    return w.sum(dim=-1), (w * w).sum(dim=-1), (u * u).sum(dim=-1), (v * v).sum(dim=-1)


def batch_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    orders: Sequence[tuple[int, float]],
    dependency: str = "mean_square",
) -> Tensor:
    """Return the loss of the batch, (), of probabilities (B, C)."""
    rows, labels = student.shape
    if dependency == "square_of_sums" or labels <= 4 * rows:
        difference = batch_difference(student, teacher, mask, dependency)
        q, r = (difference * difference).sum(), difference.sum(dim=1)
    else:
        u, v, m = _centred(student, teacher, mask)
        w = u * v
        x, y = torch.cat([w, m, -u, -v]), torch.cat([m, w, v, u])
        size = valid_rows(mask)
        q = (product(x, x.T) * product(y, y.T)).sum() / (size * size)
        r = product(y.sum(dim=1, keepdim=True).T, x).squeeze(0) / size
    total = r.sum()
    c_q = c_r = c_s = 0.0
    for order, weight in orders:
        of_q, of_r, of_s = matrix_coefficients(order, labels)
        c_q, c_r, c_s = c_q + weight * of_q, c_r + weight * of_r, c_s + weight * of_s
    return c_q * q + c_r * (r * r).sum() + c_s * total * total


def _centred(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m = mask.to(student.dtype)
    counts = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    u, v = (teacher + student) * m, (teacher - student) * m
    return u - m * (u.sum(dim=-1, keepdim=True) / counts), v - m * (v.sum(dim=-1, keepdim=True) / counts), m
