"""The n-order losses by the definition where some entries are left out (partial labels)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import torch
from torch import Tensor

from tests.reference.norder import instance_dependency, order_loss


def instance_losses(
    student: Tensor, teacher: Tensor, mask: Tensor, order: int, delta: float = 1.0
) -> dict[int, Tensor]:
    """The loss of each instance that has a sequence of valid labels, by row."""
    losses = {}
    for i, row in enumerate(mask.tolist()):
        labels = [k for k, valid in enumerate(row) if valid]
        if len(labels) >= order:
            difference = {
                (k, l): instance_dependency(teacher, i, k, l) - instance_dependency(student, i, k, l)
                for k, l in permutations(labels, 2)
            }
            losses[i] = order_loss(difference, labels, order, delta)
    return losses


def instance_mean(
    student: Tensor, teacher: Tensor, mask: Tensor, orders: Mapping[int, float], delta: float = 1.0
) -> Tensor:
    """Σ λ_n · mean of L_n over the instances that have a sequence of n valid labels."""
    total = 0 * student.sum() + 0 * teacher.sum()
    for order, weight in orders.items():
        losses = list(instance_losses(student, teacher, mask, order, delta).values())
        if losses:
            total = total + weight * torch.stack(losses).mean()
    return total


def batch_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    orders: Mapping[int, float],
    delta: float = 1.0,
    batch_dependency: str = "mean_square",
) -> Tensor:
    """An entry is left out of every pair that it is part of; B′ counts the rows with a valid entry."""
    labels = range(student.shape[1])
    rows = max(sum(any(row) for row in mask.tolist()), 1)
    valid = mask.tolist()
    difference = {}
    for k, l in permutations(labels, 2):
        both = [i for i in range(student.shape[0]) if valid[i][k] and valid[i][l]]
        zero = 0 * student.sum() + 0 * teacher.sum()
        if batch_dependency == "mean_square":
            t, s = (sum(((p[i, k] - p[i, l]) ** 2 for i in both), zero) for p in (teacher, student))
        else:
            t, s = (sum((p[i, k] - p[i, l] for i in both), zero) ** 2 for p in (teacher, student))
        difference[k, l] = (t - s) / rows
    return sum(weight * order_loss(difference, labels, order, delta) for order, weight in orders.items())
