"""What may be called with bad arguments: the form, and what all parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mlcorr import functional, losses
from mlcorr._reduction import REDUCTIONS

ROWS, LABELS, WIDTH = 4, 5, 8
Good = dict[str, list[Any]]  # by argument, the values that it may have


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to call. Its ``thing`` is made anew for each call and keeps its state where the call raises."""

    name: str  # the public name
    what: str = ""  # the method
    make: Callable[[], Any] = lambda: None
    call: Callable[..., Any]  # of the thing, and the arguments
    good: Callable[[], Good]
    required: tuple[str, ...] = ()
    shapes: Mapping[str, str] = field(default_factory=dict)  # of what is accepted: see ``fuzz.misfit``
    sizes: Mapping[str, int] = field(default_factory=dict)  # of the letters in ``shapes``, where the thing fixes them
    result: Callable[[dict[str, Any]], str | None] = lambda arguments: None  # noqa: ARG005
    also: tuple[str, ...] = ()  # what an error may name besides the arguments: settings of the thing
    errors: tuple[type[Exception], ...] = ()  # what it may raise besides
    foreign: tuple[str, ...] = ()  # parts of paths: what is raised there is not ours
    skip: Callable[[dict[str, Any]], bool] = lambda arguments: False  # noqa: ARG005
    share: int = 4  # how often, beside others

    @property
    def title(self) -> str:
        return f"{self.name}.{self.what}" if self.what else self.name


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed))


def mask(*shape: int) -> Tensor:
    return normal(*shape) < 0.5


def function(name: str, good: Callable[[], Good], required: str, **more: Any) -> Entry:
    return Entry(
        name=name,
        call=lambda _, **given: getattr(functional, name)(**given),
        good=good,
        required=tuple(required.split()),
        **more,
    )


def constructor(name: str, make: Callable[..., Any], settings: Callable[[], Good], after: Good, **more: Any) -> Entry:
    """Return the entry of a constructor, whose module is then called with good arguments."""
    once = {argument: values[0] for argument, values in after.items()}

    def call(_: object, **given: Any) -> Any:
        return make(**given)(**once)

    return Entry(
        name=name, what="constructor", call=call, good=settings, **{**more, "also": (*more.pop("also", ()), *after)}
    )


def forward(name: str, make: Callable[[], Any], good: Callable[[], Good], required: str, **more: Any) -> Entry:
    return Entry(
        name=name,
        what=more.pop("what", "forward"),
        make=make,
        call=more.pop("call", lambda thing, **given: thing(**given)),
        good=good,
        required=tuple(required.split()),
        **more,
    )


FLAG, SHARE, FACTOR = [False, True], [0.5, 0.0, 1.0, 1, 0], [2.0, 0.0, 0.5, 3, 1e-3]
REDUCTION = list(REDUCTIONS)


def shape_of_loss(arguments: dict[str, Any]) -> str | None:
    return "* C" if arguments.get("reduction") == "none" else "" if "reduction" in arguments else None


def own_base_loss(arguments: dict[str, Any]) -> bool:
    """Return whether there is a callable that is no loss: what it does is not the library's business."""
    base_loss = arguments.get("base_loss")
    return callable(base_loss) and not isinstance(base_loss, losses.AsymmetricLoss)


PLACES = 6
NAMES = ["cup", "fork", "car", "bus", "dog"]
SIZE = [LABELS]
MAP = [normal(ROWS, WIDTH, 2, 3), normal(ROWS, PLACES, WIDTH)]
