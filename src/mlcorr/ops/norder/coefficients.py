"""Orders and their weights as the three numbers that the closed form needs.

For a symmetric matrix D (C, C) with zero diagonal, the mean over all sequences of n distinct labels of
½·(mean of the n − 1 consecutive entries of D)² is cQ·Q + cR·R + cS·S², with Q = Σ D², R = Σ_k (Σ_l D_kl)² and
S = Σ D: two edges of a random sequence are the same, share a label, or are disjoint, and each case is a mean that
Q, R and S contain. The documentation derives it; the tests hold it against every sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, overload

from torch import Tensor


class Coefficients(NamedTuple):
    """What all orders and weights together become for one number of labels."""

    alpha: float
    beta: float
    gamma: float

    def scaled(self, factor: float) -> Coefficients:
        """Return those of ``factor`` times the loss."""
        return Coefficients(factor * self.alpha, factor * self.beta, factor * self.gamma)


@overload
def matrix_coefficients(order: int, num_labels: int) -> tuple[float, float, float]: ...
@overload
def matrix_coefficients(order: int, num_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
def matrix_coefficients(order, num_labels):  # type: ignore[no-untyped-def]
    """Return (cQ, cR, cS) of one order, for a Python number of labels or a float64 tensor of them, >= ``order``."""
    edges = order - 1
    pairs = num_labels * (num_labels - 1)
    triples = pairs * (num_labels - 2)
    same = edges / pairs
    adjacent = 2 * (edges - 1) / triples if order >= 3 else 0 * same
    disjoint = (edges - 1) * (edges - 2) / (triples * (num_labels - 3)) if order >= 4 else 0 * same
    scale = 1 / (2 * edges * edges)
    return scale * (same - adjacent + 2 * disjoint), scale * (adjacent - 4 * disjoint), scale * disjoint


@overload
def instance_coefficients(order: int, num_labels: int) -> tuple[float, float, float]: ...
@overload
def instance_coefficients(order: int, num_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
def instance_coefficients(order, num_labels):  # type: ignore[no-untyped-def]
    """Return (α, β, γ) of one order, for a Python number of labels or a float64 tensor of them, >= ``order``."""
    c_q, c_r, c_s = matrix_coefficients(order, num_labels)
    squared = num_labels * num_labels
    return (
        2 * num_labels * c_q + squared * c_r,
        4 * c_q + 3 * num_labels * c_r + 4 * squared * c_s,
        2 * c_q,
    )


def coefficients(orders: Iterable[tuple[int, float]], num_labels: int) -> Coefficients:
    """Return Σ over (order, weight) of weight·(α, β, γ) for ``num_labels`` labels, formed in Python floats.

    An instance's loss is then α·W2 + β·W1² + γ·U2·V2, a batch's is α·Σg² + (β − γ)·(Σg)² + 2γ·‖G‖²
    (``closed_form.py``). Orders beyond ``num_labels`` have no sequence and must not be asked for.
    """
    alpha = beta = gamma = 0.0
    for order, weight in orders:
        a, b, c = instance_coefficients(order, num_labels)
        alpha, beta, gamma = alpha + weight * a, beta + weight * b, gamma + weight * c
    return Coefficients(alpha, beta, gamma)
