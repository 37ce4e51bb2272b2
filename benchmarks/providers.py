"""What is timed: each provider computes one of a few quantities in its own way.

Two providers of one quantity must agree: the gate in ``run.py`` holds each against that quantity in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case, Inputs
from mlcorr import MultiOrderDependencyLoss
from mlcorr.systems.mdkd import MDKDObjective

Loss = Callable[[Inputs], Tensor]


class Provider(NamedTuple):
    """``quantity`` names what ``build`` computes; without ``backward`` only the value is computed and timed."""

    quantity: str
    build: Callable[[Case], Loss]
    backward: bool = True
    largest: int = 1 << 62  # labels beyond which it would take too long


def _bce(case: Case) -> Loss:
    return lambda x: F.binary_cross_entropy_with_logits(x.student, x.target)


def _instance(case: Case) -> Loss:
    module = MultiOrderDependencyLoss(case.orders, level="instance")
    return lambda x: module(x.student, x.teacher)


def _batch(case: Case) -> Loss:
    module = MultiOrderDependencyLoss(case.orders, level="batch")
    return lambda x: module(x.student, x.teacher)


def _objective(case: Case) -> Loss:
    module = MDKDObjective(case.orders, level="instance")
    return lambda x: module(x.student, x.teacher, x.target)


def _compiled(build: Callable[[Case], Loss]) -> Callable[[Case], Loss]:
    return lambda case: torch.compile(build(case))


def _naive(case: Case) -> Loss:
    """The definition as the paper prints it: a loop over every label sequence, in Python numbers."""

    def loss(x: Inputs) -> Tensor:
        total = 0.0
        for s, t in zip(x.student.sigmoid().tolist(), x.teacher.sigmoid().tolist(), strict=True):
            for order in case.orders:
                summed, count = 0.0, 0
                for sequence in permutations(range(case.labels), order):
                    if sequence[0] < sequence[-1]:
                        difference = sum((t[k] - t[l]) ** 2 - (s[k] - s[l]) ** 2 for k, l in pairwise(sequence))
                        difference /= order - 1
                        distance = abs(difference)
                        summed += 0.5 * difference * difference if distance <= 1 else distance - 0.5
                        count += 1
                total += summed / count
        return torch.tensor(total / case.rows)

    return loss


class _Products(torch.autograd.Function):
    """The matrix products of the batch level and nothing else: the bound that it is held against."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        if a.shape[0] < a.shape[1]:
            ctx.grams = (a @ a.T, b @ b.T, a @ b.T)
        else:
            ctx.grams = (a.T @ b,)
        return a.new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        a, b = ctx.saved_tensors
        if len(ctx.grams) == 3:
            return ctx.grams[0] @ a + ctx.grams[1] @ b, None
        return a @ ctx.grams[0], None


def _products(case: Case) -> Loss:
    return lambda x: _Products.apply(x.student, x.teacher)


PROVIDERS = {
    "bce": Provider("bce", _bce),
    "bce-compile": Provider("bce", _compiled(_bce)),
    "naive": Provider("instance", _naive, backward=False, largest=80),
    "instance": Provider("instance", _instance),
    "instance-compile": Provider("instance", _compiled(_instance)),
    "objective": Provider("objective", _objective),
    "objective-compile": Provider("objective", _compiled(_objective)),
    "products": Provider("products", _products),
    "batch": Provider("batch", _batch),
}
