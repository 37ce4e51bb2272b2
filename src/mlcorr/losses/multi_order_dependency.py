"""Multi-order label dependency distillation (MDKD)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import (
    check_choice,
    check_floating,
    check_generator,
    check_integer,
    check_mask,
    check_number,
    check_same,
)
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._precision import compute_dtype
from mlcorr._reduction import REDUCTIONS, Reduction
from mlcorr.ops import norder


def multi_order_dependency_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    orders: Iterable[int] | Mapping[int, float] = (2, 3, 4),
    level: norder.Level = "both",
    delta: float = 1.0,
    batch_dependency: norder.BatchDependency = "mean_square",
    normalization: norder.Normalization = "sequences",
    inputs: norder.Inputs = "logits",
    reduction: Reduction = "mean",
    samples: int | None = None,
    backend: norder.Backend = "auto",
    group: dist.ProcessGroup | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sum over orders n of λ_n·(mean over instances of L_n(Φ), plus L_n(Ψ)), the distillation terms of MDKD's paper.

    With probabilities s (student) and t (teacher), the dependency of two labels is
    Φ_i(k, l) = (p_ik − p_il)² in instance i and Ψ(k, l) = mean_i Φ_i(k, l) in the batch, the dependency of a
    sequence of n labels is the mean over its n − 1 consecutive pairs, and

    L_n = mean over all sequences of n distinct labels, a sequence and its reverse counted once,
    of Huber_δ(teacher's dependency − student's dependency).

    That is what the loops of the definition give; it is computed without them, at a cost linear in the number of
    labels and independent of the orders (see the derivation in the documentation).

    Args:
        student: Logits (B, C) of the student, or probabilities with ``inputs="probabilities"``; float16, bfloat16,
            float32 or float64. With ``level="instance"`` any leading dimensions: (..., C).
        teacher: The same of the teacher, of the same shape. It gets a gradient if it requires one.
        mask: Boolean, of the shape of the inputs, True where an entry is valid. An instance with c valid labels has the
            sequences of those labels; one with fewer than n is left out of order n's mean. In the batch, an entry is
            left out of every pair that it is part of and B counts the rows with a valid entry.
        orders: The orders n >= 2 with weight 1, or a mapping from order to weight λ_n >= 0. None may exceed C.
        level: "instance" (Φ), "batch" (Ψ) or "both" (their sum).
        delta: Where the Huber loss turns from quadratic to linear, > 0. Dependencies of probabilities differ by at
            most 1, so that all values >= 1 are the same loss, in closed form. Below, orders 2, 3 and 4 take O(C²),
            O(C² log C) and O(C³ log C) an instance, and higher ones go over all their sequences, or ``samples``.
        batch_dependency: "mean_square" as above, or "square_of_sums", Ψ(k, l) = (Σ_i p_ik − Σ_i p_il)²/B, which is
            Eq. 4 of the paper as printed; it reaches B, so that the closed form needs ``delta >= B``.
        normalization: "sequences", the paper's mean over sequences, or "labels" (ours): that mean times C, which is
            the scale of losses that sum over labels, such as BCE and MLD in the same objective.
        inputs: "logits" or "probabilities". Probabilities are trusted to lie in [0, 1].
        reduction: What is done with the losses of the instances: "mean", "batchmean" (the same here), "sum", or
            "none" (only with ``level="instance"``). The batch's loss is one number and is added unchanged.
        samples: For orders >= 5 outside the closed form, estimate the mean over sequences from this many, drawn
            uniformly for each instance anew at every call. The estimate is unbiased; its standard error is the standard
            deviation of the loss over sequences, divided by √samples. With ``group``, each rank draws its own for the
            batch level too, whose loss is the mean of their estimates.
        backend: "auto", "closed_form", "closed_form_triton", "enumeration" or "enumeration_triton"; see
            :func:`mlcorr.ops.norder.select_backend`. "auto" takes Triton's kernels for tensors on CUDA and ROCm
            devices, where Triton can be imported; they read logits of any dtype and strides without a copy.
        group: Process group over which the loss is global: every rank returns the loss of the batch of all ranks, and
            its gradient is W times that of the rank's part, for W ranks, so that DistributedDataParallel's mean is the
            gradient of one big batch. Ranks may have different numbers of rows. None: this process alone.
        generator: Source of random numbers for ``samples``; None is the default generator of the device.

    Returns:
        Scalar, or (...,) for ``reduction="none"``; float32, or float64 when an input is float64. No row
        with a sequence of valid labels, as in an empty batch, gives 0.

    Raises:
        TypeError: An input is no floating-point tensor, an order no integer, a weight no number, or ``group`` no
            process group.
        ValueError: A value outside its range, shapes or devices that differ, or kernels on a device that has none; the
            message names the argument.
        ImportError: Kernels were asked for by name and Triton cannot be imported.

    Differs from the authors' code:
        There is none. Where the paper's Eq. 4 and its text disagree, the default follows the text.

    Reference:
        Wang et al., "Beyond Direct Relations: Exploring Multi-Order Label Pair Dependencies for Knowledge
        Distillation", ACM Multimedia 2024.

    Example:
        >>> import torch
        >>> from mlcorr.functional import multi_order_dependency_loss
        >>> student = torch.tensor([[0.1, 0.8, 0.5, 0.2]])
        >>> teacher = torch.tensor([[0.0, 0.9, 0.9, 0.1]])
        >>> multi_order_dependency_loss(student, teacher, orders=[2], level="instance", inputs="probabilities")
        tensor(0.0762)
    """
    settings = _configure(
        orders, level, delta, batch_dependency, normalization, inputs, reduction, samples, backend, group
    )
    return _loss(student, teacher, mask, settings, generator)


