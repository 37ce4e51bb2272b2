"""What can be asked of the n-order losses, and which implementation answers: decided without looking at any value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, TypeAlias

import torch.distributed as dist

from mlcorr._reduction import Reduction

Orders: TypeAlias = tuple[tuple[int, float], ...]
Level: TypeAlias = Literal["instance", "batch", "both"]
BatchDependency: TypeAlias = Literal["mean_square", "square_of_sums"]
Normalization: TypeAlias = Literal["sequences", "labels"]
Backend: TypeAlias = Literal["auto", "closed_form", "closed_form_triton", "enumeration", "enumeration_triton"]

LEVELS: Final = ("instance", "batch", "both")
BATCH_DEPENDENCIES: Final = ("mean_square", "square_of_sums")
NORMALIZATIONS: Final = ("sequences", "labels")
BACKENDS: Final = ("auto", "closed_form", "closed_form_triton", "enumeration", "enumeration_triton")

# Orders up to this one have a form in polynomial time for every delta.
HIGHEST_TAIL: Final = 4


class Settings(NamedTuple):
    """The configuration of a loss, checked."""

    orders: Orders
    level: Level = "both"
    delta: float = 1.0
    batch_dependency: BatchDependency = "mean_square"
    normalization: Normalization = "sequences"
    reduction: Reduction = "mean"
    samples: int | None = None
    backend: Backend = "auto"
    group: dist.ProcessGroup | None = None


class Selection(NamedTuple):
    """The implementation that a call would take, and why."""

    backend: Backend
    reason: str


def select_backend(
    level: Literal["instance", "batch"],
    *,
    batch_size: int,
    orders: Iterable[int] = (2, 3, 4),
    delta: float = 1.0,
    batch_dependency: BatchDependency = "mean_square",
    samples: int | None = None,
    backend: Backend = "auto",
) -> Selection:
    """Return which implementation of one level would run, and why; for several ranks, ``batch_size`` is that of all.

    Raises:
        ValueError: ``backend="closed_form"`` where it would not be the loss that was asked for.
        NotImplementedError: A backend that does not exist yet.

    Example:
        >>> select_backend("batch", batch_size=32).backend
        'closed_form'
        >>> select_backend("instance", batch_size=32, orders=(2,), delta=0.5).reason
        'differences reach 1 and delta is 0.5, so the Huber loss has a linear part: order 2 by tail'
    """
    settings = Settings((), level, delta, batch_dependency, backend=backend)
    largest = _largest_difference(settings, level, batch_size)
    bound = f"differences reach {largest} and delta is {delta:g}, so the Huber loss"
    if in_closed_form(settings, level, batch_size):
        return Selection("closed_form", f"{bound} is quadratic")
    beyond = "enumeration" if samples is None else f"{samples} samples"
    forms = ", ".join(f"order {n} by {'tail' if n <= HIGHEST_TAIL else beyond}" for n in orders)
    shape = "has a linear part" if delta < largest else "is quadratic, but backend='enumeration' was asked for"
    return Selection("enumeration", f"{bound} {shape}: {forms}")


def in_closed_form(settings: Settings, level: Literal["instance", "batch"], batch_size: int) -> bool:
    """Return whether ``level`` takes the closed form, rather than one that looks at label pairs or sequences."""
    backend, delta = settings.backend, settings.delta
    if backend.endswith("_triton"):
        raise NotImplementedError(f"backend: {backend!r} is not implemented yet; use 'auto'")
    largest = _largest_difference(settings, level, batch_size)
    if backend == "closed_form" and delta < largest:
        raise ValueError(
            f"backend: 'closed_form' needs a quadratic Huber loss, delta >= {largest}, but delta is {delta}; use 'auto'"
        )
    return backend != "enumeration" and delta >= largest


def _largest_difference(settings: Settings, level: str, batch_size: int) -> int:
    return max(batch_size, 1) if level == "batch" and settings.batch_dependency == "square_of_sums" else 1
