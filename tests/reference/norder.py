"""The n-order dependency losses by the definition: a loop over every label sequence (MDKD, Eqs. 4-14).

Every number is a zero-dimensional float64 tensor, so that autograd gives the gradient of the definition too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, permutations

import torch
from torch import Tensor


def label_sequences(labels: Sequence[int], order: int) -> Iterator[tuple[int, ...]]:
    """Sequences of distinct labels; a sequence and its reverse are one."""
    return (sequence for sequence in permutations(labels, order) if sequence[0] < sequence[-1])


def huber(x: Tensor, delta: float) -> Tensor:
    """Eq. 5."""
    return 0.5 * x * x if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)


def instance_dependency(p: Tensor, i: int, k: int, l: int) -> Tensor:
    """Eq. 10."""
    return (p[i, k] - p[i, l]) ** 2


def mean_square_dependency(p: Tensor, rows: Sequence[int], k: int, l: int) -> Tensor:
    """The text of section 3.1: mean square difference between two sets."""
    return sum(((p[i, k] - p[i, l]) ** 2 for i in rows), torch.zeros((), dtype=p.dtype)) / len(rows)


def square_of_sums_dependency(p: Tensor, rows: Sequence[int], k: int, l: int) -> Tensor:
    """Eq. 4 as printed."""
    difference = sum((p[i, k] for i in rows), torch.zeros((), dtype=p.dtype)) - sum(p[i, l] for i in rows)
    return difference**2 / len(rows)


def order_loss(difference: Mapping[tuple[int, int], Tensor], labels: Sequence[int], order: int, delta: float) -> Tensor:
    """Eqs. 8 and 13: mean over sequences of Huber(mean of the pair differences along the sequence)."""
    losses = [
        huber(sum(difference[k, l] for k, l in pairwise(sequence)) / (order - 1), delta)
        for sequence in label_sequences(labels, order)
    ]
    return torch.stack(losses).mean()


def instance_loss(student: Tensor, teacher: Tensor, orders: Mapping[int, float], delta: float = 1.0) -> Tensor:
    """Eqs. 10-14 for each instance: (B,)."""
    labels = range(student.shape[1])
    rows = []
    for i in range(student.shape[0]):
        difference = {
            (k, l): instance_dependency(teacher, i, k, l) - instance_dependency(student, i, k, l)
            for k, l in permutations(labels, 2)
        }
        rows.append(sum(weight * order_loss(difference, labels, n, delta) for n, weight in orders.items()))
    return torch.stack(rows)


def batch_loss(
    student: Tensor,
    teacher: Tensor,
    orders: Mapping[int, float],
    delta: float = 1.0,
    batch_dependency: str = "mean_square",
) -> Tensor:
    """Eqs. 4-9: ()."""
    labels, rows = range(student.shape[1]), range(student.shape[0])
    dependency = mean_square_dependency if batch_dependency == "mean_square" else square_of_sums_dependency
    difference = {
        (k, l): dependency(teacher, rows, k, l) - dependency(student, rows, k, l) for k, l in permutations(labels, 2)
    }
    return sum(weight * order_loss(difference, labels, n, delta) for n, weight in orders.items())


def order_losses(differences: Tensor, order: int, delta: float, valid: Tensor) -> Tensor:
    """``order_loss`` of each matrix (C, C) over its valid labels: (N,), 0 where there is no sequence."""
    losses = []
    for matrix, mask in zip(differences, valid, strict=True):
        labels = [k for k, is_valid in enumerate(mask.tolist()) if is_valid]
        difference = {(k, l): matrix[k, l] for k, l in permutations(labels, 2)}
        exists = len(labels) >= order
        losses.append(order_loss(difference, labels, order, delta) if exists else matrix.new_zeros(()))
    return torch.stack(losses)
