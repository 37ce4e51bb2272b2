"""Weak assume negative (WAN): what is not known to be positive is a negative of small weight."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_flag, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses.partial._entries import either, log_losses, read_entries


def weak_assume_negative_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: float | None = None,
    label_smoothing: float = 0.0,
    trust_negatives: bool = False,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""−y·log p − weight·(1 − y)·log(1 − p) with y = target.clamp(min=0), p = σ(input); a mean over all entries.

    With the default weight of 1/(C − 1) the C − 1 assumed negatives of a row weigh as much as the one positive that
    it is expected to have.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label, which the
            paper's data write as 0.
        weight: Of an assumed negative, >= 0. None is the paper's 1/(C − 1), and 1 where C is 1.
        label_smoothing: ε in [0, 1]: the loss of a label becomes 1 − ε/2 of itself and ε/2 of the opposite one's.
        trust_negatives: What a 0 is: False takes it for −1, as in the paper; with True it is a known negative of
            weight 1, and only −1 is weak.
        reduction: "mean" over all entries (the official code's), "batchmean", "sum" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. An empty batch gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``group`` no process group, or a parameter no number.
        ValueError: Shapes or devices differ, an unknown reduction, or a parameter is outside its range.

    Differs from the authors' code:
        Equal to it for 0/1 targets with its 1e-5 inside logarithms at 0. Theirs has no label smoothing, and divides by
        zero for a single label.

    Reference:
        Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021.

    Example:
        >>> import torch
        >>> from mlcorr.functional import weak_assume_negative_loss
        >>> target = torch.tensor([[1, 0, -1]])
        >>> weak_assume_negative_loss(torch.zeros(1, 3), target, reduction="none")
        tensor([[0.6931, 0.3466, 0.3466]])
        >>> weak_assume_negative_loss(torch.zeros(1, 3), target, trust_negatives=True, reduction="none")
        tensor([[0.6931, 0.6931, 0.3466]])
    """
    weight, label_smoothing = _check_configuration(weight, label_smoothing, trust_negatives, reduction)
    group = check_group("group", group)
    x, y, unknown = read_entries(input, target)
    if weight is None:
        weight = 1 / max(x.shape[-1] - 1, 1)
    positive, negative = log_losses(x, label_smoothing)
    factor: Tensor | float = either(unknown, weight, 1.0, x) if trust_negatives else weight
    # The factors first: a large loss times a large weight overflows, and 0 times that is NaN.
    return reduce(y * positive + (1 - y) * factor * negative, None, reduction, group)


class WeakAssumeNegativeLoss(SharesGroup):
    """Module of :func:`mlcorr.functional.weak_assume_negative_loss`; the defaults are the paper's.

    Parameters are those of the function.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import WeakAssumeNegativeLoss
        >>> WeakAssumeNegativeLoss(reduction="batchmean")(torch.zeros(1, 3), torch.tensor([[1, -1, -1]]))
        tensor(1.3863)
    """

    def __init__(
        self,
        *,
        weight: float | None = None,
        label_smoothing: float = 0.0,
        trust_negatives: bool = False,
        reduction: Reduction = "mean",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.label_smoothing = _check_configuration(weight, label_smoothing, trust_negatives, reduction)
        self.trust_negatives = trust_negatives
        self.reduction = reduction
        self.group = check_group("group", group)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.weak_assume_negative_loss`."""
        return weak_assume_negative_loss(
            input,
            target,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            trust_negatives=self.trust_negatives,
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"weight={self.weight}, label_smoothing={self.label_smoothing:g}, "
            f"trust_negatives={self.trust_negatives}, reduction={self.reduction!r}"
        )


def _check_configuration(
    weight: float | None, label_smoothing: float, trust_negatives: bool, reduction: Reduction
) -> tuple[float | None, float]:
    """Check all that is no tensor, and return the numbers of it."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("trust_negatives", trust_negatives)
    return (
        None if weight is None else check_number("weight", weight, minimum=0.0),
        check_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0),
    )
