"""Bidirectional refinement: label features are mixed over their channels and over the labels, in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from mlcorr._checks import check_choice, check_floating, check_integer, check_number, check_sequence
from mlcorr._loading import WholeState
from mlcorr._precision import check_plain

RefinementPath: TypeAlias = Literal["representation", "category"]
_PATHS: tuple[RefinementPath, ...] = ("representation", "category")


class BidirectionalRefiner(WholeState):
    r"""Mean of two mixer paths over label features, one of them channels first, the other labels first.

    With M_r a perceptron over the channels of each label, M_c one over the labels of each channel, and four
    perceptrons in all::

        u = LN0(x)
        p1 = LN1(M_r1(u) + u);         q1 = M_c1(p1.mT).mT + p1        # path "representation"
        p2 = LN2(M_c2(u.mT).mT + u);   q2 = M_r2(p2) + p2              # path "category"
        y = (q1 + q2) / 2

    A perceptron is Linear, GELU, Dropout, Linear, Dropout, the layer norms are over the channels. The perceptrons over
    labels fix C: a checkpoint of another number of labels does not load.

    Args:
        num_labels: C.
        dim: D, the size of a label's feature vector.
        hidden_dim: Width of the perceptrons over channels; None is max(1, D // 16).
        hidden_labels: Width of the perceptrons over labels; None is C.
        dropout: Probability in [0, 1] of the perceptrons' dropout.
        paths: "representation", "category" or both. With one, it alone is the result, and the other has no parameters.

    Shape:
        - x: (..., C, D); float16, bfloat16, float32 or float64.
        - Output: (..., C, D) in the dtype of the input outside autocast.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or a parameter no number.
        ValueError: A parameter is out of range or ``x`` of another shape.

    Differs from the authors' code:
        There is none to compare with. Two misprints of the paper are corrected: Eq. 12 adds a (C, D) to a (D, C) tensor
        (the residual is transposed here), and Eq. 13 averages the first path before its second perceptron with the
        second path after it (here both are complete).

    Reference:
        Zhao et al., "Towards Space and Semantics: Object-Purified Representation Learning for Multi-Label Image
        Classification", ACM Multimedia 2025, Eqs. 11-13.

    Example:
        >>> import torch
        >>> from mlcorr import BidirectionalRefiner
        >>> BidirectionalRefiner(num_labels=20, dim=64)(torch.randn(8, 20, 64)).shape
        torch.Size([8, 20, 64])
    """

    def __init__(
        self,
        num_labels: int,
        dim: int,
        *,
        hidden_dim: int | None = None,
        hidden_labels: int | None = None,
        dropout: float = 0.0,
        paths: Sequence[RefinementPath] = _PATHS,
    ) -> None:
        super().__init__()
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.dim = check_integer("dim", dim, minimum=1)
        width = max(1, self.dim // 16) if hidden_dim is None else check_integer("hidden_dim", hidden_dim, minimum=1)
        height = num_labels if hidden_labels is None else check_integer("hidden_labels", hidden_labels, minimum=1)
        dropout = check_number("dropout", dropout, minimum=0.0, maximum=1.0)
        self.paths = _check_paths(paths)

        self.norm = nn.LayerNorm(self.dim)
        self.representation = _Path(self.dim, width, self.num_labels, height, dropout) if self._has(0) else None
        self.category = _Path(self.dim, width, self.num_labels, height, dropout) if self._has(1) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined label features."""
        check_floating("x", x, min_dim=2)
        if x.shape[-2] != self.num_labels or x.shape[-1] != self.dim:
            raise ValueError(f"x: expected the shape (..., {self.num_labels}, {self.dim}), got {tuple(x.shape)}")
        check_plain("x", x, self.norm, nn.LayerNorm)
        u = self.norm(x)
        refined: list[Tensor] = []
        if self.representation is not None:
            path = self.representation
            p = path.norm(path.over_channels(u) + u)
            refined.append(path.over_labels(p.mT).mT + p)  # Eq. 12, its residual transposed
        if self.category is not None:
            path = self.category
            p = path.norm(path.over_labels(u.mT).mT + u)
            refined.append(path.over_channels(p) + p)
        return refined[0] if len(refined) == 1 else (refined[0] + refined[1]) / 2

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"num_labels={self.num_labels}, dim={self.dim}, paths={self.paths}"

    def _has(self, index: int) -> bool:
        return _PATHS[index] in self.paths


class _Path(nn.Module):
    """The two perceptrons of a path and the layer norm between them."""

    def __init__(self, dim: int, hidden_dim: int, num_labels: int, hidden_labels: int, dropout: float) -> None:
        super().__init__()
        self.over_channels = _perceptron(dim, hidden_dim, dropout)
        self.over_labels = _perceptron(num_labels, hidden_labels, dropout)
        self.norm = nn.LayerNorm(dim)


def _perceptron(size: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, size), nn.Dropout(dropout)
    )


def _check_paths(paths: Sequence[RefinementPath]) -> tuple[RefinementPath, ...]:
    paths = check_sequence("paths", paths)
    for path in paths:
        check_choice("paths", path, _PATHS)
    if not paths:
        raise ValueError("paths: expected at least one of 'representation', 'category'; leave the module out for none")
    return tuple(path for path in _PATHS if path in paths)
