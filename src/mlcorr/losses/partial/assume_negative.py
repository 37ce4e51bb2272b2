"""Assume negative (AN): what is not known to be positive is taken for negative, with label smoothing (AN-LS)."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses.partial._entries import log_losses, read_entries


def assume_negative_loss(
    input: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """BCE to target.clamp(min=0)·(1 − ε) + ε/2, with ε = label_smoothing: −1 and 0 are one; a mean over all entries.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label and counts as
            0.
        label_smoothing: ε in [0, 1]: a label is taken for what it says with the probability 1 − ε/2 only. 0 is AN;
            0.1 is AN-LS.
        reduction: "mean" over all entries (the official code's), "batchmean", "sum" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. An empty batch gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``label_smoothing`` no number, or ``group`` no process group.
        ValueError: Shapes or devices differ, an unknown reduction, or ``label_smoothing`` is outside [0, 1].

    Differs from the authors' code:
        ε/2 is the paper's; the code's ``ls_coef`` stands for ε/2, so that its 0.1 is 0.2 here. Logarithms are of
        logits, where the code adds 1e-5 to probabilities.

    Reference:
        Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021.

    Example:
        >>> import torch
        >>> from mlcorr.functional import assume_negative_loss
        >>> logits = torch.tensor([[2.0, -1.0, -1.0]])
        >>> assume_negative_loss(logits, torch.tensor([[1, 0, -1]]), reduction="none")
        tensor([[0.1269, 0.3133, 0.3133]])
        >>> assume_negative_loss(logits, torch.tensor([[1, 0, -1]]), label_smoothing=0.1)
        tensor(0.3178)
    """
    label_smoothing = _check_configuration(label_smoothing, reduction)
    group = check_group("group", group)
    x, y, _ = read_entries(input, target)
    positive, negative = log_losses(x, label_smoothing)
    return reduce(y * positive + (1 - y) * negative, None, reduction, group)


class AssumeNegativeLoss(SharesGroup):
    """Module of :func:`mlcorr.functional.assume_negative_loss`: AN, or AN-LS with ``label_smoothing=0.1``.

    Parameters are those of the function.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import AssumeNegativeLoss
        >>> AssumeNegativeLoss()(torch.zeros(2, 3), torch.tensor([[1, -1, -1], [-1, 1, -1]]))
        tensor(0.6931)
    """

    def __init__(
        self, *, label_smoothing: float = 0.0, reduction: Reduction = "mean", group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.label_smoothing = _check_configuration(label_smoothing, reduction)
        self.reduction = reduction
        self.group = check_group("group", group)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.assume_negative_loss`."""
        return assume_negative_loss(
            input, target, label_smoothing=self.label_smoothing, reduction=self.reduction, group=self.group
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"label_smoothing={self.label_smoothing:g}, reduction={self.reduction!r}"


def _check_configuration(label_smoothing: float, reduction: Reduction) -> float:
    check_choice("reduction", reduction, REDUCTIONS)
    return check_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
