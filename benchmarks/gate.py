"""The gate before the clock: a provider whose value or gradient is wrong gets no number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.providers import PROVIDERS, TRUTHS, Provider

# Of the value, and of the gradient as a vector: float32 at 10⁶ labels passes, a missing term does not.
TOLERANCE = 1e-4


class Truth(NamedTuple):
    """A quantity of a case in float64, and its gradient to the student's logits."""

    value: Tensor
    gradient: Tensor


def truth(quantity: str, case: Case, inputs: Inputs) -> Truth | None:
    """Return what providers of ``quantity`` must compute; None where the quantity is no loss."""
    if quantity not in TRUTHS:
        return None
    exact = inputs.double()
    value = PROVIDERS[TRUTHS[quantity]].build(case)(exact)
    (gradient,) = torch.autograd.grad(value, exact.student)
    return Truth(value.detach(), gradient)


def check(provider: Provider, value: Tensor, student: Tensor, expected: Truth | None) -> None:
    """Raise AssertionError unless ``value``, and its gradient where there is one, are the ``expected``."""
    if expected is None:
        return
    _compare("value", value.detach(), expected.value)
    if provider.backward:
        (gradient,) = torch.autograd.grad(value, student)
        _compare("gradient", gradient, expected.gradient)


def _compare(name: str, actual: Tensor, expected: Tensor) -> None:
    actual = actual.to(expected)
    distance = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
    if not distance <= TOLERANCE:  # also where it is NaN
        raise AssertionError(f"its {name} is off by {distance:.1e}, which is beyond {TOLERANCE:.0e}")
