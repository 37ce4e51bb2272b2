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

from mlcorr._precision import no_autocast
from mlcorr.ops.norder.coefficients import instance_coefficients, matrix_coefficients
from mlcorr.ops.norder.differences import batch_difference, valid_rows


def instance_losses(student: Tensor, teacher: Tensor, mask: Tensor, orders: Sequence[int]) -> list[Tensor]:
    """Return each order's loss of every instance, (...,), of probabilities (..., C); 0 where c < order."""
    counts = mask.sum(dim=-1)
    u, v, _ = _centred(student, teacher, mask)
    w = u * v
    w1, w2, u2, v2 = (x.sum(dim=-1) for x in (w, w * w, u * u, v * v))
    losses = []
    for order in orders:
        alpha, beta, gamma = _coefficients_by_count(order, counts, student)
        losses.append(alpha * w2 + beta * w1 * w1 + gamma * u2 * v2)
    return losses


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
        with no_autocast(student):
            q = ((x @ x.T) * (y @ y.T)).sum() / (size * size)
            r = y.sum(dim=1) @ x / size
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


def _coefficients_by_count(order: int, counts: Tensor, like: Tensor) -> list[Tensor]:
    """Return (α, β, γ) for each count, 0 where there are fewer labels than the order asks for."""
    exact = counts.cpu() if counts.device.type == "mps" else counts  # no float64 there
    enough = exact >= order
    values = instance_coefficients(order, exact.clamp(min=order).double())
    return [torch.where(enough, value, 0.0).to(like.device, like.dtype) for value in values]
