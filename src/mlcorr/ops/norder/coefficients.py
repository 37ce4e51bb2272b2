"""Orders and their weights as the three numbers that the closed form needs.

For a symmetric matrix D (C, C) with zero diagonal, the mean over all sequences of n distinct labels of
½·(mean of the n − 1 consecutive entries of D)² is cQ·Q + cR·R + cS·S², with Q = Σ D², R = Σ_k (Σ_l D_kl)² and
S = Σ D: two edges of a random sequence are the same, share a label, or are disjoint, and each case is a mean that
Q, R and S contain. The documentation derives it; the tests hold it against every sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Coefficients(NamedTuple):
    """What all orders and weights together become for one number of labels."""

    alpha: float
    beta: float
    gamma: float

    def scaled(self, factor: float) -> Coefficients:
        """Return those of ``factor`` times the loss."""
        return Coefficients(factor * self.alpha, factor * self.beta, factor * self.gamma)


def coefficients(orders: Iterable[tuple[int, float]], num_labels: int) -> Coefficients:
    """Return Σ over (order, weight) of weight·(α, β, γ) for ``num_labels`` labels, formed in Python floats.

    An instance's loss is then α·W2 + β·W1² + γ·U2·V2, a batch's is α·Σg² + (β − γ)·(Σg)² + 2γ·‖G‖²
    (``closed_form.py``). Orders beyond ``num_labels`` have no sequence and must not be asked for.
    """
    alpha = beta = gamma = 0.0
    pairs = num_labels * (num_labels - 1)
    triples = pairs * (num_labels - 2)
    quadruples = triples * (num_labels - 3)
    for order, weight in orders:
        edges = order - 1
        same = edges / pairs
        adjacent = 2 * (edges - 1) / triples if order >= 3 else 0.0
        disjoint = (edges - 1) * (edges - 2) / quadruples if order >= 4 else 0.0
        scale = weight / (2 * edges * edges)
        c_q = scale * (same - adjacent + 2 * disjoint)
        c_r = scale * (adjacent - 4 * disjoint)
        c_s = scale * disjoint
        alpha += 2 * num_labels * c_q + num_labels * num_labels * c_r
        beta += 4 * c_q + 3 * num_labels * c_r + 4 * num_labels * num_labels * c_s
        gamma += 2 * c_q
    return Coefficients(alpha, beta, gamma)
