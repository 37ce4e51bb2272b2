"""The affinities of both relations as linear operators: the dis-occurrence one is a product, never a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcorr.grouping.label_groups import Relation

Array = NDArray[Any]


_NEGLIGIBLE = 1e-9


class AffinityOperator:
    r"""M⁺, or M⁻ = 1 − M⁺ off the diagonal, by its products.

    With z = x for the moment, and M⁺ sparse, ``M⁻ z = 1 (1ᵀ z) − z − M⁺ z``: a matrix of rank one, minus two sparse
    ones. Its degrees are ``d⁻ = (C − 1) − d⁺``. Nothing of size C·C is formed.

    Args:
        plus: M⁺ (C, C), float64, symmetric with a diagonal of 0; a SciPy CSR array, or a NumPy array.
        relation: "co" for M⁺, "dis" for M⁻.
    """

    def __init__(self, plus: Any, relation: Relation) -> None:
        self.plus = _without_negligible(plus)
        self.relation = relation
        self.size: int = plus.shape[0]
        together = np.asarray(self.plus.sum(axis=1)).reshape(-1)
        self.degrees: Array = together if relation == "co" else (self.size - 1) - together

    def __matmul__(self, x: Array) -> Array:
        """Return M x for x (C,) or (C, k)."""
        product: Array = self.plus @ x
        return product if self.relation == "co" else x.sum(axis=0) - x - product

    def normalized(self) -> Any:
        r"""Return A = D^(-1/2) M D^(-1/2) as a SciPy ``LinearOperator``; the Laplacian is 1 − A.

        Its largest eigenvalue is 1, with the eigenvector √d. All degrees have to be positive.
        """
        from scipy.sparse.linalg import LinearOperator

        scale = self.scale()

        def product(x: Array) -> Array:
            q = scale if x.ndim == 1 else scale[:, None]
            return q * (self @ (q * x))

        shape = (self.size, self.size)
        return LinearOperator(shape, matvec=product, matmat=product, rmatvec=product, rmatmat=product, dtype=np.float64)

    def normalized_matrix(self) -> Array:
        """Return A (C, C) as a matrix."""
        scale = self.scale()
        return scale[:, None] * self.matrix() * scale

    def matrix(self) -> Array:
        """Return M (C, C) as a matrix."""
        plus: Array = self.plus if isinstance(self.plus, np.ndarray) else self.plus.toarray()
        return plus if self.relation == "co" else (1 - np.eye(self.size)) - plus

    def scale(self) -> Array:
        """Return D^(-1/2) (C,)."""
        return 1 / np.sqrt(np.maximum(self.degrees, 1e-12))

    def restricted(self, labels: Array) -> AffinityOperator:
        """Return the operator of some of the labels, as if there were no others."""
        return AffinityOperator(self.plus[labels][:, labels], self.relation)


def _without_negligible(plus: Any) -> Any:
    """Drop affinities that a tiny ``tau`` makes next to nothing: they would connect labels by rounding errors."""
    if isinstance(plus, np.ndarray):
        return np.where(plus > _NEGLIGIBLE, plus, 0.0) if (plus <= _NEGLIGIBLE).any() else plus
    if (plus.data <= _NEGLIGIBLE).any():
        plus = plus.copy()
        plus.data[plus.data <= _NEGLIGIBLE] = 0.0
        plus.eliminate_zeros()
    return plus
