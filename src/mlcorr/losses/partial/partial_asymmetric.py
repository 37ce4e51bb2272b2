"""The partial asymmetric loss (P-ASL), class-aware and selective: unknown labels that are likely are left out."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_flag, check_floating, check_integer, check_number
from mlcorr._distributed import SharesGroup, check_group, global_number
from mlcorr._loading import WholeState
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr.losses._focal import focal_terms
from mlcorr.losses.partial._entries import either, largest, read_entries


def partial_asymmetric_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma_neg: float = 1.0,
    gamma_pos: float = 0.0,
    gamma_unknown: float = 2.0,
    clip: float = 0.0,
    alpha_neg: float = 1.0,
    alpha_pos: float = 1.0,
    alpha_unknown: float = 1.0,
    prior: Tensor | None = None,
    prior_threshold: float = 0.05,
    likelihood_topk: int = 5,
    detach_focal: bool = True,
    reduction: Reduction = "sum",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Σ of −y·α⁺·(1 − p)^γ⁺·log p − (1 − y)·α·q^γ·log(1 − q), with q = max(p − clip, 0) and p = σ(input).

    α and γ are ``alpha_neg`` and ``gamma_neg`` at known labels, ``alpha_unknown`` and ``gamma_unknown`` at unknown
    ones. An unknown label is taken for a negative (y = 0), unless it is ignored: because its class is frequent, that is
    ``prior > prior_threshold``, or because it is among the ``likelihood_topk``·(number of rows) unknown entries of
    the batch with the largest logits. Neither choice has a gradient.

    Args:
        input: Logits (..., C); float16, bfloat16, float32 or float64. All leading dimensions together are the batch.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label.
        gamma_neg: Focusing exponent >= 0 of known negatives.
        gamma_pos: Focusing exponent >= 0 of known positives.
        gamma_unknown: Focusing exponent >= 0 of unknown labels.
        clip: Probability margin in [0, 1]: negatives below it cost nothing.
        alpha_neg: Factor >= 0 on known negatives.
        alpha_pos: Factor >= 0 on known positives.
        alpha_unknown: Factor >= 0 on unknown labels.
        prior: (C,) floating point, how frequent each class is in truth. Counts of known positives are a poor estimate;
            the paper trains a network first on known labels alone (:class:`mlcorr.BinaryCrossEntropyLoss`) and takes
            the mean of its probabilities over the training set. None ignores by likelihood only.
        prior_threshold: In [0, 1].
        likelihood_topk: >= 0, per row; 0 ignores by the prior only. The batch is that of one call, and with ``group``
            that of all ranks; the parts of an accumulated batch choose each for themselves.
        detach_focal: Treat the powers as constants in the gradient, as the official code does, and so in second
            derivatives too.
        reduction: "sum" (the official code's), "mean" over all entries, ignored ones included, "batchmean" or "none".
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 logits. An empty batch gives 0.

    Raises:
        TypeError: ``input`` or ``prior`` is no floating-point tensor, ``group`` no process group, or a parameter no
            number.
        ValueError: Shapes or devices differ, an unknown reduction, or a parameter is outside its range.

    Differs from the authors' code:
        Equal to its "selective" mode for targets of 1, 0 and −1, with its clamp of logarithms at 0. Value and gradient
        are finite for every finite logit, and for every γ. A ``prior_threshold`` of 0 is one (there it switches the
        prior off). Of equally likely entries the first are ignored. The defaults are those of its training program;
        its examples for COCO set both γ⁻ and ``gamma_unknown`` to 4 and the threshold to 0.5.

    Reference:
        Ben-Baruch et al., "Multi-label Classification with Partial Annotations using Class-aware Selective Loss",
        CVPR 2022.

    Example:
        >>> import torch
        >>> from mlcorr.functional import partial_asymmetric_loss
        >>> logits = torch.tensor([[1.0, -1.0, 2.0, 0.0]])
        >>> target = torch.tensor([[1, 0, -1, -1]])
        >>> partial_asymmetric_loss(logits, target, likelihood_topk=1, reduction="none")  # the third is likely
        tensor([[0.3133, 0.0842, 0.0000, 0.1733]])
    """
    gamma_neg, gamma_pos, gamma_unknown = _check_exponents(gamma_neg, gamma_pos, gamma_unknown)
    alpha_neg, alpha_pos, alpha_unknown = _check_factors(alpha_neg, alpha_pos, alpha_unknown)
    clip, prior_threshold, likelihood_topk = _check_choices(
        clip, prior_threshold, likelihood_topk, detach_focal, reduction
    )
    group = check_group("group", group)
    x, y, unknown = read_entries(input, target)
    if prior is not None:
        _check_prior(prior, x)

    asked = group if likelihood_topk else None  # where none is chosen, the ranks need not meet
    rows = global_number(math.prod(x.shape[:-1]), asked, x.device)
    ignored = largest(x, unknown, min(likelihood_topk, x.shape[-1]) * rows, asked)
    if prior is not None:
        ignored = ignored | (unknown & (prior > prior_threshold))
    x = torch.where(ignored, 0.0, x)  # what an ignored logit is, even NaN, reaches neither value nor gradient
    positive, negative = focal_terms(
        x,
        gamma_pos=gamma_pos,
        gamma_neg=either(unknown, gamma_unknown, gamma_neg, x),
        clip=clip,
        detach=detach_focal,
    )
    alpha = either(unknown, alpha_unknown, alpha_neg, x)
    loss = y * alpha_pos * positive + (1 - y) * alpha * negative
    return reduce(torch.where(ignored, 0.0, loss), None, reduction, group)


