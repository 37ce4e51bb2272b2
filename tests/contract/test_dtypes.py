"""Arguments of several dtypes, autocast, and gradient scalers: results are of the documented dtype, and right."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from mlcorr import functional
from tests.contract.case import Case, Sizes, cast, differentiable, each_case, scalar, tensors
from tests.contract.cases import CASES
from tests.contract.extremes import DTYPES, OWN_WEIGHTS, assert_within, measured, name_of, rounding

_OFF = 64
_TARGETS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
)


def of_several(case: Case) -> str | None:
    """For ``needs``: losses and functions of more than one tensor of numbers."""
    if len(case.floating) < 2:
        return "takes one tensor of real numbers"
    return None if case.kind in ("loss", "layer") else "is a module, of one dtype"


@each_case("arguments of several dtypes", needs=of_several, but=OWN_WEIGHTS)
def test_arguments_of_several_dtypes(name: str) -> None:
    case = CASES[name]
    for dtypes in itertools.product(DTYPES, repeat=len(case.floating)):
        arguments = case.draw(Sizes())
        of = dict(zip(case.floating, dtypes, strict=True))
        arguments.update((key, arguments[key].to(dtype)) for key, dtype in of.items())
        if name == "group_wise_linear" and of["x"] != of["weight"]:
            with pytest.raises(TypeError, match="weight: expected the dtype of x"):
                case(arguments)
            continue
        values, gradients = measured(case, arguments, Sizes())
        true_values, true_gradients = measured(case, cast(arguments, torch.float64), Sizes())
        compared = {key: dtype for key, dtype in of.items() if key != "scores"}  # which only say what a bank takes
        expected = torch.float64 if torch.float64 in compared.values() else torch.float32
        expected = of["x"] if name == "group_wise_linear" else expected
        for value, truth in zip(values, true_values, strict=True):
            assert value.dtype == expected, dtypes
            _assert_near(value, truth, expected, f"{dtypes}")
        for leaf, gradient in gradients.items():
            assert gradient.dtype == of[leaf], (dtypes, leaf)
            _assert_near(gradient, true_gradients[leaf], expected, f"{dtypes}, {leaf}")


def takes_targets(case: Case) -> str | None:
    """For ``needs``: what has targets."""
    return None if {"target", "targets"} & case.draw(Sizes()).keys() else "takes no targets"


@each_case("targets of every dtype", needs=takes_targets)
def test_targets_of_every_dtype(name: str) -> None:
    """Counts refuse what few have, the rest takes it; both say what they want."""
    case = CASES[name]
    arguments = cast(case.draw(Sizes()), torch.float32)
    key = "target" if "target" in arguments else "targets"
    with pytest.raises(TypeError, match=f"^{key}: expected a bool, integer or floating-point tensor, got"):
        case({**arguments, key: arguments[key].to(torch.complex64)})
    for dtype in _TARGETS:
        drawn = arguments[key] if dtype.is_signed else arguments[key].clamp(min=0)
        given = {**arguments, key: drawn.to(dtype)}
        if case.kind == "grouping" and dtype in _TARGETS[-5:]:
            with pytest.raises(TypeError, match=r"^targets: expected .* got torch"):
                case(given)
            continue
        expected = tensors(case({**arguments, key: drawn}))
        found = tensors(case(given))
        for one, other in zip(found, expected, strict=True):
            if one.is_sparse:
                one, other = one.to_dense(), other.to_dense()
            assert one.dtype == (dtype if name == "correct_large_losses" else other.dtype), dtype
            # Of bool and uint8, in which nothing can be unknown, another sum may be formed.
            torch.testing.assert_close(one.to(other.dtype), other, rtol=1e-6, atol=1e-7, equal_nan=True)


def _assert_near(found: Tensor, truth: Tensor, computed: torch.dtype, context: str) -> None:
    if not truth.numel():
        return
    allowed = rounding(found, truth) + _OFF * torch.finfo(computed).eps * truth.abs().max()
    assert_within(found, truth, allowed, context)


_FUNCTIONS = ("purify", "spatial_aware_logits", "average_message")  # layers without products with weights


def multiplies(case: Case) -> bool:
    """Return whether autocast is meant for what a case computes: products of features and weights."""
    return case.kind in ("layer", "system", "backbone") and name_of(case) not in _FUNCTIONS


@each_case("autocast", needs=differentiable)
def test_autocast(name: str) -> None:
    """Both passes in autocast: a loss is what it is without, and a layer rounds as autocast's products do."""
    case = CASES[name]
    for dtype, of in itertools.product((torch.bfloat16, torch.float16), (torch.float32, torch.float64, torch.float16)):
        if multiplies(case) and of == torch.float16:
            continue  # weights of half precision are not what autocast is for
        # What a loss computes depends on whether there are more rows, or labels, or far more labels.
        for sizes in (Sizes(),) if case.kind != "loss" else (Sizes(), Sizes(rows=7), Sizes(rows=1, labels=6)):
            context = f"{of} in autocast to {dtype}, {sizes}"
            arguments = cast(case.draw(sizes), of)
            outside, gradients_outside = measured(case, arguments, sizes)
            with torch.autocast("cpu", dtype):
                inside, gradients = measured(case, arguments, sizes)
            for leaf, gradient in gradients.items():
                assert gradient.dtype == of, f"{context}, {leaf}"
                assert gradient.isfinite().all(), f"{context}, {leaf}"
            if multiplies(case):
                assert all(value.isfinite().all() for value in inside), context
                if name in ("group_wise_linear", "GroupWiseLinear") and of == torch.float32:
                    assert inside[0].dtype == dtype, context
                if name == "AverageMessageGCN":
                    assert inside[0].dtype == of, context
                continue
            for one, other in zip(inside, outside, strict=True):
                assert one.dtype == other.dtype, context
                assert torch.equal(one, other), context
            for leaf, gradient in gradients.items():
                assert torch.equal(gradient, gradients_outside[leaf]), f"{context}, {leaf}"


