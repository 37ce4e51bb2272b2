"""What holds for every treatment of unknown labels."""

from __future__ import annotations

import copy
import inspect
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.losses.partial.cases import CASES, LABELS, Case

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    return logits.to(dtype), torch.randint(-1, 2, shape, generator=generator)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_finite_logit_has_a_finite_value_and_gradient(case: Case, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = [0.0, 1e-7, -1e-7, 20.0, -20.0, -30.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, largest, -largest]
    exact = torch.tensor(values, dtype=torch.float64).to(dtype).unsqueeze(1).expand(-1, LABELS)
    for y in (1.0, 0.0, -1.0, 0.5):
        x = exact.clone().requires_grad_()
        target = torch.full_like(x, y, dtype=torch.float32)
        loss = case.function(x, target, reduction="none")
        loss.sum().backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert x.grad.dtype == dtype
        assert loss.isfinite().all()
        assert x.grad.isfinite().all()
        truth = case.function(exact.double(), target, reduction="none")
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if not case.detached], ids=lambda case: case.name)
def test_the_gradient_is_the_derivative(case: Case) -> None:
    logits, target = batch(5, LABELS)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: case.function(x, target), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: case.function(x, target), (logits,))


@every_case
def test_reductions(case: Case) -> None:
    logits, target = batch(2, 3, LABELS, seed=1)
    target[1, 1] = -1
    entries = case.function(logits, target, reduction="none")
    valid = target >= 0 if case.by_row else torch.ones_like(target, dtype=torch.bool)
    assert entries.shape == logits.shape
    expected = {
        "sum": entries.sum(),
        "mean": entries.sum() / valid.sum(),
        "batchmean": entries.sum() / valid.any(-1).sum(),
    }
    for reduction, value in expected.items():
        torch.testing.assert_close(case.function(logits, target, reduction=reduction), value, rtol=1e-12, atol=0)
    assert case.function(logits, target) == case.function(logits, target, reduction=case.default_reduction)


@every_case
def test_leading_dimensions_are_free(case: Case) -> None:
    logits, target = batch(2, 3, LABELS)
    flat = case.function(logits.reshape(6, LABELS), target.reshape(6, LABELS), reduction="none")
    torch.testing.assert_close(case.function(logits, target, reduction="none").reshape(6, LABELS), flat)
    row = case.function(logits[0, 0], target[0, 0], reduction="none")
    if not case.by_rank:
        torch.testing.assert_close(row, flat[0])
    one = case.function(logits[0, :1], target[0, :1], reduction="none")[0]
    torch.testing.assert_close(row, one)


@every_case
def test_an_empty_batch_gives_zero(case: Case) -> None:
    for shape in ((0, LABELS), (2, 0, LABELS)):
        logits = torch.zeros(shape, requires_grad=True)
        for reduction in ("mean", "sum", "batchmean"):
            loss = case.function(logits, torch.zeros(shape), reduction=reduction)
            loss.backward()
            assert loss.item() == 0.0
            assert logits.grad.shape == shape


@every_case
def test_inputs_stay_as_they_are_and_a_target_may_have_any_dtype(case: Case) -> None:
    logits, target = batch(3, LABELS, dtype=torch.float32)
    before = logits.clone(), target.clone()
    expected = case.function(logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])
    for dtype in (torch.int8, torch.float16, torch.float64):
        assert case.function(logits, target.to(dtype)) == expected
    known = target.clamp(min=0)
    for dtype in (torch.bool, torch.uint8):
        assert case.function(logits, known.to(dtype)) == case.function(logits, known)


@every_case
def test_the_module_is_the_function(case: Case) -> None:
    logits, target = batch(4, LABELS, dtype=torch.float32)
    module = case.module()
    assert module(logits, target, *case.epoch) == case.function(logits, target)
    for reduction in ("none", "sum", "mean", "batchmean"):
        other = case.module(reduction=reduction)
        expected = case.function(logits, target, reduction=reduction)
        assert torch.equal(other(logits, target, *case.epoch), expected)
        assert f"reduction={reduction!r}" in repr(other)
    assert torch.equal(copy.deepcopy(module)(logits, target, *case.epoch), module(logits, target, *case.epoch))


