"""Binary cross-entropy that knows unknown labels."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mlcorr._checks import check_choice, check_floating
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._precision import compute_dtype
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr._targets import check_target, split_target


def binary_cross_entropy_loss(
    input: Tensor, target: Tensor, *, reduction: Reduction = "batchmean", group: dist.ProcessGroup | None = None
) -> Tensor:
    """``F.binary_cross_entropy_with_logits`` over the known labels: summed over labels, averaged over rows.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label and has
            neither loss nor gradient.
        reduction: "batchmean" (Eq. 1 of MDKD), "mean" over known entries, "sum" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. Nothing known gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, or ``group`` no process group.
        ValueError: Shapes or devices differ, or an unknown reduction.

    Example:
        >>> import torch
        >>> from mlcorr.functional import binary_cross_entropy_loss
        >>> binary_cross_entropy_loss(torch.zeros(2, 3), torch.tensor([[1, 0, -1], [-1, -1, -1]]))
        tensor(1.3863)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    group = check_group("group", group)
    check_floating("input", input)
    check_target("target", target, "input", input)
    logits = input.to(compute_dtype(input))
    labels, known = split_target(target, logits.dtype)
    if known is None:
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        # Twice `where`, so that a NaN at an unknown label reaches neither value nor gradient.
        logits = torch.where(known, logits, 0.0)
        loss = torch.where(known, F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), 0.0)
    return reduce(loss, known, reduction, group)


class BinaryCrossEntropyLoss(SharesGroup):
    """Module of :func:`mlcorr.functional.binary_cross_entropy_loss`.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import BinaryCrossEntropyLoss
        >>> BinaryCrossEntropyLoss(reduction="mean")(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.6931)
    """

    def __init__(self, *, reduction: Reduction = "batchmean", group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.group = check_group("group", group)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.binary_cross_entropy_loss`."""
        return binary_cross_entropy_loss(input, target, reduction=self.reduction, group=self.group)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"reduction={self.reduction!r}"
