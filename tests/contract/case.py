"""How everything public is called, in one form, so that one test can ask the same of all of it.

A case makes a thing (a function with its settings, or a module with the same first weights each time), draws arguments
for it in float64, and calls it. :func:`each_case` hands the cases to a test and notes, in :data:`TABLE`, which case is
tested for which property and why another is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Thing = Callable[..., Any]
Arguments = dict[str, Any]
Range = Literal["logits", "probabilities", "features"]  # what the numbers of an argument may be
Kind = Literal["loss", "layer", "system", "grouping", "metric", "choice", "backbone", "record"]


class Sizes(NamedTuple):
    """What the shapes of a case's arguments follow from."""

    rows: int = 4
    labels: int = 5
    width: int = 8  # of features
    leading: tuple[int, ...] = ()  # dimensions before the rows, for a case that takes any
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to use something public."""

    kind: Kind
    make: Callable[[Sizes], Thing]
    draw: Callable[[Sizes], Arguments]  # the same for the same sizes; floating arguments in float64
    floating: Mapping[str, Range] = field(default_factory=dict)  # arguments of real numbers, and what they are
    leaves: tuple[str, ...] = ()  # those of them that get a gradient
    leading: bool = False  # whether it takes dimensions before the rows
    call: Callable[[Thing, Arguments], Any] = lambda thing, arguments: thing(**arguments)

    def __call__(self, arguments: Arguments, sizes: Sizes = Sizes()) -> Any:  # noqa: B008
        """Return what a new thing makes of the arguments; a module is of the dtype of the floating ones."""
        return self.call(self.module(arguments, sizes), arguments)

    def module(self, arguments: Arguments, sizes: Sizes = Sizes()) -> Thing:  # noqa: B008
        """Return a new thing, of the device and dtype of the arguments, if it is a module."""
        thing = self.make(sizes)
        like = [arguments[name] for name in self.floating if isinstance(arguments.get(name), Tensor)]
        return thing.to(like[0]) if isinstance(thing, nn.Module) and like else thing


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Return the arguments with all floating tensors rounded to a dtype; others as they are."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def with_gradients(case: Case, arguments: Arguments) -> Arguments:
    """Return the arguments with leaves that require a gradient."""
    return {
        name: value.detach().clone().requires_grad_() if name in case.leaves else value
        for name, value in arguments.items()
    }


def tensors(output: object) -> list[Tensor]:
    """Return the tensors of an output, however it is nested, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def scalar(output: object) -> Tensor:
    """Return a number that every differentiable entry of an output has a share in, each another one."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors(output):
        if tensor.is_floating_point() and tensor.requires_grad:
            weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=torch.float64, device=tensor.device)
            total = total.to(tensor.device) + (tensor.double() * weights.view(tensor.shape)).sum()
    return total


class Drawn:
    """Random numbers that follow from the sizes."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._generator = torch.Generator().manual_seed(sizes.seed)

    def normal(self, *shape: int) -> Tensor:
        return 2 * torch.randn(shape, dtype=torch.float64, generator=self._generator)

    def targets(self, *shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=self._generator)

    def mask(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator) < 0.7


def seeded(build: Callable[[Sizes], nn.Module]) -> Callable[[Sizes], nn.Module]:
    """Make modules that have the same first weights each time, and leave the global generator as it was."""

    def make(sizes: Sizes) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sizes.seed)
            return build(sizes)

    return make


# --------------------------------------------------------------------------------------------------------- the table

TESTED = "tested"
TABLE: dict[str, dict[str, str]] = {}
"""By property and case: :data:`TESTED`, or why there is no test."""


def each_case(
    title: str, *, needs: Callable[[Case], str | None] | None = None, but: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test of the property ``title`` by the names of all cases it can be asked of.

    Args:
        title: The property, in words.
        needs: Why a case of this form cannot have the property, or None if it can.
        but: By name of a case, why this one does not have it: an explained exception.
    """
    from tests.contract.cases import CASES

    but = but or {}
    unknown = but.keys() - CASES.keys()
    if unknown:
        raise ValueError(f"but: no cases are named {sorted(unknown)}")
    cells = {name: but.get(name) or (needs and needs(case)) or TESTED for name, case in CASES.items()}
    TABLE[title] = cells
    return pytest.mark.parametrize("name", [name for name, cell in cells.items() if cell == TESTED])


def differentiable(case: Case) -> str | None:
    """For ``needs``: what has no gradient is left out."""
    return None if case.leaves else "has no gradient"


def a_module(case: Case) -> str | None:
    """For ``needs``: what is no module is left out."""
    return None if isinstance(case.make(Sizes()), nn.Module) else "is no module"
