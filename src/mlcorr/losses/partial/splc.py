"""Self-paced loss correction (SPLC): an assumed negative that the network is sure of counts as a positive."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_flag, check_integer, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses._focal import focal_positive
from mlcorr.losses.partial._entries import read_entries


def splc_loss(
    input: Tensor,
    target: Tensor,
    *,
    tau: float = 0.6,
    margin: float = 1.0,
    gamma: float = 2.0,
    correct: bool = True,
    trust_negatives: bool = False,
    reduction: Reduction = "sum",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Σ of y·L(input − margin) + (1 − y)·L(input where p > tau, else −input), with L(x) = −σ(−x)^γ·log σ(x).

    L is the focal loss of a positive, L(−x) that of a negative, and p = σ(input). The choice has no gradient.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label, which the
            paper's data write as 0.
        tau: Probability in [0, 1] above which what is not known to be positive counts as positive.
        margin: Taken off the logits of positives, >= 0, but not of corrected ones.
        gamma: Focusing exponent >= 0.
        correct: Whether to correct at all. The paper does not in its first epoch.
        trust_negatives: What a 0 is: False takes it for −1, as in the paper; with True it is a known negative and is
            never corrected.
        reduction: "sum" (the official code's), "mean" over all entries, "batchmean" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. An empty batch gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``group`` no process group, or a parameter no number.
        ValueError: Shapes or devices differ, an unknown reduction, or a parameter is outside its range.

    Differs from the authors' code:
        Equal to it for 0/1 targets. The gradient is finite for every γ (there, a power of a probability that is 0 has
        an infinite one for γ < 1); soft targets mix the two terms.

    Reference:
        Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels", 2021.

    Example:
        >>> import torch
        >>> from mlcorr.functional import splc_loss
        >>> logits = torch.tensor([[-2.0, 2.0]], requires_grad=True)
        >>> splc_loss(logits, torch.tensor([[-1, -1]])).backward()
        >>> logits.grad  # the first is pushed down, the second up
        tensor([[ 0.0049, -0.0049]])
    """
    tau, margin, gamma = _check_configuration(tau, margin, gamma, trust_negatives, reduction)
    check_flag("correct", correct)
    group = check_group("group", group)
    x, y, unknown = read_entries(input, target)
    signed = -x
    if correct:
        corrected = x.sigmoid() > tau
        if trust_negatives:
            corrected = corrected & unknown
        signed = torch.where(corrected, x, -x)
    loss = y * focal_positive(x - margin, gamma) + (1 - y) * focal_positive(signed, gamma)
    return reduce(loss, None, reduction, group)


class SPLCLoss(SharesGroup):
    """Module of :func:`mlcorr.functional.splc_loss`; the defaults, a sum among them, are the official code's.

    Args:
        change_epoch: The first epoch, counted from 0, that corrects. Other parameters are those of the function.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import SPLCLoss
        >>> criterion = SPLCLoss()
        >>> logits, target = torch.tensor([[3.0]]), torch.tensor([[-1]])
        >>> criterion(logits, target, epoch=0), criterion(logits, target, epoch=1)
        (tensor(2.7663), tensor(0.0001))
    """

    def __init__(
        self,
        *,
        tau: float = 0.6,
        change_epoch: int = 1,
        margin: float = 1.0,
        gamma: float = 2.0,
        trust_negatives: bool = False,
        reduction: Reduction = "sum",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.tau, self.margin, self.gamma = _check_configuration(tau, margin, gamma, trust_negatives, reduction)
        self.change_epoch = check_integer("change_epoch", change_epoch, minimum=0)
        self.trust_negatives = trust_negatives
        self.reduction = reduction
        self.group = check_group("group", group)

    def forward(self, input: Tensor, target: Tensor, epoch: int | None = None) -> Tensor:
        """Return the loss of an epoch, counted from 0; None corrects. See :func:`mlcorr.functional.splc_loss`."""
        return splc_loss(
            input,
            target,
            tau=self.tau,
            margin=self.margin,
            gamma=self.gamma,
            correct=epoch is None or check_integer("epoch", epoch, minimum=0) >= self.change_epoch,
            trust_negatives=self.trust_negatives,
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"tau={self.tau:g}, change_epoch={self.change_epoch}, margin={self.margin:g}, gamma={self.gamma:g}, "
            f"trust_negatives={self.trust_negatives}, reduction={self.reduction!r}"
        )


def _check_configuration(
    tau: float, margin: float, gamma: float, trust_negatives: bool, reduction: Reduction
) -> tuple[float, float, float]:
    """Check what function and module share and is no tensor, and return the numbers of it."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("trust_negatives", trust_negatives)
    return (
        check_number("tau", tau, minimum=0.0, maximum=1.0),
        check_number("margin", margin, minimum=0.0),
        check_number("gamma", gamma, minimum=0.0),
    )