@every_case
def test_repr_names_every_parameter(case: Case) -> None:
    module = case.module()
    parameters = [name for name in vars(module) if not name.startswith("_") and name not in ("training", "group")]
    assert len(parameters) >= 2
    for name in parameters:
        assert f"{name}=" in module.extra_repr()


@every_case
def test_compiles_whole_and_stays_out_of_autocast(case: Case) -> None:
    torch.compiler.reset()
    logits, target = batch(4, LABELS, dtype=torch.float32)
    logits.requires_grad_()
    module = case.module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    loss = module(logits, target, *case.epoch)
    (expected,) = torch.autograd.grad(loss, logits)
    actual = compiled(logits, target, *case.epoch)
    torch.testing.assert_close(actual, loss)
    torch.testing.assert_close(torch.autograd.grad(actual, logits)[0], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(logits, target, *case.epoch)
        assert inside.dtype == torch.float32
        assert inside == loss


@every_case
def test_function_transforms(case: Case) -> None:
    logits, target = batch(3, 5, LABELS)
    leaf = logits[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(case.function(leaf, target[0]), leaf)
    torch.testing.assert_close(torch.func.grad(case.function)(logits[0], target[0]), expected)
    if not case.by_rank:
        mapped = torch.func.vmap(torch.func.grad(case.function))(logits, target)
        each = [torch.func.grad(case.function)(*pair) for pair in zip(logits, target, strict=True)]
        torch.testing.assert_close(mapped, torch.stack(each))


@every_case
def test_bad_input_is_named(case: Case) -> None:
    zeros = torch.zeros(2, LABELS)
    for error, message, call in (
        (ValueError, "^reduction: .*'max'", lambda: case.function(zeros, zeros, reduction="max")),
        (ValueError, "^reduction: .*'max'", lambda: case.module(reduction="max")),
        (TypeError, "^input: .*int64", lambda: case.function(zeros.long(), zeros)),
        (ValueError, r"^target: .*\(2, 3\)", lambda: case.function(zeros, torch.zeros(2, 3))),
        (TypeError, "^target: .*list", lambda: case.function(zeros, [1, 0])),
        (TypeError, "^target: .*complex", lambda: case.function(zeros, zeros.to(torch.complex64))),
        (ValueError, "^input: .*dimension", lambda: case.function(zeros[0, 0], zeros[0, 0])),
    ):
        with pytest.raises(error, match=message):
            call()


NOT_BELOW_ZERO = {
    "weight", "lamb", "margin", "gamma", "gamma_neg", "gamma_pos", "gamma_unknown", "alpha_neg", "alpha_pos",
    "alpha_unknown",
}  # fmt: skip
SHARES = {"label_smoothing", "tau", "clip", "prior_threshold", "share", "relative_share"}
COUNTS = {"likelihood_topk", "change_epoch"}


def test_every_parameter_is_checked_in_function_and_module() -> None:
    seen = set()
    for case in CASES:
        function = partial(case.function, torch.zeros(2, LABELS), torch.zeros(2, LABELS))
        for call, signature in ((function, case.function.func), (case.module, case.module.func)):
            for name in inspect.signature(signature).parameters:
                wrong: list[object] = []
                if name in {"alpha", "beta", "gamma"}:
                    wrong += [math.nan, math.inf, -math.inf]
                if name in NOT_BELOW_ZERO and not (name == "gamma" and case.by_row):
                    wrong += [math.nan, math.inf, -0.5]
                if name in SHARES:
                    wrong += [math.nan, -0.5, 1.5]
                if name in COUNTS:
                    wrong += [-1]
                for value in wrong:
                    with pytest.raises(ValueError, match=f"^{name}: .*{value}"):
                        call(**{name: value})
                if wrong:
                    seen.add(name)
                    with pytest.raises(TypeError, match=f"^{name}: .*'1'"):
                        call(**{name: "1"})
    assert seen == {"alpha", "beta"} | NOT_BELOW_ZERO | SHARES | COUNTS
