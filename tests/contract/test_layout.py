"""How tensors lie in memory makes no difference, and what is given stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.contract.case import Case, Thing, each_case, tensors, with_gradients
from tests.contract.cases import CASES
from tests.contract.comparing import (
    SIZES,
    assert_same,
    assert_same_call,
    each_tensor,
    numbers,
    once,
    parts,
    ready,
    scalar_of,
)


def takes_tensors(case: Case) -> str | None:
    return None if tensors(case.draw(SIZES)) else "takes no tensor"


def returns_tensors(case: Case) -> str | None:
    """For ``needs``: numbers cannot be written into."""
    return None if takes_tensors(case) is None and parts(case(case.draw(SIZES))) else "returns no tensor"


def around(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return room with something in it that would be noticed."""
    return x.new_full(shape, torch.nan if x.is_floating_point() else 1)


def last_dimension_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous().movedim(0, -1) if x.dim() else x


def first_dimension_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x


def every_third(x: Tensor) -> Tensor:
    room = around(x, (*x.shape, 3))
    room[..., 1] = x
    return room[..., 1]


def every_other_row(x: Tensor) -> Tensor:
    room = around(x, (x.shape[0], 2, *x.shape[1:]))
    room[:, 1] = x
    return room[:, 1]


def with_offset(x: Tensor) -> Tensor:
    room = around(x, (x.numel() + 3,))
    room[3:] = x.flatten()
    return room[3:].view(x.shape)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class Derived(Tensor):
    """A class of tensors that adds nothing."""


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    last_dimension_first,
    first_dimension_last,
    every_third,
    every_other_row,
    with_offset,
    channels_last,
]


@each_case("strides and offsets in memory make no difference", needs=takes_tensors)
def test_layouts(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    for lay in LAYOUTS:
        laid = each_tensor(arguments, lay)
        assert_same(tensors(laid), tensors(arguments), lay.__name__, exactly=True)
        assert_same_call(case, laid, arguments, lay.__name__)


@each_case("a tensor that repeats one row or entry without a copy is as good as a copy", needs=takes_tensors)
def test_expanded(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    for repeat in (
        lambda x: x[:1].expand_as(x) if x.dim() else x,
        lambda x: x[..., :1].expand_as(x) if x.dim() else x,
        lambda x: x.flatten()[0].expand_as(x),
    ):
        repeated = each_tensor(arguments, repeat)
        copied = each_tensor(repeated, lambda x: x.clone(memory_format=torch.contiguous_format))
        assert_same_call(case, repeated, copied, [x.stride() for x in tensors(repeated)])


@each_case("parameters and other subclasses of tensors are taken as tensors", needs=takes_tensors)
def test_subclasses(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    as_parameters = {
        key: nn.Parameter(value) if key in case.floating and isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    derived = each_tensor(arguments, lambda x: x.as_subclass(Derived))
    for given in (as_parameters, derived):
        assert_same_call(case, given, arguments, "subclass")


# ------------------------------------------------------------------------------------------------- what is not changed


def state(x: Tensor) -> tuple[object, ...]:
    return x._version, x.requires_grad, x.grad is None, x.shape, x.stride(), x.storage_offset(), x.data_ptr()


@each_case("arguments are never changed", needs=takes_tensors)
@pytest.mark.parametrize("training", [True, False])
def test_arguments_stay(name: str, training: bool) -> None:
    case = CASES[name]
    drawn = case.draw(SIZES)
    floats = {key: value.double() if key in ("target", "targets") else value for key, value in drawn.items()}
    for arguments in (drawn, floats, with_gradients(case, drawn), with_gradients(case, floats)):
        given = [value for value in arguments.values() if isinstance(value, Tensor)]
        before, values = [state(x) for x in given], [x.detach().clone() for x in given]
        thing = case.module(arguments)
        output = case.call(thing.train(training) if isinstance(thing, nn.Module) else thing, arguments)
        if any(x.requires_grad for x in given):
            torch.autograd.grad(scalar_of(output), [arguments[leaf] for leaf in case.leaves])
        assert [state(x) for x in given] == before
        for x, value in zip(given, values, strict=True):
            assert torch.equal(x, value)
        if isinstance(thing, nn.Module):
            assert not any(buffer.requires_grad for buffer in thing.buffers())  # nor is their graph kept


def storages(tensors: list[Tensor]) -> set[int]:
    of = [part for x in tensors for part in ((x._indices(), x._values()) if x.layout == torch.sparse_coo else (x,))]
    return {x.untyped_storage().data_ptr() for x in of if x.numel()}


def held(thing: Thing) -> list[Tensor]:
    return [*thing.parameters(), *thing.buffers()] if isinstance(thing, nn.Module) else []


@each_case(
    "a result is a tensor of its own, not a view of an argument, a weight or an earlier result",
    needs=returns_tensors,
)
def test_results_are_new(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    first, second = case.call(thing, arguments), case.call(thing, arguments)
    others = [value for value in arguments.values() if isinstance(value, Tensor)] + held(thing)
    assert not storages(parts(first)) & storages(others)
    assert not storages(parts(first)) & storages(parts(second))


@each_case("who writes into a result changes no later one", needs=returns_tensors)
def test_results_are_writable(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    expected = [tensor.clone() for tensor in numbers(once(case, thing, arguments))]
    output = once(case, thing, arguments)
    with torch.no_grad():
        for tensor in parts(output):
            tensor.zero_() if tensor.layout == torch.sparse_coo else tensor.fill_(1)
    assert_same(once(case, thing, arguments), expected, "again", exactly=True)
