"""First and second derivatives are those of the function, to its arguments and to the weights of a module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlcorr.losses import _focal
from tests.contract.case import Arguments, Case, differentiable, each_case
from tests.contract.cases import CASES
from tests.contract.comparing import (
    PROTOTYPES_GIVEN,
    SIZES,
    Called,
    assert_same,
    differentiable_places,
    leaves_of,
    of_leaves,
    ready,
    scalar_of,
    with_weights,
)


def of_weights(case: Case, thing: nn.Module, arguments: Arguments) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Return a function of the module's weights, and the weights."""
    called = Called(case, thing)
    places = differentiable_places(called(arguments))
    named = {name: weight for name, weight in called.named_parameters() if weight.requires_grad}

    def function(*weights: Tensor) -> Tensor:
        return scalar_of(
            torch.func.functional_call(called, dict(zip(named, weights, strict=True)), (arguments,)), places
        )

    return function, tuple(weight.detach().clone().requires_grad_() for weight in named.values())


def derivatives(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the first derivatives of the square, and those of a number made of them."""
    used = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(function(*inputs).square(), inputs, create_graph=True, **used)
    return [*first, *torch.autograd.grad(scalar_of(first), inputs, **used)]


def hold_factors(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> bool:
    """Make constants of the focusing factors that the call detaches, if any: derivatives take them so."""
    focus, factors = _focal._focus, []

    def record(log_base: Tensor, gamma: Any, detach: bool) -> Tensor:
        factor = focus(log_base, gamma, detach)
        if detach:
            factors.append(factor.detach())
        return factor

    with monkeypatch.context() as patch:
        patch.setattr(_focal, "_focus", record)
        call()
    if not factors:
        return False
    places = iter(range(1 << 40))

    def repeat(log_base: Tensor, gamma: Any, detach: bool) -> Tensor:
        return factors[next(places) % len(factors)] if detach else focus(log_base, gamma, detach)

    monkeypatch.setattr(_focal, "_focus", repeat)
    return True


def twice_differentiable_attention() -> AbstractContextManager[Any]:
    """Choose that of PyTorch's forms of attention that has second derivatives; the others raise."""
    return sdpa_kernel(SDPBackend.MATH)


def check(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare first and second derivatives with differences of values."""
    with twice_differentiable_attention():
        expected = derivatives(function, inputs)
        if hold_factors(monkeypatch, lambda: function(*inputs)):
            assert_same(derivatives(function, inputs), expected, "with factors held")
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True, rtol=1e-5, atol=1e-6)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, rtol=1e-5, atol=1e-6)


@each_case("first and second derivatives to the arguments", needs=differentiable)
def test_derivatives_to_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case, training=True)
    check(of_leaves(case, thing, arguments), leaves_of(case, arguments), monkeypatch)


def a_loss(case: Case) -> str | None:
    """For ``needs``: what is no loss is left out."""
    return differentiable(case) or (None if case.kind == "loss" else "is no loss")


@each_case("third derivatives", needs=a_loss)
def test_third_derivatives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a step in one direction: backward functions that are written by hand may lose the graph of what they keep."""
    case = CASES[name]
    arguments = case.draw(SIZES)
    function, leaves = of_leaves(case, ready(case, training=True), arguments), leaves_of(case, arguments)
    hold_factors(monkeypatch, lambda: function(*leaves))

    def slopes(*given: Tensor) -> Tensor:
        first = torch.autograd.grad(function(*given).square(), given, create_graph=True)
        return sum(x.square().sum() for x in first)

    assert torch.autograd.gradgradcheck(slopes, leaves, fast_mode=True, rtol=1e-4, atol=1e-4)


def with_soft_targets(case: Case) -> str | None:
    """For ``needs``: what reads targets as numbers is a loss of a target."""
    return differentiable(case) or (
        None if "target" in case.draw(SIZES) and case.kind == "loss" else "takes no soft target"
    )


@each_case("first and second derivatives to soft targets, with those of the other arguments", needs=with_soft_targets)
def test_derivatives_to_soft_targets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    drawn = case.draw(SIZES)
    soft = torch.linspace(0.1, 0.9, drawn["target"].numel(), dtype=torch.float64).view(drawn["target"].shape)
    arguments = {**drawn, "target": torch.where(drawn["target"] < 0, -1.0, soft)}
    of_targets = replace(case, leaves=(*case.leaves, "target"))
    check(of_leaves(of_targets, ready(case), arguments), leaves_of(of_targets, arguments), monkeypatch)


@each_case(
    "first and second derivatives to the weights",
    needs=with_weights,
    but=dict.fromkeys(PROTOTYPES_GIVEN, "is given prototypes, and uses none of its own"),
)
def test_derivatives_to_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    check(*of_weights(case, ready(case, training=True), arguments), monkeypatch)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind in ("system", "backbone")])
def test_attention_without_second_derivatives_says_so(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="not implemented"):
        derivatives(of_leaves(case, ready(case, training=True), arguments), leaves_of(case, arguments))