@each_case("a step of a gradient scaler", needs=differentiable)
def test_a_step_of_a_gradient_scaler(name: str) -> None:
    """Half precision as one trains in it: the scaler finds its scale, and steps by the gradient."""
    case = CASES[name]
    drawn = cast(case.draw(Sizes()), torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        leaves = {leaf: nn.Parameter(drawn[leaf].clone()) for leaf in case.leaves}
        in_autocast = multiplies(case)  # with weights in float32; else what comes in is of half precision itself
        given = drawn if in_autocast else cast(drawn, dtype)
        thing = case.module(given)
        weights = list(thing.parameters()) if in_autocast and isinstance(thing, nn.Module) else []
        before = {leaf: weight.detach().clone() for leaf, weight in leaves.items()}
        scaler = torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD([*leaves.values(), *weights], lr=1.0)
        for _ in range(60):
            optimizer.zero_grad()
            each = leaves if in_autocast else {leaf: weight.to(dtype) for leaf, weight in leaves.items()}
            with torch.autocast("cpu", dtype, enabled=in_autocast):
                loss = scalar(case.call(thing if in_autocast else case.module(given), {**given, **each}))
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= scale:
                break
        assert all(weight.isfinite().all() for weight in weights), dtype
        rounded = {leaf: weight.to(dtype) for leaf, weight in before.items()}
        _, truths = measured(case, cast({**cast(drawn, dtype), **rounded}, torch.float64), Sizes())
        for leaf, weight in leaves.items():
            step = before[leaf] - weight.detach()
            assert (step != 0).any(), (dtype, leaf)
            assert step.isfinite().all(), (dtype, leaf)
            if not in_autocast:
                allowed = torch.finfo(torch.float32).eps * before[leaf].abs().double()
                least = (
                    1.0 if case.kind == "layer" else 0.0
                )  # of the gradients, in half precision, that these differ by
                allowed = allowed + 2 * torch.finfo(dtype).eps * truths[leaf].abs().max().clamp(min=least)
                assert_within(step, truths[leaf], allowed, f"{dtype}, {leaf}")


_WEIGHTED = {
    "asymmetric_loss weight": lambda x, y, factor: functional.asymmetric_loss(x, y, weight=factor),
    "asymmetric_loss pos_weight": lambda x, y, factor: functional.asymmetric_loss(x, y, pos_weight=factor),
    "partial_asymmetric_loss prior": lambda x, y, factor: functional.partial_asymmetric_loss(
        x, y, prior=factor, likelihood_topk=0
    ),
    "mld_loss weight": lambda x, y, factor: functional.mld_loss(x, y.to(x.dtype), weight=factor),
}


@pytest.mark.parametrize("name", _WEIGHTED)
def test_factors_of_every_dtype(name: str) -> None:
    """What is a setting of a loss is rounded to what the loss computes in, and never widens its result."""
    arguments = CASES["asymmetric_loss"].draw(Sizes())
    for dtype, of_factor in itertools.product(DTYPES, repeat=2):
        x, y = arguments["input"].to(dtype), arguments["target"]
        factor = torch.tensor([0.03, 0.25, 1.0, 0.01, 2.0], dtype=of_factor)
        found, truth = (_WEIGHTED[name](of, y, weights) for of, weights in ((x, factor), (x.double(), factor.double())))
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        _assert_near(found, truth, found.dtype, f"{dtype} and {of_factor}")
