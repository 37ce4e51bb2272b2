"""n-order label dependencies of a student and a teacher, compared: the front function and its ladder of backends.

``dependency_terms`` is what the losses call; ``select_backend`` tells which implementation would run, and why:

- ``closed_form``, where the Huber loss is quadratic on every reachable difference, which is δ >= 1 (δ >= B for
  ``square_of_sums``): O(B·C) for the instances, O(min(B·C², B²·C)) for the batch.
- ``enumeration`` for every other δ, order by order: 2, 3 and 4 in polynomial time (``tail.py``), higher ones over all
  label sequences (``enumeration.py``) or, with ``samples``, over some of them (``sampling.py``).
- ``closed_form_triton`` and ``enumeration_triton``: the same by kernels, on devices that have them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mlcorr._distributed import gather_rows, global_sum
from mlcorr._precision import compute_dtype
from mlcorr.ops.norder import closed_form, enumeration, fused_batch, masked_closed_form, sampling, tail
from mlcorr.ops.norder.coefficients import Coefficients, coefficients
from mlcorr.ops.norder.differences import batch_difference, instance_differences
from mlcorr.ops.norder.fused import RowTerms, row_terms
from mlcorr.ops.norder.ladder import (
    BACKENDS,
    BATCH_DEPENDENCIES,
    LEVELS,
    NORMALIZATIONS,
    Backend,
    BatchDependency,
    Inputs,
    Level,
    Normalization,
    Orders,
    Selection,
    Settings,
    closed_form_has_kernel,
    form_of_order,
    in_closed_form,
    read_orders,
    select_backend,
    wants_kernels,
)
from mlcorr.ops.norder.objective import ObjectiveTerms, objective_terms

__all__ = [
    "BACKENDS",
    "BATCH_DEPENDENCIES",
    "LEVELS",
    "NORMALIZATIONS",
    "Backend",
    "BatchDependency",
    "Coefficients",
    "Inputs",
    "Level",
    "Normalization",
    "ObjectiveTerms",
    "Orders",
    "RowTerms",
    "Selection",
    "Settings",
    "check_orders",
    "coefficients",
    "dependency_terms",
    "in_closed_form",
    "objective_terms",
    "plan_of_rows",
    "read_orders",
    "row_terms",
    "select_backend",
    "wants_kernels",
]

# Entries of D that are formed at a time; beyond it, instances are taken in chunks that the backward forms again.
_CHUNK = 1 << 24

# A delta that no difference reaches, while float32 still holds it.
_ENDLESS = 1e30


class _Pair(NamedTuple):
    """Student and teacher (..., C), of one device, and where they count."""

    student: Tensor
    teacher: Tensor
    mask: Tensor | None


def check_orders(orders: Orders, num_labels: int) -> None:
    """Raise ValueError unless a sequence of every order exists."""
    for order, _ in orders:
        if order > num_labels:
            raise ValueError(
                f"orders: expected orders of at most {num_labels}, the number of labels, got order {order}: "
                f"there is no sequence of {order} distinct labels"
            )


def dependency_terms(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    settings: Settings,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the n-order losses by level ("instance", "batch"), reduced, in the dtype that is computed in.

    The two tensors are (..., C), with a batch level (B, C), of one device and any floating dtypes.
    """
    check_orders(settings.orders, student.shape[-1])
    raw = _Pair(student, teacher, mask)
    levels: tuple[Literal["instance", "batch"], ...] = (
        ("instance", "batch") if settings.level == "both" else (settings.level,)
    )
    by_kernel = [level for level in levels if _takes_kernel(raw, settings, level)]
    exact = raw if len(by_kernel) == len(levels) else _probabilities(raw, settings)
    if not by_kernel and _share_a_pass(exact, settings):
        plan = coefficients(settings.orders, student.shape[-1])
        loss, of_batch = closed_form.both_losses(exact.student, exact.teacher, plan)
        instance = _reduce([loss], [1.0], exact, settings, [None])
        return {"instance": instance, "batch": _scale(settings, student) * of_batch}
    terms = {}
    if "instance" in levels:
        kernel = "instance" in by_kernel
        terms["instance"] = _instance_term(raw if kernel else exact, settings, kernel, generator)
    if "batch" in levels:
        kernel = "batch" in by_kernel
        draws = _draws(settings, student.device)
        whole = _gathered(raw if kernel else exact, settings, alike=not draws)
        loss = _batch_term(whole, settings, kernel, generator)
        terms["batch"] = global_sum(loss, settings.group) / dist.get_world_size(settings.group) if draws else loss
    return terms


