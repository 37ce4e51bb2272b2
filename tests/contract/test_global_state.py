"""What belongs to the whole process stays as it was, and what somebody else has set there does no harm."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlcorr.functional import multi_order_dependency_loss
from tests.contract.case import Case, cast, each_case, tensors, with_gradients
from tests.contract.cases import CASES
from tests.contract.comparing import SIZES, assert_same, leaves_of, numbers, of_leaves, once, parts, ready, scalar_of


def process_state() -> dict[str, Any]:
    """Return what a library must leave as it was."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "random numbers": torch.get_rng_state().tolist(),
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": str(np.random.get_state()),  # noqa: NPY002
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "filters": list(warnings.filters),
        "NumPy's errors": np.geterr(),
        "precision": (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "denormals": torch.tensor(1e-310, dtype=torch.float64).mul(1).item(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "anomalies": torch.is_anomaly_enabled(),
        "printing": repr(torch.tensor([1.0 / 3, 1e9])),
    }


@each_case("calling and differentiating leave the process as it was, and warn of nothing")
@pytest.mark.parametrize("training", [True, False])
def test_process_stays(name: str, training: bool) -> None:
    case = CASES[name]
    arguments = with_gradients(case, case.draw(SIZES))
    once(case, ready(case), arguments)  # imports may do as they like, the first time
    torch.manual_seed(11)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            before = process_state()
            thing = case.module(arguments)
            output = once(case, thing.train(training) if isinstance(thing, nn.Module) else thing, arguments)
            if case.leaves and gradients:
                scalar_of(output).backward()
            assert process_state() == before
        assert not caught, [str(one.message) for one in caught]
        assert gradients or not any(x.requires_grad for x in parts(output))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def value_and_gradient(case: Case, thing: Any, arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
    output = once(case, thing, arguments)
    leaves = leaves_of(case, arguments)
    gradients = torch.autograd.grad(of_leaves(case, thing, arguments)(*leaves), leaves) if case.leaves else ()
    return numbers(output), list(gradients)


@each_case("another default dtype changes no number and no dtype")
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_default_dtype(name: str, given: torch.dtype) -> None:
    case = CASES[name]
    arguments = cast(case.draw(SIZES), given)
    thing = ready(case)
    thing = thing.to(given) if isinstance(thing, nn.Module) else thing
    expected = value_and_gradient(case, thing, arguments)
    for dtype in (torch.float64, torch.float16):
        with default_dtype(dtype):
            found = value_and_gradient(case, thing, arguments)
        assert_same(found, expected, dtype, exactly=True)
        assert [x.dtype for x in tensors(found)] == [x.dtype for x in tensors(expected)]


@each_case("another default device changes nothing: everything is where the arguments are")
def test_default_device(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    expected = value_and_gradient(case, thing, arguments)
    with torch.device("meta"):
        found = once(case, thing, arguments)
        assert all(x.device.type == "cpu" for x in parts(found))
        if case.leaves:
            scalar_of(once(case, thing, with_gradients(case, arguments)))
    assert_same(numbers(found), expected[0], "value", exactly=True)


@each_case("deterministic algorithms are enough, and give the same")
def test_deterministic_algorithms(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    expected = value_and_gradient(case, thing, arguments)
    with deterministic():
        first = value_and_gradient(case, thing, arguments)
        again = value_and_gradient(case, thing, arguments)
    assert_same(first, expected, "value")
    assert_same(again, first, "again", exactly=True)


# ---------------------------------------------------------------------- what draws random numbers, and from where


def test_samples_come_from_the_generator_that_is_given() -> None:
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64)

    def loss(generator: torch.Generator | None) -> Tensor:
        return multi_order_dependency_loss(
            student, teacher, orders=(5,), level="instance", delta=0.1, samples=20, generator=generator
        )

    before = torch.get_rng_state()
    own = loss(torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert loss(torch.Generator().manual_seed(3)) == own
    torch.manual_seed(3)
    assert loss(None) == own
    assert loss(None) != own


def test_labels_to_hide_are_drawn_in_training_alone() -> None:
    case = CASES["LatentContext"]
    arguments = {key: value for key, value in case.draw(SIZES).items() if key != "hide"}
    model = ready(case)
    before = torch.get_rng_state()
    model(arguments["images"])
    assert torch.equal(torch.get_rng_state(), before)
    model.train()(**arguments)
    assert not torch.equal(torch.get_rng_state(), before)
