"""Group-wise linear classifier: each label has its own weight vector and bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mlcorr._checks import check_floating, check_integer
from mlcorr._loading import WholeState
from mlcorr._precision import check_dtype


def group_wise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""One logit per label from the label's own feature vector: ``(x * weight).sum(-1) + bias``.

    Args:
        x: (..., C, D), a feature vector per label; float16, bfloat16, float32 or float64.
        weight: (C, D) of the dtype of ``x``.
        bias: (C,) or None.

    Returns:
        (..., C) in the dtype of ``x``; under autocast in that of its matrix products, as of ``F.linear``.

    Raises:
        TypeError: An argument is no floating-point tensor, or ``weight`` of another dtype than ``x`` outside autocast.
        ValueError: Shapes do not fit.

    Differs from the authors' code:
        There is none of OPRL to compare with; the form is that of Query2Label's classifier.

    Reference:
        Zhao et al., ACM Multimedia 2025, Eq. 14; Liu et al., "Query2Label", arXiv:2107.10834.

    Example:
        >>> import torch
        >>> from mlcorr.functional import group_wise_linear
        >>> group_wise_linear(torch.ones(4, 3, 2), torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 5.0]])).shape
        torch.Size([4, 3])
    """
    check_floating("x", x, min_dim=2)
    check_floating("weight", weight)
    if weight.shape != x.shape[-2:]:
        raise ValueError(f"weight: expected the shape (C, D) = {tuple(x.shape[-2:])} of x, got {tuple(weight.shape)}")
    check_dtype("weight", weight, "x", x)
    # A matrix product and no sum of products: in half precision it accumulates in float32.
    if bias is None:
        return torch.einsum("...cd,cd->...c", x, weight)
    check_floating("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected the shape (C,) = {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if bias.device != x.device:
        raise ValueError(f"bias: expected the device of x, {x.device}, got {bias.device}")
    logits = torch.einsum("...cd,cd->...c", x, weight)
    return logits + bias.to(logits.dtype)


class GroupWiseLinear(WholeState):
    """Module of :func:`mlcorr.functional.group_wise_linear`: a weight (C, D) and a bias (C,), begun as `nn.Linear`'s.

    Args:
        num_labels: C.
        dim: D, the size of a label's feature vector.

    Shape:
        - x: (..., C, D).
        - Output: (..., C).

    Example:
        >>> import torch
        >>> from mlcorr import GroupWiseLinear
        >>> GroupWiseLinear(num_labels=20, dim=64)(torch.randn(8, 20, 64)).shape
        torch.Size([8, 20])
    """

    def __init__(self, num_labels: int, dim: int) -> None:
        super().__init__()
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.dim = check_integer("dim", dim, minimum=1)
        self.weight = nn.Parameter(torch.empty(self.num_labels, self.dim))
        self.bias = nn.Parameter(torch.empty(self.num_labels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1/√D."""
        bound = 1 / math.sqrt(self.dim)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; see :func:`mlcorr.functional.group_wise_linear`."""
        check_floating("x", x, min_dim=2)
        if x.shape[-2:] != self.weight.shape:
            raise ValueError(f"x: expected the shape (..., {self.num_labels}, {self.dim}), got {tuple(x.shape)}")
        check_dtype("x", x, "the weights", self.weight)
        return group_wise_linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"num_labels={self.num_labels}, dim={self.dim}"