def _takes_kernel(pair: _Pair, settings: Settings, level: Literal["instance", "batch"]) -> bool:
    return (
        wants_kernels(settings, pair.student.device)
        and closed_form_has_kernel(settings, level, pair.mask is not None)
        and in_closed_form(settings, level, pair.student.shape[0])
    )


def _probabilities(pair: _Pair, settings: Settings) -> _Pair:
    """Return the same as probabilities in the dtype to compute in, 0 or ½ outside the mask."""
    dtype = compute_dtype(pair.student, pair.teacher)
    student, teacher = pair.student.to(dtype), pair.teacher.to(dtype)
    if pair.mask is not None:
        # Before the mathematics, so that a NaN in a masked entry reaches neither value nor gradient.
        student, teacher = torch.where(pair.mask, student, 0.0), torch.where(pair.mask, teacher, 0.0)
    if settings.inputs == "logits":
        student, teacher = student.sigmoid(), teacher.sigmoid()
    return _Pair(student, teacher, pair.mask)


def _share_a_pass(pair: _Pair, settings: Settings) -> bool:
    rows = pair.student.shape[0] if pair.student.dim() else 0
    return (
        settings.level == "both"
        and pair.mask is None
        and settings.group is None
        and settings.batch_dependency == "mean_square"
        and in_closed_form(settings, "instance", rows)
        and in_closed_form(settings, "batch", rows)
    )


def _draws(settings: Settings, device: torch.device) -> bool:
    """Return whether each rank may draw sequences of its own for the whole batch."""
    return settings.group is not None and any(
        form_of_order(settings, n, device) == "samples" for n, _ in settings.orders
    )


def _gathered(pair: _Pair, settings: Settings, *, alike: bool) -> _Pair:
    """Return the batch of all ranks."""
    if settings.group is None:
        return pair
    student, teacher = (gather_rows(x, settings.group, alike=alike) for x in (pair.student, pair.teacher))
    mask = None if pair.mask is None else gather_rows(pair.mask.to(torch.uint8), settings.group).bool()
    return _Pair(student, teacher, mask)


def _instance_term(pair: _Pair, settings: Settings, kernel: bool, generator: torch.Generator | None) -> Tensor:
    student, teacher, mask = pair
    if not in_closed_form(settings, "instance", student.shape[0]):
        losses = [_instance_losses(pair, order, settings, generator) for order, _ in settings.orders]
        enough = [None if mask is None else mask.sum(dim=-1) >= order for order, _ in settings.orders]
        return _reduce(losses, [weight for _, weight in settings.orders], pair, settings, enough)
    if mask is None:
        # All orders at once: to the reduction they are one, of weight 1.
        plan = coefficients(settings.orders, student.shape[-1])
        loss = _rows(pair, plan, settings) if kernel else closed_form.instance_loss(student, teacher, plan)
        return _reduce([loss], [1.0], pair, settings, [None])
    by_row = plan_of_rows(mask, settings, compute_dtype(student, teacher))
    loss = _rows(pair, by_row, settings) if kernel else masked_closed_form.instance_loss(student, teacher, mask, by_row)
    if settings.reduction == "none":
        return loss
    total = global_sum(loss.sum(), settings.group)
    if settings.reduction == "batchmean":
        total = total / _global_count(loss, mask.any(dim=-1), settings.group)
    return total


def plan_of_rows(mask: Tensor, settings: Settings, dtype: torch.dtype) -> Tensor:
    """Return α, β, γ of every instance, (..., 3), normalised, and such that their losses add up to a "mean"."""
    counts = mask.sum(dim=-1)
    orders: list[tuple[int, float | Tensor]] = list(settings.orders)
    if settings.reduction == "mean":
        # Each order's is over the instances that have a sequence of it.
        rows = counts.to(dtype)
        orders = [(n, weight / _global_count(rows, counts >= n, settings.group)) for n, weight in orders]
    plan = masked_closed_form.plan_of_rows(orders, counts, dtype)
    return counts.unsqueeze(-1) * plan if settings.normalization == "labels" else plan


def _rows(pair: _Pair, plan: Coefficients | Tensor, settings: Settings) -> Tensor:
    """Return the loss of every instance, (...,), by the kernels."""
    logits = settings.inputs == "logits"
    return row_terms(pair.student, pair.teacher, plan, mask=pair.mask, logits=logits)[..., 0]