class PartialAsymmetricLoss(SharesGroup, WholeState):
    """Module of :func:`mlcorr.functional.partial_asymmetric_loss`; the defaults are those of the official program.

    Parameters are those of the function; ``prior`` becomes a buffer, so that it moves with ``.to()``. In half precision
    it is rounded before it is compared.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import PartialAsymmetricLoss
        >>> criterion = PartialAsymmetricLoss(prior=torch.tensor([0.5, 0.01]), likelihood_topk=0, reduction="none")
        >>> criterion(torch.zeros(1, 2), torch.tensor([[-1, -1]]))
        tensor([[0.0000, 0.1733]])
    """

    prior: Tensor | None

    def __init__(
        self,
        *,
        gamma_neg: float = 1.0,
        gamma_pos: float = 0.0,
        gamma_unknown: float = 2.0,
        clip: float = 0.0,
        alpha_neg: float = 1.0,
        alpha_pos: float = 1.0,
        alpha_unknown: float = 1.0,
        prior: Tensor | None = None,
        prior_threshold: float = 0.05,
        likelihood_topk: int = 5,
        detach_focal: bool = True,
        reduction: Reduction = "sum",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.gamma_unknown = _check_exponents(gamma_neg, gamma_pos, gamma_unknown)
        self.alpha_neg, self.alpha_pos, self.alpha_unknown = _check_factors(alpha_neg, alpha_pos, alpha_unknown)
        self.clip, self.prior_threshold, self.likelihood_topk = _check_choices(
            clip, prior_threshold, likelihood_topk, detach_focal, reduction
        )
        self.detach_focal = detach_focal
        self.reduction = reduction
        self.group = check_group("group", group)
        if prior is not None and check_floating("prior", prior).dim() != 1:
            raise ValueError(f"prior: expected the shape (C,), one per label, got {tuple(prior.shape)}")
        self.register_buffer("prior", prior)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.partial_asymmetric_loss`."""
        return partial_asymmetric_loss(
            input,
            target,
            gamma_neg=self.gamma_neg,
            gamma_pos=self.gamma_pos,
            gamma_unknown=self.gamma_unknown,
            clip=self.clip,
            alpha_neg=self.alpha_neg,
            alpha_pos=self.alpha_pos,
            alpha_unknown=self.alpha_unknown,
            prior=self.prior,
            prior_threshold=self.prior_threshold,
            likelihood_topk=self.likelihood_topk,
            detach_focal=self.detach_focal,
            reduction=self.reduction,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"gamma_neg={self.gamma_neg:g}, gamma_pos={self.gamma_pos:g}, gamma_unknown={self.gamma_unknown:g}, "
            f"clip={self.clip:g}, alpha_neg={self.alpha_neg:g}, alpha_pos={self.alpha_pos:g}, "
            f"alpha_unknown={self.alpha_unknown:g}, prior_threshold={self.prior_threshold:g}, "
            f"likelihood_topk={self.likelihood_topk}, detach_focal={self.detach_focal}, reduction={self.reduction!r}"
        )


def _check_exponents(gamma_neg: float, gamma_pos: float, gamma_unknown: float) -> tuple[float, float, float]:
    return (
        check_number("gamma_neg", gamma_neg, minimum=0.0),
        check_number("gamma_pos", gamma_pos, minimum=0.0),
        check_number("gamma_unknown", gamma_unknown, minimum=0.0),
    )


def _check_factors(alpha_neg: float, alpha_pos: float, alpha_unknown: float) -> tuple[float, float, float]:
    return (
        check_number("alpha_neg", alpha_neg, minimum=0.0),
        check_number("alpha_pos", alpha_pos, minimum=0.0),
        check_number("alpha_unknown", alpha_unknown, minimum=0.0),
    )


def _check_choices(
    clip: float, prior_threshold: float, likelihood_topk: int, detach_focal: bool, reduction: Reduction
) -> tuple[float, float, int]:
    """Check what chooses entries and how they are reduced, and return the numbers of it."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("detach_focal", detach_focal)
    return (
        check_number("clip", clip, minimum=0.0, maximum=1.0),
        check_number("prior_threshold", prior_threshold, minimum=0.0, maximum=1.0),
        check_integer("likelihood_topk", likelihood_topk, minimum=0),
    )


def _check_prior(prior: Tensor, x: Tensor) -> None:
    check_floating("prior", prior)
    if prior.shape != x.shape[-1:]:
        raise ValueError(f"prior: expected the shape {tuple(x.shape[-1:])}, one per label, got {tuple(prior.shape)}")
    if prior.device != x.device:
        raise ValueError(f"prior: expected the device of input, {x.device}, got {prior.device}")
