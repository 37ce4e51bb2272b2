"""Numbers at the ends of their dtypes: values and gradients are finite and, where float64 can tell, right.

The truth is the same case in float64, on the same numbers. What float64 itself makes of such numbers is held against
120 digits in ``test_exact.py``.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tests.contract.case import Case, cast, differentiable, each_case
from tests.contract.cases import CASES
from tests.contract.extremes import DTYPES, OWN_WEIGHTS, SIZES, assert_within, extremes, measured, rounding

_OFF = 16  # roundings that a result may be off by, of a few hundred that went into it


def of_numbers(case: Case) -> str | None:
    """For ``needs``: losses, and functions of scores."""
    if case.kind in ("system", "backbone", "layer") and "features" in case.floating.values():
        return "multiplies features of any size with weights, as PyTorch does; see large and small features"
    return differentiable(case)


@each_case("extreme numbers", needs=of_numbers, but=OWN_WEIGHTS)
def test_extreme_numbers(name: str) -> None:
    case = CASES[name]
    usual_values, _ = usual(name)
    for dtype in DTYPES:
        for where, arguments in extremes(case, dtype):
            context = f"{dtype}, {where}"
            values, gradients = measured(case, arguments)
            true_values, true_gradients = measured(case, cast(arguments, torch.float64))
            precision = max(torch.finfo(value.dtype).eps for value in values)
            for value, truth, size in zip(values, true_values, usual_values, strict=True):
                fits = truth.abs() <= torch.finfo(value.dtype).max
                assert value[fits].isfinite().all(), context
                assert not value.isnan().any(), context
                natural = truth.abs() if truth.dim() == 0 else truth.abs().clamp(min=size)
                allowed = rounding(value, truth) + _OFF * precision * natural
                assert_within(value[fits], truth[fits], allowed[fits], context)
            for leaf, gradient in gradients.items():
                assert gradient.isfinite().all(), f"{context}, {leaf}"
                largest = torch.finfo(gradient.dtype).max
                truth = true_gradients[leaf].clamp(-largest, largest)
                natural = size_of_gradient(name, leaf, arguments[leaf], truth)
                allowed = rounding(gradient, truth) + _OFF * precision * natural
                assert_within(gradient, truth, allowed, f"{context}, {leaf}")


def size_of_gradient(name: str, leaf: str, argument: Tensor, truth: Tensor) -> Tensor:
    """Return what a gradient's rounding is measured by: its largest entry in the row, or what it is of usual numbers.

    A row of sure logits has gradients next to nothing, which are differences of larger numbers. The gradient to a
    feature is inverse to its length.
    """
    _, gradients = usual(name)
    size, length = gradients[leaf]
    if CASES[name].floating[leaf] == "features":
        lengths = torch.linalg.vector_norm(argument.double() / 2**10, dim=-1, keepdim=True) * 2**10
        size = size * length / lengths.clamp(min=1e-6)
    return torch.maximum(truth.abs().amax(dim=-1, keepdim=True), torch.as_tensor(size, dtype=torch.float64))


@cache
def usual(name: str) -> tuple[list[float], dict[str, tuple[float, float]]]:
    """Return the largest values and gradients of usual numbers, and how long the latter's arguments are."""
    case = CASES[name]
    arguments = case.draw(SIZES)
    values, gradients = measured(case, arguments)
    least = 0.0 if case.kind == "loss" else 1.0  # a layer's gradient may be a difference of those that ``scalar`` gives
    lengths = {leaf: float(torch.linalg.vector_norm(arguments[leaf], dim=-1).mean()) for leaf in case.leaves}
    sizes = {leaf: max(float(gradient.abs().max()), least) for leaf, gradient in gradients.items()}
    return [float(value.abs().max()) for value in values], {leaf: (sizes[leaf], lengths[leaf]) for leaf in sizes}