def _batch_term(pair: _Pair, settings: Settings, kernel: bool, generator: torch.Generator | None) -> Tensor:
    student, teacher, mask = pair
    plan = coefficients(settings.orders, student.shape[-1])
    if not in_closed_form(settings, "batch", student.shape[0]):
        difference = batch_difference(student, teacher, mask, settings.batch_dependency).unsqueeze(0)
        losses = [w * _mean_huber(difference, n, None, settings, generator) for n, w in settings.orders]
        loss = torch.stack(losses).sum()
    elif kernel:
        loss = fused_batch.batch_loss(student, teacher, plan, settings.inputs == "logits")
    elif mask is None:
        loss = closed_form.batch_loss(student, teacher, plan, settings.batch_dependency)
    else:
        loss = masked_closed_form.batch_loss(student, teacher, mask, settings.orders, settings.batch_dependency)
    return _scale(settings, student) * loss


def _instance_losses(pair: _Pair, order: int, settings: Settings, generator: torch.Generator | None) -> Tensor:
    """Return the loss of one order of every instance, (...,), by way of its matrix D."""
    labels = pair.student.shape[-1]
    student, teacher = (x.reshape(-1, labels) for x in (pair.student, pair.teacher))
    mask = None if pair.mask is None else pair.mask.reshape(-1, labels)

    def of_rows(s: Tensor, t: Tensor, m: Tensor | None) -> Tensor:
        return _mean_huber(instance_differences(s, t), order, m, settings, generator)

    rows = max(_CHUNK // (labels * labels), 1)
    if student.shape[0] <= rows:
        return of_rows(student, teacher, mask).reshape(pair.student.shape[:-1])
    # Forming a chunk again would draw other samples, so that value and gradient would not belong together.
    sampled = form_of_order(settings, order, student.device) == "samples"
    again = (
        of_rows if sampled else functools.partial(checkpoint, of_rows, use_reentrant=False, preserve_rng_state=False)
    )
    chunks = [
        again(
            student[first : first + rows],
            teacher[first : first + rows],
            None if mask is None else mask[first : first + rows],
        )
        for first in range(0, student.shape[0], rows)
    ]
    return torch.cat(chunks).reshape(pair.student.shape[:-1])


def _mean_huber(
    differences: Tensor, order: int, valid: Tensor | None, settings: Settings, generator: torch.Generator | None
) -> Tensor:
    form = form_of_order(settings, order, differences.device)
    if form == "tail":
        return tail.mean_huber(differences, order, min(settings.delta, _ENDLESS), valid)
    delta = settings.delta if settings.delta < _ENDLESS else math.inf
    if form == "samples":
        assert settings.samples is not None
        return sampling.mean_huber(differences, order, delta, settings.samples, generator, valid)
    labels, matrices = differences.shape[-1], differences.shape[0]
    if form == "kernel":
        enumeration.check_reach(order, labels, matrices, enumeration.REACH_OF_KERNELS)
        return enumeration.differentiable(torch.ops.mlcorr.norder_enumerated, differences, order, delta, valid)
    enumeration.check_reach(order, labels, matrices)
    return enumeration.mean_huber(differences, order, delta, valid)


def _scale(settings: Settings, student: Tensor) -> int:
    return student.shape[-1] if settings.normalization == "labels" else 1


def _reduce(
    losses: Sequence[Tensor], weights: Sequence[float], pair: _Pair, settings: Settings, enough: Sequence[Tensor | None]
) -> Tensor:
    """Reduce each order's losses of instances, (...,), over all ranks, and add them up by their weights.

    A mean is, for each order, over the instances that have a sequence of it (``enough``; None: all of them), and
    "batchmean" over those that have a valid label.
    """
    mask, group = pair.mask, settings.group
    scale: Tensor | int = 1
    if settings.normalization == "labels":
        scale = pair.student.shape[-1] if mask is None else mask.sum(dim=-1)
    parts = []
    for loss, weight, counted in zip(losses, weights, enough, strict=True):
        scaled = loss if isinstance(scale, int) and scale == 1 else scale * loss
        if settings.reduction == "none":
            parts.append(weight * scaled)
            continue
        total = global_sum(scaled.sum(), group)
        if settings.reduction != "sum":
            if mask is not None and settings.reduction == "batchmean":
                counted = mask.any(dim=-1)
            total = total / _global_count(loss, counted, group)
        parts.append(weight * total)
    return functools.reduce(torch.add, parts)


def _global_count(loss: Tensor, counted: Tensor | None, group: dist.ProcessGroup | None) -> Tensor | int:
    """Return the number of instances, or of those ``counted``, at least 1."""
    if group is None and counted is None:
        return max(loss.numel(), 1)
    count = loss.new_full((), loss.numel()) if counted is None else counted.sum().to(loss.dtype)
    return global_sum(count, group).clamp(min=1)