class MultiOrderDependencyLoss(SharesGroup):
    r"""Module of :func:`mlcorr.functional.multi_order_dependency_loss`; the default is the paper's L_ID + L_BD.

    Parameters are those of the function and are checked once, here; it holds no state.

    Shape:
        - student, teacher: (B, C), or (..., C) with ``level="instance"``.
        - Output: (), or (...,) with ``reduction="none"``.

    Example:
        >>> import torch
        >>> from mlcorr import MultiOrderDependencyLoss
        >>> loss = MultiOrderDependencyLoss(orders={2: 1.0, 3: 0.5})
        >>> student = torch.zeros(4, 10, requires_grad=True)
        >>> teacher = torch.linspace(-3, 3, 40).reshape(4, 10)
        >>> loss(student, teacher).backward()
        >>> student.grad.shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        orders: Iterable[int] | Mapping[int, float] = (2, 3, 4),
        *,
        level: norder.Level = "both",
        delta: float = 1.0,
        batch_dependency: norder.BatchDependency = "mean_square",
        normalization: norder.Normalization = "sequences",
        inputs: norder.Inputs = "logits",
        reduction: Reduction = "mean",
        samples: int | None = None,
        backend: norder.Backend = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.settings = _configure(
            orders, level, delta, batch_dependency, normalization, inputs, reduction, samples, backend, group
        )
        self.group = self.settings.group

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss; see :func:`mlcorr.functional.multi_order_dependency_loss`."""
        return _loss(student, teacher, mask, self.settings, generator)

    def terms(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the reduced summands by name, "instance" and "batch" (those of the level), of one pass."""
        return _terms(student, teacher, mask, self.settings, generator)

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        shown = self.settings._asdict() | {"orders": dict(self.settings.orders)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _configure(
    orders: Iterable[int] | Mapping[int, float],
    level: norder.Level,
    delta: float,
    batch_dependency: norder.BatchDependency,
    normalization: norder.Normalization,
    inputs: norder.Inputs,
    reduction: Reduction,
    samples: int | None,
    backend: norder.Backend,
    group: dist.ProcessGroup | None,
) -> norder.Settings:
    check_choice("level", level, norder.LEVELS)
    check_choice("batch_dependency", batch_dependency, norder.BATCH_DEPENDENCIES)
    check_choice("normalization", normalization, norder.NORMALIZATIONS)
    check_choice("inputs", inputs, ("logits", "probabilities"))
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("backend", backend, norder.BACKENDS)
    delta = check_number("delta", delta, minimum=0.0, maximum=math.inf, exclusive=True)
    ranks = check_group("group", group)
    if samples is not None:
        samples = check_integer("samples", samples, minimum=1)
    if reduction == "none" and level != "instance":
        raise ValueError(
            f"reduction: expected 'mean', 'sum' or 'batchmean' with level={level!r}, got 'none': "
            "the batch level is one number for the whole batch"
        )
    if reduction == "none" and ranks is not None:
        raise ValueError("reduction: expected 'mean', 'sum' or 'batchmean' with a group, got 'none'")
    return norder.Settings(
        norder.read_orders(orders),
        level,
        delta,
        batch_dependency,
        normalization,
        inputs,
        reduction,
        samples,
        backend,
        ranks,
    )


def check_pair(student: Tensor, teacher: Tensor, level: norder.Level) -> torch.dtype:
    """Return the dtype to compute in, if the two tensors are such that the loss of ``level`` is defined."""
    check_floating("student", student)
    check_floating("teacher", teacher)
    check_same("teacher", teacher, "student", student)
    if level != "instance" and student.dim() != 2:
        raise ValueError(f"student: expected shape (B, C) with level={level!r}, got {tuple(student.shape)}")
    return compute_dtype(student, teacher)


def _loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    settings: norder.Settings,
    generator: torch.Generator | None,
) -> Tensor:
    instance, *batch = _terms(student, teacher, mask, settings, generator).values()
    return instance + batch[0] if batch else instance


def _terms(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    settings: norder.Settings,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    check_pair(student, teacher, settings.level)
    if mask is not None:
        check_mask("mask", mask, "student", student)
    check_generator("generator", generator, student.device)
    return norder.dependency_terms(student, teacher, mask, settings, generator)
