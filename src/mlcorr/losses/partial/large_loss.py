"""Large losses (LL): of the unknown labels, taken for negatives, those with the largest losses may be positives."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_integer, check_number
from mlcorr._distributed import SharesGroup, check_group, global_number
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr._targets import check_target
from mlcorr.losses.partial._entries import largest, log_losses, read_entries

_MODIFICATIONS = ("rejection", "correction")
_SCHEMES = ("rejection", "temporary_correction", "permanent_correction")


def large_loss(
    input: Tensor,
    target: Tensor,
    *,
    share: float,
    modification: Literal["rejection", "correction"] = "rejection",
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """BCE to target.clamp(min=0), of whose large losses at unknown labels some are set to 0 or corrected; a mean.

    The ``ceil(share * target.numel())`` unknown entries with the largest loss, that is, with the largest logits, are
    modified; all unknown ones where there are fewer. "rejection" sets their loss to 0. "correction" takes them for
    positives: ``assume_negative_loss(input, correct_large_losses(input, target, share=share))``.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64. All leading dimensions together are the batch.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label. What is known
            is never modified.
        share: Of all entries, known ones too, in [0, 1]. The paper's grows by a constant in every epoch; see
            :class:`mlcorr.LargeLoss`, which is also what to compile: a compiled function is compiled anew for every
            share. It is a share of the batch of all ranks with ``group``; the parts of an accumulated batch modify a
            share each.
        modification: "rejection" (LL-R) or "correction" (LL-Ct and LL-Cp).
        reduction: "mean" over all entries, rejected ones included (the official code's), "batchmean", "sum" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. An empty batch gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``share`` no number, or ``group`` no process group.
        ValueError: Shapes or devices differ, an unknown choice, or ``share`` is outside [0, 1].

    Differs from the authors' code:
        Unknown labels are −1; there, 0 (pass −1 for what it passes as 0). Equal to it where losses differ and at least
        that many labels are unknown; with fewer, it modifies known labels, too, and of equal losses it modifies all,
        where here the first come first.

    Reference:
        Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022.

    Example:
        >>> import torch
        >>> from mlcorr.functional import large_loss
        >>> logits = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
        >>> target = torch.tensor([[1, -1, -1, 0]])
        >>> large_loss(logits, target, share=0.25, reduction="none")
        tensor([[0.3133, 0.1269, 0.0000, 4.0181]])
        >>> large_loss(logits, target, share=0.25, modification="correction", reduction="none")
        tensor([[0.3133, 0.1269, 0.0486, 4.0181]])
    """
    check_choice("modification", modification, _MODIFICATIONS)
    check_choice("reduction", reduction, REDUCTIONS)
    share = check_number("share", share, minimum=0.0, maximum=1.0)
    group = check_group("group", group)
    x, y, unknown = read_entries(input, target)
    modified = _large(x, unknown, share, group)
    if modification == "correction":
        y = torch.where(modified, 1.0, y)
    positive, negative = log_losses(x)
    loss = y * positive + (1 - y) * negative
    if modification == "rejection":
        loss = torch.where(modified, 0.0, loss)
    return reduce(loss, None, reduction, group)


def correct_large_losses(
    input: Tensor, target: Tensor, *, share: float, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Return ``target`` with 1 where an unknown label's loss is large: what LL-Cp writes back into the data set.

    The entries are those that :func:`mlcorr.functional.large_loss` modifies in the same call. ``target`` itself stays
    as it is; the caller has the indices of the batch's rows and stores the result there.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64. All leading dimensions together are the batch.
        target: (..., C), bool, integer or floating point; −1 is an unknown label.
        share: Of all entries, known ones too, in [0, 1].
        group: Process group that the batch is spread over, or None; the share is then one of the whole batch.

    Returns:
        (..., C) of the dtype of ``target``.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``share`` no number, or ``group`` no process group.
        ValueError: Shapes or devices differ, or ``share`` is outside [0, 1].

    Differs from the authors' code:
        It writes back one entry fewer than it corrects in the loss.

    Reference:
        Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022.

    Example:
        >>> import torch
        >>> from mlcorr.functional import correct_large_losses
        >>> labels = torch.tensor([[1, -1, -1, 0], [-1, -1, 1, 0], [0, 0, 1, 1]])  # the data set's
        >>> rows, logits = torch.tensor([1, 0]), torch.tensor([[0.0, 2.0, 3.0, -3.0], [1.0, -2.0, 1.5, 4.0]])
        >>> labels[rows] = correct_large_losses(logits, labels[rows], share=0.125)
        >>> labels
        tensor([[ 1, -1, -1,  0],
                [-1,  1,  1,  0],
                [ 0,  0,  1,  1]])
    """
    share = check_number("share", share, minimum=0.0, maximum=1.0)
    group = check_group("group", group)
    x, _, unknown = read_entries(input, target)
    filled = check_target("target", target, "input", input).masked_fill(_large(x, unknown, share, group), 1)
    return filled.to(target.dtype)


class LargeLoss(SharesGroup):
    """Module of :func:`mlcorr.functional.large_loss` for an epoch: LL-R, LL-Ct or LL-Cp.

    Args:
        relative_share: In [0, 1]; the official program offers 0.001 to 0.005.
        modification: "rejection" (LL-R) and "temporary_correction" (LL-Ct) modify a share of
            ``epoch * relative_share`` of the entries. "permanent_correction" (LL-Cp) corrects ``relative_share`` from
            epoch 1 on, because what it corrected stays corrected, if you write it back with
            :func:`mlcorr.functional.correct_large_losses`.
        reduction: As for the function.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import LargeLoss
        >>> from mlcorr.functional import correct_large_losses
        >>> criterion = LargeLoss(relative_share=0.25, modification="permanent_correction")
        >>> logits, target = torch.tensor([[1.0, -2.0, 3.0, 4.0]]), torch.tensor([[1, -1, -1, 0]])
        >>> criterion(logits, target, epoch=0), criterion(logits, target, epoch=1)
        (tensor(1.8767), tensor(1.1267))
        >>> correct_large_losses(logits, target, share=criterion.share(epoch=1))
        tensor([[ 1, -1,  1,  0]])
    """

    def __init__(
        self,
        *,
        relative_share: float,
        modification: Literal["rejection", "temporary_correction", "permanent_correction"] = "rejection",
        reduction: Reduction = "mean",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_choice("modification", modification, _SCHEMES)
        check_choice("reduction", reduction, REDUCTIONS)
        self.relative_share = check_number("relative_share", relative_share, minimum=0.0, maximum=1.0)
        self.modification = modification
        self.reduction = reduction
        self.group = check_group("group", group)

    def share(self, epoch: int) -> float:
        """Return the share of entries that an epoch, counted from 0, modifies: none in the first."""
        epoch = check_integer("epoch", epoch, minimum=0)
        steps = min(epoch, 1) if self.modification == "permanent_correction" else epoch
        return min(steps * self.relative_share, 1.0)

    def forward(self, input: Tensor, target: Tensor, epoch: int) -> Tensor:
        """Return the loss of an epoch, counted from 0; see :func:`mlcorr.functional.large_loss`."""
        return large_loss(
            input,
            target,
            share=self.share(epoch),
            modification="rejection" if self.modification == "rejection" else "correction",
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"relative_share={self.relative_share:g}, modification={self.modification!r}, reduction={self.reduction!r}"
        )


def _large(x: Tensor, unknown: Tensor, share: float, group: dist.ProcessGroup | None) -> Tensor:
    """Return where the loss of an unknown label is large. As −log(1 − p) it grows with the logit, which ties less."""
    # Rounded up: 0.3 of 10 entries are 3, not the 4 of 3.0000000000000004. A file of an exported program holds no ceil.
    count = math.trunc(share * global_number(x.numel(), group, x.device) + (1 - 1e-6))
    return largest(x, unknown, count, group)
