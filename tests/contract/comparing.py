"""What the tests of the contract share: modules that have a state, and whether two results are the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlcorr import DualContrastiveLoss
from mlcorr.grouping import LabelGroups
from tests.contract.case import Arguments, Case, Sizes, Thing, a_module, differentiable, tensors, with_gradients

SIZES = Sizes()
PROTOTYPES_GIVEN = ("DualContrastiveLoss", "DualContrastiveLoss, no bank", "DualContrastiveLoss, bounded")


def ready(case: Case, sizes: Sizes = SIZES, *, training: bool = False) -> Thing:
    """Return a new thing; a module with a used state, in evaluation mode, in which it gives the same each time.

    With ``training`` in training mode, if it gives the same each time there.
    """
    other = case.draw(sizes._replace(seed=sizes.seed + 1))
    thing = case.module(other, sizes)
    if isinstance(thing, nn.Module) and not collects(case):
        with torch.no_grad():
            case.call(thing, other)  # in training mode, so that a memory bank holds something
    if not isinstance(thing, nn.Module):
        return thing
    return thing.train(training and not any(isinstance(module, DualContrastiveLoss) for module in thing.modules()))


def once(case: Case, thing: Thing, arguments: Arguments) -> Any:
    """Call the thing, or a copy of what counts or collects, which so begins anew."""
    return case.call(copy.deepcopy(thing) if collects(case) else thing, arguments)


def collects(case: Case) -> bool:
    """Return whether a call is one of many that make a result."""
    return case.kind in ("grouping", "metric")


class Called(nn.Module):
    """What a module's call returns, as a module that holds it."""

    def __init__(self, case: Case, thing: Thing) -> None:
        super().__init__()
        self.case = case
        self.thing = thing

    def forward(self, arguments: Arguments) -> Any:
        return self.case.call(self.thing, arguments)


def with_weights(case: Case) -> str | None:
    """For ``needs``: what has no weights is left out."""
    return differentiable(case) or a_module(case) or (None if list(case.make(SIZES).parameters()) else "has no weights")


def parts(output: object) -> list[Tensor]:
    """Return the tensors of an output, groups of labels among them."""
    return [output.co, output.dis] if isinstance(output, LabelGroups) else tensors(output)


def numbers(output: object) -> list[Tensor]:
    """Return what an output consists of as dense tensors."""
    leaves = parts(output) or [
        torch.tensor(x, dtype=torch.float64) for x in tree_leaves(output) if isinstance(x, (int, float))
    ]
    return [leaf.to_dense() if leaf.layout != torch.strided else leaf for leaf in leaves]


def gradient(case: Case, thing: Thing, arguments: Arguments) -> list[Tensor]:
    """Return the gradients of the leaves among the arguments."""
    leaves = [arguments[name] for name in case.leaves]
    return list(torch.autograd.grad(scalar_of(once(case, thing, arguments)), leaves))


def scalar_of(output: object, places: Sequence[int] | None = None) -> Tensor:
    """Return a number that every differentiable entry of an output has a share in, each another one.

    As ``case.scalar``, but in the dtype of the entries, and inside what transforms functions, with ``places``.
    """
    total: Any = 0
    for place, tensor in enumerate(tensors(output)):
        if place in differentiable_places(output) if places is None else place in places:
            weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            total = total + (tensor * weights.view(tensor.shape)).sum()
    return total


def differentiable_places(output: object) -> list[int]:
    """Return which tensors of an output have a gradient."""
    return [place for place, tensor in enumerate(tensors(output)) if tensor.requires_grad]


def assert_same(actual: object, expected: object, what: object, *, exactly: bool = False, digits: int = 12) -> None:
    """Raise unless two outputs have the same numbers, to the last bit or to some digits."""
    found, wanted = numbers(actual), numbers(expected)
    assert len(found) == len(wanted), what
    for one, other in zip(found, wanted, strict=True):
        tolerance = dict.fromkeys(("rtol", "atol"), 0.0 if exactly else 10.0**-digits)
        torch.testing.assert_close(
            one.detach(), other.detach(), equal_nan=True, msg=lambda text: f"{what}: {text}", **tolerance
        )


def assert_same_call(case: Case, given: Arguments, expected: Arguments, what: object) -> None:
    """Raise unless value and gradients are the same for the same numbers in another form."""
    thing = ready(case)
    assert_same(once(case, thing, given), once(case, thing, expected), what)
    if case.leaves:
        found, wanted = (gradient(case, thing, with_gradients_as_they_lie(case, one)) for one in (given, expected))
        assert_same(found, wanted, f"{what}, gradient")


def with_gradients_as_they_lie(case: Case, arguments: Arguments) -> Arguments:
    """Return the arguments with leaves that require a gradient, of the same strides and storage."""
    return {
        name: value.detach().requires_grad_() if name in case.leaves else value for name, value in arguments.items()
    }


def of_leaves(case: Case, thing: Thing, arguments: Arguments) -> Callable[..., Tensor]:
    """Return the function of the leaves alone, to a number."""

    places = differentiable_places(once(case, thing, with_gradients(case, arguments)))

    def function(*leaves: Tensor) -> Tensor:
        given = {**arguments, **dict(zip(case.leaves, leaves, strict=True))}
        return scalar_of(once(case, thing, given), places)

    return function


def leaves_of(case: Case, arguments: Arguments) -> tuple[Tensor, ...]:
    """Return new leaves that require a gradient."""
    return tuple(arguments[name].detach().clone().requires_grad_() for name in case.leaves)


def each_tensor(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """Return the arguments with all tensors changed."""
    return {name: change(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
