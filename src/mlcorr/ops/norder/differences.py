"""The matrices D of pair dependencies, teacher's minus student's, for all that has to look at label pairs.

With u = t + s and v = t − s, (t_k − t_l)² − (s_k − s_l)² = (u_k − u_l)·(v_k − v_l): no difference of squares is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlcorr.ops.products import product


def instance_differences(student: Tensor, teacher: Tensor) -> Tensor:
    """Return D (B, C, C) of probabilities (B, C), one matrix for each instance."""
    u, v = teacher + student, teacher - student
    return (u.unsqueeze(-1) - u.unsqueeze(-2)) * (v.unsqueeze(-1) - v.unsqueeze(-2))


def batch_difference(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, dependency: str = "mean_square"
) -> Tensor:
    """Return D (C, C) of probabilities (B, C), one matrix for the batch.

    An entry outside ``mask`` is left out of every pair that it is part of, and the sum over instances is divided by
    the number of rows with a valid entry.
    """
    if mask is None:
        mask = torch.ones_like(student, dtype=torch.bool)
    m = mask.to(student.dtype)
    u, v = (teacher + student) * m, (teacher - student) * m
    rows = valid_rows(mask)
    if dependency == "square_of_sums":
        of_u, of_v = product(u.T, m), product(v.T, m)
        return (of_u - of_u.T) * (of_v - of_v.T) / rows
    half = product((u * v).T, m) - product(u.T, v)
    return (half + half.T) / rows


def valid_rows(mask: Tensor) -> Tensor:
    """Return the number of rows with a valid entry, at least 1, ()."""
    return mask.any(dim=-1).sum().clamp(min=1)
