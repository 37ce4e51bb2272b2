"""n-order label dependencies of a student and a teacher, compared: the front function and its ladder of backends.

``dependency_terms`` is what the losses call; ``select_backend`` tells which implementation would run, and why:

- ``closed_form``, where the Huber loss is quadratic on every reachable difference, which is δ >= 1 (δ >= B for
  ``square_of_sums``): O(B·C) for the instances, O(min(B·C², B²·C)) for the batch.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

from torch import Tensor

from mlcorr.ops.norder import closed_form
from mlcorr.ops.norder.coefficients import Coefficients, coefficients
from mlcorr.ops.norder.objective import ObjectiveTerms, objective_terms

__all__ = [
    "BACKENDS",
    "BATCH_DEPENDENCIES",
    "LEVELS",
    "Backend",
    "BatchDependency",
    "Coefficients",
    "DependencyTerms",
    "Level",
    "ObjectiveTerms",
    "Orders",
    "Selection",
    "check_orders",
    "coefficients",
    "dependency_terms",
    "objective_terms",
    "select_backend",
]

Orders: TypeAlias = tuple[tuple[int, float], ...]
Level: TypeAlias = Literal["instance", "batch", "both"]
BatchDependency: TypeAlias = Literal["mean_square", "square_of_sums"]
Backend: TypeAlias = Literal["auto", "closed_form", "closed_form_triton", "enumeration", "enumeration_triton"]

LEVELS: Final = ("instance", "batch", "both")
BATCH_DEPENDENCIES: tuple[BatchDependency, ...] = ("mean_square", "square_of_sums")
BACKENDS: tuple[Backend, ...] = ("auto", "closed_form", "closed_form_triton", "enumeration", "enumeration_triton")


class Selection(NamedTuple):
    """The implementation that a call would take, and why."""

    backend: Backend
    reason: str


class DependencyTerms(NamedTuple):
    """The loss of every instance (...,) and of the batch (); None for a level that was not asked for."""

    instance: Tensor | None
    batch: Tensor | None


def select_backend(
    level: Literal["instance", "batch"],
    *,
    batch_size: int,
    delta: float = 1.0,
    batch_dependency: BatchDependency = "mean_square",
    backend: Backend = "auto",
) -> Selection:
    """Return which implementation ``dependency_terms`` takes for one level, decided without looking at any value.

    Raises:
        ValueError: ``backend="closed_form"`` where it would not be the loss that was asked for.
        NotImplementedError: what is asked for has no implementation yet.

    Example:
        >>> select_backend("batch", batch_size=32).backend
        'closed_form'
    """
    chosen = _choose(level, batch_size, delta, batch_dependency, backend)
    largest = _largest_difference(level, batch_size, batch_dependency)
    return Selection(chosen, f"differences reach {largest} and delta is {delta:g}: the Huber loss is quadratic")


def _largest_difference(level: Level, batch_size: int, batch_dependency: BatchDependency) -> int:
    return batch_size if level == "batch" and batch_dependency == "square_of_sums" else 1


def _choose(
    level: Level, batch_size: int, delta: float, batch_dependency: BatchDependency, backend: Backend
) -> Backend:
    if backend not in ("auto", "closed_form"):
        raise NotImplementedError(f"backend: {backend!r} is not implemented yet; 'auto' and 'closed_form' are")
    largest = _largest_difference(level, batch_size, batch_dependency)
    if delta >= largest:
        return "closed_form"
    if backend == "closed_form":
        raise ValueError(
            f"backend: 'closed_form' needs a quadratic Huber loss, delta >= {largest}, but delta is {delta}; use 'auto'"
        )
    raise NotImplementedError(f"delta: {delta} is below {largest}, the largest difference; not implemented yet")


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
    *,
    orders: Orders,
    level: Level,
    delta: float = 1.0,
    batch_dependency: BatchDependency = "mean_square",
    backend: Backend = "auto",
) -> DependencyTerms:
    """Return the weighted sum over ``orders`` of the n-order losses of probabilities (..., C), level by level.

    The two tensors have one shape, device and dtype (float32 or float64); (B, C) where ``level`` is not "instance".
    """
    check_orders(orders, student.shape[-1])
    rows = student.shape[0]
    for each in LEVELS[:2]:
        if level in (each, "both"):
            _choose(each, rows, delta, batch_dependency, backend)
    plan = coefficients(orders, student.shape[-1])
    if level == "both" and batch_dependency == "mean_square":
        return DependencyTerms(*closed_form.both_losses(student, teacher, plan))
    return DependencyTerms(
        closed_form.instance_loss(student, teacher, plan) if level != "batch" else None,
        closed_form.batch_loss(student, teacher, plan, batch_dependency) if level != "instance" else None,
    )
