"""No rows, one row, one label, two; nothing positive, known or valid: a number comes out, and a gradient goes back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.contract.case import Arguments, Case, Sizes, cast, each_case
from tests.contract.cases import CASES
from tests.contract.extremes import assert_within, measured, rounding

_SIZES = (
    Sizes(),
    Sizes(rows=0),
    Sizes(rows=1),
    Sizes(labels=1),
    Sizes(labels=2),
    Sizes(rows=0, labels=1),
    Sizes(rows=1, labels=1),
)
_OFF = 64

# Losses in which an unknown label counts as something.
_READ_UNKNOWN = (
    "AssumeNegativeLoss",
    "assume_negative_loss",
    "WeakAssumeNegativeLoss",
    "weak_assume_negative_loss",
    "HillLoss",
    "hill_loss",
    "SPLCLoss",
    "splc_loss",
    "LargeLoss",
    "large_loss",
    "PartialAsymmetricLoss",
    "partial_asymmetric_loss",
    "MDKDObjective",  # distils from a teacher
)


def takes_arrays(case: Case) -> str | None:
    """For ``needs``: what takes no rows of labels is left out."""
    return "takes no rows of labels" if case.kind == "choice" else None


@each_case("shapes without rows, labels or positives", needs=takes_arrays)
def test_extreme_shapes(name: str) -> None:
    case = CASES[name]
    for sizes in _SIZES:
        for what, arguments in _variants(case, sizes):
            context = f"{sizes.rows} rows, {sizes.labels} labels, {what}"
            if _is_refused(name, sizes):
                with pytest.raises(ValueError, match="orders: expected orders of at most"):
                    measured(case, cast(arguments, torch.float32), sizes)
                continue
            if name in ("from_transformers", "TransformersBackbone") and sizes.rows == 0:
                continue  # transformers' own layers cannot reshape a batch without images
            with warnings.catch_warnings():
                # Of two labels, that an average of the other is the other.
                warnings.filterwarnings("ignore", message="num_labels: with 2 labels", category=UserWarning)
                found, gradients = measured(case, cast(arguments, torch.float32), sizes)
                truths, _ = measured(case, cast(cast(arguments, torch.float32), torch.float64), sizes)
            if name == "multilabel_scores":
                assert all(math.isfinite(value) for value in case(arguments, sizes).values()), context
            for value, truth in zip(found, truths, strict=True):
                if name == "average_precision":  # nan, as documented, where there is nothing to find
                    without = (arguments["targets"] != 1).all(dim=0)
                    assert torch.equal(value.isnan(), without), context
                    value, truth = value[~without], truth[~without]
                assert value.is_sparse or value.isfinite().all(), context
                # Where all places of a picture are alike, rounding decides which are above a quantile.
                decided = not (case.kind == "system" and what.startswith("every number"))
                if value.numel() and not value.is_sparse and decided:
                    natural = truth.abs().max().clamp(min=1.0)
                    allowed = rounding(value, truth) + _OFF * torch.finfo(value.dtype).eps * natural
                    assert_within(value, truth, allowed, context)
            for leaf, gradient in gradients.items():
                assert gradient is not None, f"{context}, {leaf}"
                assert gradient.isfinite().all(), f"{context}, {leaf}"
            if case.kind == "loss" and _is_nothing(name, sizes, what):
                assert all((value == 0).all() for value in found), context
                assert all((gradient == 0).all() for gradient in gradients.values()), context


def _variants(case: Case, sizes: Sizes) -> Iterator[tuple[str, Arguments]]:
    arguments = case.draw(sizes)
    yield "as drawn", arguments
    for number in (0.0, 0.75):
        yield (
            f"every number {number}",
            {**arguments, **{key: arguments[key].clamp(number, number) for key in case.floating}},
        )
    for key, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if key in ("target", "targets"):
            for meaning, number in (("positive", 1), ("negative", 0), ("unknown", -1)):
                yield f"every label {meaning}", {**arguments, key: torch.full_like(value, number)}
        elif value.dtype == torch.bool:
            yield f"{key} everywhere", {**arguments, key: torch.ones_like(value)}
            yield f"{key} nowhere", {**arguments, key: torch.zeros_like(value)}
        elif key == "labels":
            yield "all padding", {**arguments, key: torch.full_like(value, -1)}
            yield "all of one label", {**arguments, key: torch.zeros_like(value)}


def _is_refused(name: str, sizes: Sizes) -> bool:
    """Whether an order asks for more labels than there are."""
    of_orders = name.startswith(("multi_order", "MultiOrder", "MDKD"))
    return of_orders and sizes.labels < (3 if name == "MultiOrderDependencyLoss" else 4)


def _is_nothing(name: str, sizes: Sizes, what: str) -> bool:
    """Whether a loss has nothing to learn from, and is 0."""
    if sizes.rows == 0 or what == "all padding":
        return True
    if what == "mask nowhere":
        return name != "MDKDObjective"  # which learns from the targets, too
    return what == "every label unknown" and not name.startswith(_READ_UNKNOWN)
