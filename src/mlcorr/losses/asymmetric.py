"""The asymmetric loss (ASL): positives and negatives are focused apart, easy negatives are dropped."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_broadcastable, check_choice, check_factor, check_flag, check_floating, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype, no_autocast
from mlcorr._reduction import REDUCTIONS, Reduction, reduce
from mlcorr._targets import check_target, split_target
from mlcorr.losses._focal import Inputs, focal_terms
from mlcorr.losses._probabilities import widen_probabilities


def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    detach_focal: bool = True,
    inputs: Inputs = "logits",
    reduction: Reduction = "sum",
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Σ of −y·(1 − p)^γ⁺·log p − (1 − y)·q^γ⁻·log(1 − q), with q = max(p − clip, 0) and p = σ(input).

    Args:
        input: Logits (..., C), or probabilities with ``inputs="probabilities"``; float16, bfloat16, float32 or
            float64.
        target: (..., C), 0/1 or soft in [0, 1], bool, integer or floating point; −1 is an unknown label and has
            neither loss nor gradient.
        gamma_neg: Focusing exponent γ⁻ >= 0 of negatives.
        gamma_pos: Focusing exponent γ⁺ >= 0 of positives.
        clip: Probability margin in [0, 1]: negatives below it cost nothing.
        detach_focal: Treat (1 − p)^γ⁺ and q^γ⁻ as constants in the gradient, as the official code does by default, and
            so in second derivatives too.
        inputs: "logits" or "probabilities" in [0, 1]; of probabilities the logarithms are clamped at −100.
        reduction: "sum" (the official code's), "mean" over known entries, "batchmean" or "none".
        weight: Factor per label (C,) or any shape that broadcasts to the input's.
        pos_weight: Factor (C,) on the positive term.
        group: Process group that the batch is spread over, or None. Every rank returns the loss of the whole batch, and
            DistributedDataParallel's mean of the gradients is the whole batch's. "none" gives the rank's own entries.

    Returns:
        Scalar, or (..., C) for "none"; float32, or float64 for float64 input. Nothing known gives 0.

    Raises:
        TypeError: ``input`` is no floating-point tensor, ``group`` no process group, or a parameter no number.
        ValueError: Shapes or devices differ, or a parameter is outside its range.

    Differs from the authors' code:
        Equal to it for 0/1 targets with its eps at 0. Value and gradient are finite for every finite logit in every
        dtype and for every γ (the official code clamps log p at log 1e-8 and so gives a positive below logit −18 no
        gradient, and is NaN for 0 < γ < 1 where p − clip reaches 0); soft targets mix the two terms; unknown labels
        are ignored; the global gradient mode is never touched.

    Reference:
        Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021.

    Example:
        >>> import torch
        >>> from mlcorr.functional import asymmetric_loss
        >>> asymmetric_loss(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, -1]]))
        tensor(0.0157)
    """
    gamma_neg, gamma_pos, clip = _check_configuration(gamma_neg, gamma_pos, clip, detach_focal, inputs, reduction)
    group = check_group("group", group)
    check_floating("input", input)
    check_target("target", target, "input", input)
    for name, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if check_factor(name, factor) is not None:
            check_broadcastable(name, factor, "input", input)

    dtype = compute_dtype(input)
    x = input.to(dtype) if inputs == "logits" else widen_probabilities(input, dtype)
    y, known = split_target(target, x.dtype)
    if known is not None:
        x = torch.where(known, x, 0.5)  # a NaN at an unknown label reaches neither value nor gradient
    with no_autocast(x):
        positive, negative = focal_terms(
            x, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip, detach=detach_focal, inputs=inputs
        )
    # Factors first: a large loss times a large weight overflows, and 0 times that is NaN.
    of_positive = y if pos_weight is None else y * pos_weight.to(x.dtype)
    loss = of_positive * positive + (1 - y) * negative
    if weight is not None:
        loss = loss * weight.to(x.dtype)
    if known is not None:
        loss = torch.where(known, loss, 0.0)
    return reduce(loss, known, reduction, group)


class AsymmetricLoss(SharesGroup, WholeState):
    """Module of :func:`mlcorr.functional.asymmetric_loss`; the defaults, a sum among them, are the official code's.

    Parameters are those of the function; ``weight`` and ``pos_weight`` become buffers, so that they move with
    ``.to()``.

    Shape:
        - input, target: (..., C).
        - Output: (), or (..., C) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import AsymmetricLoss
        >>> loss = AsymmetricLoss(gamma_pos=0.0, reduction="batchmean")
        >>> logits = torch.tensor([[-30.0, -30.0]], requires_grad=True)
        >>> loss(logits, torch.tensor([[1, 0]])).backward()
        >>> logits.grad
        tensor([[-1., 0.]])
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        detach_focal: bool = True,
        inputs: Inputs = "logits",
        reduction: Reduction = "sum",
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = _check_configuration(
            gamma_neg, gamma_pos, clip, detach_focal, inputs, reduction
        )
        self.detach_focal = detach_focal
        self.inputs = inputs
        self.reduction = reduction
        self.group = check_group("group", group)
        self.register_buffer("weight", check_factor("weight", weight))
        self.register_buffer("pos_weight", check_factor("pos_weight", pos_weight))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.asymmetric_loss`."""
        return asymmetric_loss(
            input,
            target,
            gamma_neg=self.gamma_neg,
            gamma_pos=self.gamma_pos,
            clip=self.clip,
            detach_focal=self.detach_focal,
            inputs=self.inputs,
            reduction=self.reduction,
            group=self.group,
            weight=self.weight,
            pos_weight=self.pos_weight,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"gamma_neg={self.gamma_neg:g}, gamma_pos={self.gamma_pos:g}, clip={self.clip:g}, "
            f"detach_focal={self.detach_focal}, inputs={self.inputs!r}, reduction={self.reduction!r}"
        )


def _check_configuration(
    gamma_neg: float, gamma_pos: float, clip: float, detach_focal: bool, inputs: Inputs, reduction: Reduction
) -> tuple[float, float, float]:
    """Check all that is no tensor, and return the numbers of it."""
    check_choice("inputs", inputs, ("logits", "probabilities"))
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("detach_focal", detach_focal)
    return (
        check_number("gamma_neg", gamma_neg, minimum=0.0),
        check_number("gamma_pos", gamma_pos, minimum=0.0),
        check_number("clip", clip, minimum=0.0, maximum=1.0),
    )
