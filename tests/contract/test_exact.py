"""Losses of logits in float64, at the ends of what it holds, against their definitions with 120 digits."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial

import torch
from torch import Tensor

from tests.contract.case import Arguments, Case, each_case, with_gradients
from tests.contract.cases import CASES
from tests.contract.extremes import assert_within, ends, name_of, rounding
from tests.reference import exact

_OFF = 16
_LABELS = 3  # a row has a logit with each target: 1, 0 and unknown
_ENTRIES: dict[str, exact.Entry] = {
    "asymmetric_loss": exact.asymmetric(held=True),
    "asymmetric_loss, factors with gradient": exact.asymmetric(held=False),
    "AsymmetricLoss": exact.asymmetric(held=True),
    "binary_cross_entropy_loss": exact.known_cross_entropy,
    "BinaryCrossEntropyLoss": exact.known_cross_entropy,
    "assume_negative_loss": exact.assume_negative,
    "AssumeNegativeLoss": exact.smoothed_assume_negative,
    "weak_assume_negative_loss": exact.weak_assume_negative(1 / (_LABELS - 1)),
    "hill_loss": exact.hill,
    "HillLoss": exact.hill,
    "splc_loss": exact.splc,
    "SPLCLoss": exact.splc,
}
_DIVERGENCES: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "mld_loss": exact.divergence,
    "MLDLoss": partial(exact.divergence, temperature=2),
}
_DEPENDENCIES = ("multi_order_dependency_loss",)


def has_digits(case: Case) -> str | None:
    """For ``needs``: losses whose entries are functions of logits alone."""
    name = name_of(case)
    if name in _ENTRIES or name in _DIVERGENCES or name in _DEPENDENCIES:
        return None
    if case.kind == "loss" and "features" not in case.floating.values():
        return "chooses, weighs or adds up what the tested losses have"
    return "is no function of logits entry by entry"


def logits() -> Tensor:
    """Return 13 logits; the largest so that what they sum to is a number."""
    values = ends("logits", torch.float64)
    return torch.where(values.abs() > 1e5, values / 64, values)


@each_case("exact at the ends of float64", needs=has_digits)
def test_exact_at_the_ends_of_float64(name: str) -> None:
    case = CASES[name]
    if name in _ENTRIES:
        values = logits()
        target = torch.tensor([1, 0, -1]).expand(len(values), _LABELS)
        found, gradients = _measured(
            case, {**_epoch(name), "input": values.unsqueeze(1).expand(-1, 3), "target": target}
        )
        entry, divisor = _ENTRIES[name], _divisor(name, len(values))

        def slope(x: float, y: int) -> float:
            return exact.with_digits(lambda: exact.slope(lambda z: entry(z, Decimal(x), y), Decimal(x)) / divisor)

        def total() -> Decimal:
            each = (entry(Decimal(x), Decimal(x), y) for x in values.tolist() for y in (1, 0, -1))
            return sum(each, exact.ZERO) / divisor

        _assert_exact(found, exact.with_digits(total))
        slopes = torch.tensor([[slope(x, y) for y in (1, 0, -1)] for x in values.tolist()], dtype=torch.float64)
        _assert_exact(gradients["input"], slopes, 1 / divisor)
    elif name in _DIVERGENCES:
        student, teacher = (x.contiguous() for x in torch.meshgrid(logits(), logits(), indexing="ij"))
        of_pair = _DIVERGENCES[name]
        found, gradients = _measured(case, {"student": student, "teacher": teacher, "mask": None})
        pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))

        def mean() -> Decimal:
            return sum((of_pair(Decimal(s), Decimal(t)) for s, t in pairs), exact.ZERO) / len(student)

        _assert_exact(found, exact.with_digits(mean))
        for leaf, at in (("student", 0), ("teacher", 1)):
            slopes = torch.tensor(
                [_slope_of_pair(of_pair, pair, at) / len(student) for pair in pairs], dtype=torch.float64
            )
            _assert_exact(gradients[leaf], slopes.view_as(student), 1 / len(student))
    else:
        values = logits()
        student, teacher = values[:12].view(3, 4), values[1:].flip(0).view(3, 4)
        found, gradients = _measured(case, {"student": student, "teacher": teacher, "mask": None})
        rows = [[[Decimal(x) for x in row] for row in of.tolist()] for of in (student, teacher)]
        _assert_exact(found, exact.with_digits(lambda: exact.dependency(*rows)))
        for leaf, at in (("student", 0), ("teacher", 1)):
            slopes = torch.tensor(
                [[_slope_of_rows(rows, at, i, k) for k in range(4)] for i in range(3)], dtype=torch.float64
            )
            _assert_exact(gradients[leaf], slopes, 1.0)


def _measured(case: Case, arguments: Arguments) -> tuple[Tensor, dict[str, Tensor]]:
    given = with_gradients(case, arguments)
    loss = case(given)
    loss.backward()
    return loss.detach(), {leaf: given[leaf].grad for leaf in case.leaves}


def _assert_exact(found: Tensor, truth: float | Tensor, natural: float = 0.0) -> None:
    truth = torch.as_tensor(truth, dtype=torch.float64)
    size = truth.abs().clamp(min=natural)
    assert_within(found, truth, rounding(found, truth) + _OFF * torch.finfo(torch.float64).eps * size, "float64")


def _slope_of_pair(of_pair: Callable[[Decimal, Decimal], Decimal], pair: tuple[float, float], at: int) -> float:
    numbers = [Decimal(x) for x in pair]
    return exact.with_digits(
        lambda: exact.slope(lambda x: of_pair(*(x if k == at else numbers[k] for k in range(2))), numbers[at])
    )


def _slope_of_rows(rows: list[exact.Rows], at: int, i: int, k: int) -> float:
    def moved(x: Decimal) -> Decimal:
        changed = [[list(row) for row in of] for of in rows]
        changed[at][i][k] = x
        return exact.dependency(*changed)

    return exact.with_digits(lambda: exact.slope(moved, rows[at][i][k]))


def _epoch(name: str) -> dict[str, int]:
    return {"epoch": 1} if name == "SPLCLoss" else {}


def _divisor(name: str, rows: int) -> int:
    """Return what the sum over entries is divided by."""
    if "negative" in name.lower():
        return rows * _LABELS
    return rows if "entropy" in name.lower() else 1
