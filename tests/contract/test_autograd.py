"""Whatever PyTorch offers around a backward pass works around everything here, and changes no number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tests.contract.case import Case, a_module, differentiable, each_case, tensors, with_gradients
from tests.contract.cases import CASES
from tests.contract.comparing import (
    SIZES,
    assert_same,
    differentiable_places,
    leaves_of,
    of_leaves,
    once,
    ready,
    scalar_of,
    with_weights,
)


def prepared(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], list[Tensor]]:
    """Return the function of the leaves, the leaves, and the gradients to be expected."""
    case = CASES[name]
    arguments = case.draw(SIZES)
    function, leaves = of_leaves(case, ready(case, training=True), arguments), leaves_of(case, arguments)
    return function, leaves, list(torch.autograd.grad(function(*leaves), leaves))


@each_case("gradients of several passes add up, and one pass can go back twice", needs=differentiable)
def test_accumulation(name: str) -> None:
    function, leaves, expected = prepared(name)
    for times in (1, 2):
        function(*leaves).backward()
        assert_same([leaf.grad for leaf in leaves], [times * x for x in expected], f"after {times}")
    value = function(*leaves)
    first, again = (torch.autograd.grad(value, leaves, retain_graph=True) for _ in range(2))
    assert_same(again, first, "the same graph", exactly=True)


@each_case("a gradient is linear in what comes from above, nothing and nothing but zeros too", needs=differentiable)
def test_grad_outputs(name: str) -> None:
    function, leaves, expected = prepared(name)
    value = function(*leaves)
    for above in (None, -2.5, 0.0):
        given = None if above is None else torch.tensor(above, dtype=value.dtype)
        found = torch.autograd.grad(value, leaves, given, retain_graph=True)
        assert_same(found, [(1 if above is None else above) * x for x in expected], above)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for many gradients at a time
        value = function(*leaves)
        many = torch.autograd.grad(value, leaves, torch.tensor([1.0, 3.0]).to(value), is_grads_batched=True)
    assert_same(many, [torch.stack([x, 3 * x]) for x in expected], "batched")


def several_outputs(case: Case) -> str | None:
    """For ``needs``: one output is differentiated elsewhere."""
    if not case.leaves:
        return "has no gradient"
    output = case(with_gradients(case, case.draw(SIZES)))
    return None if len(differentiable_places(output)) > 1 else "has one output"


@each_case("the gradients of each output alone are shares of the gradient of all", needs=several_outputs)
def test_each_output_alone(name: str) -> None:
    case = CASES[name]
    arguments = with_gradients(case, case.draw(SIZES))
    leaves = [arguments[leaf] for leaf in case.leaves]
    output = once(case, ready(case, training=True), arguments)
    every = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    each = [torch.autograd.grad(scalar_of(output, [k]), leaves, **every) for k in differentiable_places(output)]
    assert_same([sum(x) for x in zip(*each, strict=True)], torch.autograd.grad(scalar_of(output), leaves), "sum")


@each_case("each argument alone gets the gradient that it gets among the others", needs=differentiable)
def test_each_leaf_alone(name: str) -> None:
    function, leaves, expected = prepared(name)
    for place, wanted in enumerate(expected):
        some = [leaf if place == k else leaf.detach() for k, leaf in enumerate(leaves)]
        assert_same(torch.autograd.grad(function(*some), some[place]), [wanted], place)


@each_case("weights that are frozen change no other gradient", needs=with_weights)
def test_frozen_weights(name: str) -> None:
    case = CASES[name]
    thing = ready(case, training=True)
    weights = [weight for weight in thing.parameters() if weight.requires_grad]
    arguments = case.draw(SIZES)
    function, leaves = of_leaves(case, thing, arguments), leaves_of(case, arguments)
    every = {"allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(function(*leaves), (*leaves, *weights), **every)
    for kept in (weights[::2], weights[1::2], []):
        for weight in weights:
            weight.requires_grad_(any(weight is one for one in kept))
        found = torch.autograd.grad(function(*leaves), (*leaves, *kept), **every)
        places = [len(leaves) + k for k, weight in enumerate(weights) if any(weight is one for one in kept)]
        assert_same(found, [*expected[: len(leaves)], *[expected[place] for place in places]], len(kept))
    for weight in weights:
        weight.requires_grad_()


@each_case("without a graph the value is the same, and a first call without leaves nothing behind")
def test_without_graph(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            without = once(case, thing, with_gradients(case, arguments))
            assert not any(tensor.requires_grad for tensor in tensors(without))
        found = once(case, thing, with_gradients(case, arguments))
        assert_same(found, without, "with a graph")
        if case.leaves:
            scalar_of(found).backward()


@each_case("the gradient is the same when asked for with a graph of its own", needs=differentiable)
def test_create_graph(name: str) -> None:
    function, leaves, expected = prepared(name)
    assert_same(torch.autograd.grad(function(*leaves), leaves, create_graph=True), expected, "with a graph")
    with sdpa_kernel(SDPBackend.MATH):

        def second(times: int) -> tuple[Tensor, ...]:
            values = [function(*leaves) for _ in range(times)]
            first = torch.autograd.grad(sum(values[1:], values[0]).square(), leaves, create_graph=True)
            return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

        # (2f)² is 4f², and a square of its gradient 16 times as large.
        assert_same(second(2), [16 * x for x in second(1)], "two calls", digits=10)


def anomaly() -> AbstractContextManager[Any]:
    return torch.autograd.detect_anomaly(check_nan=True)


def elsewhere() -> AbstractContextManager[Any]:
    return torch.autograd.graph.saved_tensors_hooks(
        lambda x: x.detach().numpy().copy(), lambda kept: torch.as_tensor(kept)
    )


CONTEXTS = [anomaly, elsewhere, torch.autograd.graph.save_on_cpu]


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@each_case("anomaly detection, and keeping elsewhere what backward needs, change no gradient", needs=differentiable)
def test_contexts(name: str) -> None:
    function, leaves, expected = prepared(name)
    for context in CONTEXTS:
        with context():
            assert_same(torch.autograd.grad(function(*leaves), leaves), expected, context)


@each_case("an activation checkpoint changes no gradient", needs=differentiable)
def test_checkpoint(name: str) -> None:
    function, leaves, expected = prepared(name)
    for reentrant in (False, True):
        for leaf in leaves:
            leaf.grad = None
        checkpoint(function, *leaves, use_reentrant=reentrant).backward()
        assert_same([leaf.grad for leaf in leaves], expected, f"use_reentrant={reentrant}")


@each_case("hooks of tensors see the gradient once, and may change it", needs=differentiable)
def test_tensor_hooks(name: str) -> None:
    function, leaves, expected = prepared(name)
    seen: dict[int, Tensor] = {}

    def see(place: int, gradient: Tensor) -> Tensor:
        assert place not in seen
        seen[place] = gradient.clone()
        return 2 * gradient

    between = [leaf.clone() for leaf in leaves]
    for place, x in enumerate(between):
        x.register_hook(lambda gradient, place=place: see(place, gradient))
    function(*between).backward()
    assert_same([seen[place] for place in range(len(leaves))], expected, "seen")
    assert_same([leaf.grad for leaf in leaves], [2 * x for x in expected], "changed")


@each_case(
    "hooks of modules are called, and change nothing by being there",
    needs=a_module,
    but=dict.fromkeys(("LabelCooccurrence", "LabelCooccurrence, sparse"), "is a module that is never called"),
)
def test_module_hooks(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case, training=True)
    before = once(case, thing, arguments)
    called = []
    thing.register_forward_pre_hook(lambda *_: called.append("before"))
    thing.register_forward_hook(lambda *_: called.append("after"))
    assert_same(once(case, thing, arguments), before, "value")
    assert called == ["before", "after"]


def called_directly(case: Case) -> str | None:
    """For ``needs``: what is no module, or more than one call of it, is left out."""
    direct = case.kind in ("loss", "layer", "backbone")
    return differentiable(case) or a_module(case) or (None if direct else "is more than a call of the module")


@each_case("backward hooks of modules see the gradients", needs=called_directly)
def test_backward_hooks(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case, training=True)
    expected = prepared(name)[2]
    inputs: list[Tensor] = []
    outputs: list[int] = []
    thing.register_full_backward_pre_hook(lambda module, gradients: outputs.append(len(gradients)))  # noqa: ARG005
    thing.register_full_backward_hook(lambda module, to_inputs, to_outputs: inputs.extend(to_inputs))  # noqa: ARG005
    leaves = leaves_of(case, arguments)
    given = {**arguments, **dict(zip(case.leaves, leaves, strict=True))}
    bound = inspect.signature(thing.forward).bind(**given)  # by position, since PyTorch looks at these alone
    output = thing(*bound.args, **bound.kwargs)
    assert type(output) is type(once(case, ready(case), arguments))
    assert_same(torch.autograd.grad(scalar_of(output), leaves), expected, "gradient")
    assert outputs == [len(output) if isinstance(output, tuple) else 1]
    places = [
        (k, x) for k, given in enumerate(bound.args) for leaf, x in zip(leaves, expected, strict=True) if given is leaf
    ]
    assert places
    assert_same([inputs[k] for k, _ in places], [x for _, x in places], "seen")


@each_case("what is written to an argument before backward is noticed, or does not matter", needs=differentiable)
def test_written_before_backward(name: str) -> None:
    function, leaves, expected = prepared(name)
    for place in range(len(leaves)):
        given = [leaf.clone() for leaf in leaves]
        value = function(*given)
        with torch.no_grad():
            given[place].mul_(-1.5)
        found = gradient_or_refusal(value, leaves)
        if found is not None:
            assert_same(found, expected, place)


def gradient_or_refusal(value: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gradient, or None where PyTorch noticed that what it needs was overwritten."""
    try:
        return torch.autograd.grad(value, leaves)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
