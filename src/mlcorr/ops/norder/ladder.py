"""What can be asked of the n-order losses, and which implementation answers: decided without looking at any value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist

from mlcorr._checks import check_choice, check_device, check_flag, check_integer, check_number, is_collection
from mlcorr._reduction import Reduction
from mlcorr.ops.launching import have_kernels, require_kernels

Orders: TypeAlias = tuple[tuple[int, float], ...]
Level: TypeAlias = Literal["instance", "batch", "both"]
BatchDependency: TypeAlias = Literal["mean_square", "square_of_sums"]
Normalization: TypeAlias = Literal["sequences", "labels"]
Inputs: TypeAlias = Literal["logits", "probabilities"]
Backend: TypeAlias = Literal["auto", "closed_form", "closed_form_triton", "enumeration", "enumeration_triton"]

LEVELS: Final = ("instance", "batch", "both")
BATCH_DEPENDENCIES: Final = ("mean_square", "square_of_sums")
NORMALIZATIONS: Final = ("sequences", "labels")
BACKENDS: Final = ("auto", "closed_form", "closed_form_triton", "enumeration", "enumeration_triton")

# Orders up to this one have a form in polynomial time for every delta; the kernel enumerates those up to the second.
HIGHEST_TAIL: Final = 4
HIGHEST_KERNEL: Final = 6


class Settings(NamedTuple):
    """The configuration of a loss, checked."""

    orders: Orders
    level: Level = "both"
    delta: float = 1.0
    batch_dependency: BatchDependency = "mean_square"
    normalization: Normalization = "sequences"
    inputs: Inputs = "logits"
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
    device: torch.device | str = "cpu",
    masked: bool = False,
) -> Selection:
    """Return which implementation of one level would run, and why; for several ranks, ``batch_size`` is that of all.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An argument outside its range, ``backend="closed_form"`` (or its kernels) where it would not be the
            loss that was asked for, kernels for tensors on a device that has none, or for orders that they do not
            enumerate.
        ImportError: Kernels without Triton.

    Example:
        >>> select_backend("batch", batch_size=32).backend
        'closed_form'
        >>> select_backend("instance", batch_size=32, orders=(2,), delta=0.5).reason
        'differences reach 1 and delta is 0.5, so the Huber loss has a linear part: order 2 by tail'
    """
    check_choice("level", level, ("instance", "batch"))
    check_choice("batch_dependency", batch_dependency, BATCH_DEPENDENCIES)
    check_choice("backend", backend, BACKENDS)
    check_flag("masked", masked)
    batch_size = check_integer("batch_size", batch_size, minimum=0)
    delta = check_number("delta", delta, minimum=0.0, maximum=math.inf, exclusive=True)
    if samples is not None:
        samples = check_integer("samples", samples, minimum=1)
    settings = Settings(read_orders(orders), level, delta, batch_dependency, samples=samples, backend=backend)
    device = check_device("device", device)
    kernels = wants_kernels(settings, device)
    largest = _largest_difference(settings, level, batch_size)
    bound = f"differences reach {largest} and delta is {delta:g}, so the Huber loss"
    if in_closed_form(settings, level, batch_size):
        if kernels and closed_form_has_kernel(settings, level, masked):
            return Selection("closed_form_triton", f"{bound} is quadratic, and device {device.type!r} has kernels")
        return Selection("closed_form", f"{bound} is quadratic")
    names = {"tail": "tail", "kernel": "kernel", "samples": f"{samples} samples", "enumeration": "enumeration"}
    forms = {n: names[form_of_order(settings, n, device)] for n, _ in settings.orders}
    shape = "has a linear part" if delta < largest else f"is quadratic, but backend={backend!r} was asked for"
    return Selection(
        "enumeration_triton" if "kernel" in forms.values() else "enumeration",
        f"{bound} {shape}: {', '.join(f'order {n} by {form}' for n, form in forms.items())}",
    )


def read_orders(orders: Iterable[int] | Mapping[int, float]) -> Orders:
    """Return the orders with their weights, sorted, if they are such."""
    if not is_collection(orders):
        found = type(orders).__name__
        raise TypeError(f"orders: expected integers >= 2 or a mapping from them to weights, got {found}")
    weighted = orders.items() if isinstance(orders, Mapping) else [(order, 1.0) for order in orders]
    checked: dict[int, float] = {}
    for order, weight in weighted:
        number = check_integer("orders", order, minimum=2)
        if number in checked:
            raise ValueError(f"orders: expected each order once, got {number} again; use {{order: weight}}")
        checked[number] = check_number(f"orders[{number}]", weight, minimum=0.0)
    if not checked:
        raise ValueError("orders: expected at least one order, got none")
    return tuple(sorted(checked.items()))


def in_closed_form(settings: Settings, level: Literal["instance", "batch"], batch_size: int) -> bool:
    """Return whether ``level`` takes the closed form, rather than one that looks at label pairs or sequences."""
    backend, delta = settings.backend, settings.delta
    largest = _largest_difference(settings, level, batch_size)
    if backend.startswith("closed_form") and delta < largest:
        raise ValueError(
            f"backend: {backend!r} needs a quadratic Huber loss, delta >= {largest}, but delta is {delta}; use 'auto'"
        )
    return not backend.startswith("enumeration") and delta >= largest


def closed_form_has_kernel(settings: Settings, level: Literal["instance", "batch"], masked: bool) -> bool:
    """Return whether there is a kernel of the closed form of ``level``; PyTorch's matrix products do the rest."""
    return level == "instance" or not (masked or settings.batch_dependency == "square_of_sums")


def form_of_order(
    settings: Settings, order: int, device: torch.device
) -> Literal["tail", "kernel", "samples", "enumeration"]:
    """Return how the loss of ``order`` is computed outside the closed form."""
    asked = settings.backend == "enumeration_triton"
    if asked and order > HIGHEST_KERNEL:
        raise ValueError(
            f"backend: 'enumeration_triton' enumerates orders up to {HIGHEST_KERNEL}, got order {order}; use 'auto'"
        )
    if asked:
        return "kernel" if order > 2 else "enumeration"  # of pairs there is nothing to unrank
    if order <= HIGHEST_TAIL and device.type != "mps":  # a tail needs float64
        return "tail"
    if order > HIGHEST_TAIL and settings.samples is not None:
        return "samples"
    return "kernel" if order <= HIGHEST_KERNEL and wants_kernels(settings, device) else "enumeration"


def wants_kernels(settings: Settings, device: torch.device) -> bool:
    """Return whether kernels run where there are some; raise where they were asked for and cannot run."""
    if settings.backend == "auto":
        return have_kernels(device)
    if not settings.backend.endswith("_triton"):
        return False
    require_kernels(settings.backend, device)
    return True


def _largest_difference(settings: Settings, level: str, batch_size: int) -> int:
    return max(batch_size, 1) if level == "batch" and settings.batch_dependency == "square_of_sums" else 1
