"""Partial BCE: binary cross-entropy over the known labels, each row weighed by how many of them it has."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses.partial._entries import log_losses, read_entries

_LOWEST = -sys.float_info.max  # here, since not all compilers can negate it


def partial_bce_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = -4.45,
    beta: float = 5.45,
    gamma: float = 1.0,
    reduction: Reduction = "batchmean",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""g(s)/C · BCE over known labels, with g(s) = alpha·s^gamma + beta and s the share of a row that is known.

    The paper's g falls from 5 for a tenth of the labels to 1 for all, so that a row with few known labels is not lost
    beside one with many. ``alpha=1, beta=0, gamma=-1`` is each row's mean over its known labels; ``alpha=0, beta=1``
    is the sum of the known divided by C.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64. A row is the last dimension.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label and has
            neither loss nor gradient.
        alpha: Slope of g.
        beta: Offset of g.
        gamma: Exponent of g; may be negative, since a row without a known label has no loss anyhow.
        reduction: "batchmean" (the paper's: summed over labels, averaged over rows with a known label), "mean" over
            known entries, "sum" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. Nothing known gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``group`` no process group, or a parameter no number.
        ValueError: Shapes or devices differ, or an unknown reduction.

    Reference:
        Durand et al., "Learning a Deep ConvNet for Multi-label Classification with Partial Labels", CVPR 2019.
        The defaults are the values that give the paper's g(0.1) = 5 and g(1) = 1, rounded.

    Example:
        >>> import torch
        >>> from mlcorr.functional import partial_bce_loss
        >>> target = torch.tensor([[1, 0, 1, 0], [1, -1, -1, -1]])
        >>> partial_bce_loss(torch.zeros(2, 4), target, reduction="none")
        tensor([[0.1733, 0.1733, 0.1733, 0.1733],
                [0.7516, 0.0000, 0.0000, 0.0000]])
    """
    alpha, beta, gamma = _check_configuration(alpha, beta, gamma, reduction)
    group = check_group("group", group)
    x, y, unknown = read_entries(input, target)
    known = ~unknown
    positive, negative = log_losses(torch.where(known, x, 0.0))  # a NaN at an unknown label stays there

    labels = max(x.shape[-1], 1)
    share = known.sum(dim=-1, keepdim=True).clamp(min=1).to(x.dtype) / labels
    factor = (alpha * share**gamma + beta) / labels
    loss = torch.where(known, factor * (y * positive + (1 - y) * negative), 0.0)
    return reduce(loss, known, reduction, group)


class PartialBCELoss(SharesGroup):
    """Module of :func:`mlcorr.functional.partial_bce_loss`; the defaults are the paper's.

    Parameters are those of the function.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import PartialBCELoss
        >>> PartialBCELoss()(torch.zeros(2, 4), torch.tensor([[1, 0, 1, 0], [1, -1, -1, -1]]))
        tensor(0.7224)
    """

    def __init__(
        self,
        *,
        alpha: float = -4.45,
        beta: float = 5.45,
        gamma: float = 1.0,
        reduction: Reduction = "batchmean",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma = _check_configuration(alpha, beta, gamma, reduction)
        self.reduction = reduction
        self.group = check_group("group", group)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.partial_bce_loss`."""
        return partial_bce_loss(
            input,
            target,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"alpha={self.alpha:g}, beta={self.beta:g}, gamma={self.gamma:g}, reduction={self.reduction!r}"


def _check_configuration(alpha: float, beta: float, gamma: float, reduction: Reduction) -> tuple[float, float, float]:
    check_choice("reduction", reduction, REDUCTIONS)
    return (
        check_number("alpha", alpha, minimum=_LOWEST),
        check_number("beta", beta, minimum=_LOWEST),
        check_number("gamma", gamma, minimum=_LOWEST),
    )
