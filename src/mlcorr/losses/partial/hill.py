"""The Hill loss: the more probable an assumed negative, the less it pulls, since it may be a missing positive."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_flag, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses._focal import focal_positive
from mlcorr.losses.partial._entries import log_losses, read_entries


def hill_loss(
    input: Tensor,
    target: Tensor,
    *,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
    trust_negatives: bool = False,
    reduction: Reduction = "sum",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Σ of −y·(1 − pₘ)^γ·log pₘ + (1 − y)·(λ − p)·p², with pₘ = σ(input − margin) and p = σ(input).

    The negative term is the squared error p² times λ − p. With λ = 1.5 its slope is 3p²(1 − p)², a hill with its top at
    p = 1/2: a negative that the network is sure to be positive is left in peace.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label, which the
            paper's data write as 0.
        lamb: λ >= 0; below 1 the loss of a sure negative is below 0.
        margin: Taken off the logits of positives, >= 0.
        gamma: Focusing exponent >= 0 of positives.
        trust_negatives: What a 0 is: False takes it for −1, as in the paper; with True it is a known negative with
            −log(1 − p), and only −1 has the term above.
        reduction: "sum" (the official code's), "mean" over all entries, "batchmean" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. An empty batch gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``group`` no process group, or a parameter no number.
        ValueError: Shapes or devices differ, an unknown reduction, or a parameter is outside its range.

    Differs from the authors' code:
        Equal to it for 0/1 targets. Value and gradient are finite for every finite logit (there, a positive far below
        0 has an infinite logarithm); soft targets mix the two terms.

    Reference:
        Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels", 2021.

    Example:
        >>> import torch
        >>> from mlcorr.functional import hill_loss
        >>> logits = torch.tensor([[-6.0, 0.0, 6.0]], requires_grad=True)
        >>> hill_loss(logits, torch.tensor([[-1, -1, -1]])).backward()
        >>> logits.grad  # pushed down where undecided, hardly where sure
        tensor([[1.8251e-05, 1.8750e-01, 1.8250e-05]])
    """
    lamb, margin, gamma = _check_configuration(lamb, margin, gamma, trust_negatives, reduction)
    group = check_group("group", group)
    x, y, unknown = read_entries(input, target)
    p = x.sigmoid()
    hill = (lamb - p) * p**2
    if trust_negatives:
        _, negative = log_losses(x)
        hill = torch.where(unknown, hill, negative)
    return reduce(y * focal_positive(x - margin, gamma) + (1 - y) * hill, None, reduction, group)


class HillLoss(SharesGroup):
    """Module of :func:`mlcorr.functional.hill_loss`; the defaults, a sum among them, are the official code's.

    Parameters are those of the function.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import HillLoss
        >>> HillLoss(reduction="none")(torch.zeros(1, 2), torch.tensor([[1, -1]]))
        tensor([[0.7019, 0.2500]])
    """

    def __init__(
        self,
        *,
        lamb: float = 1.5,
        margin: float = 1.0,
        gamma: float = 2.0,
        trust_negatives: bool = False,
        reduction: Reduction = "sum",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.lamb, self.margin, self.gamma = _check_configuration(lamb, margin, gamma, trust_negatives, reduction)
        self.trust_negatives = trust_negatives
        self.reduction = reduction
        self.group = check_group("group", group)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.hill_loss`."""
        return hill_loss(
            input,
            target,
            lamb=self.lamb,
            margin=self.margin,
            gamma=self.gamma,
            trust_negatives=self.trust_negatives,
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"lamb={self.lamb:g}, margin={self.margin:g}, gamma={self.gamma:g}, "
            f"trust_negatives={self.trust_negatives}, reduction={self.reduction!r}"
        )


def _check_configuration(
    lamb: float, margin: float, gamma: float, trust_negatives: bool, reduction: Reduction
) -> tuple[float, float, float]:
    """Check all that is no tensor, and return the numbers of it."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("trust_negatives", trust_negatives)
    return (
        check_number("lamb", lamb, minimum=0.0),
        check_number("margin", margin, minimum=0.0),
        check_number("gamma", gamma, minimum=0.0),
    )
