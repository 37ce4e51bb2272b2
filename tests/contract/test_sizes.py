"""Sizes: dimensions before the rows where they are taken, no rows, and none of what a row consists of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contract.case import Case, Sizes, a_module, each_case, tensors, with_gradients
from tests.contract.cases import BACKBONES, CASES, CHOICES
from tests.contract.comparing import SIZES, assert_same, gradient, numbers, once, ready, scalar_of

NO_ROWS = SIZES._replace(rows=0)
A_NAME = r"^[\w\[\], ]+: "  # of an argument, with which our errors begin


def with_leading(case: Case) -> str | None:
    """For ``needs``: what takes rows alone is left out."""
    return None if case.leading else "takes rows alone"


def with_rows_alone(case: Case) -> str | None:
    return "takes any dimensions before the rows" if case.leading else None


@each_case("dimensions before the rows are rows", needs=with_leading)
def test_leading_dimensions(name: str) -> None:
    case = CASES[name]
    sizes = SIZES._replace(rows=2, leading=(3, 1, 2))
    arguments = case.draw(sizes)
    thing = ready(case)
    drawn_per_row = [
        key for key, value in arguments.items() if isinstance(value, Tensor) and value.shape[:4] == (3, 1, 2, 2)
    ]
    assert set(case.floating) - {"weight", "bias"} <= set(drawn_per_row)
    merged = {key: value.flatten(0, 3) if key in drawn_per_row else value for key, value in arguments.items()}
    found, expected = once(case, thing, arguments), once(case, thing, merged)
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert_same(one.flatten(), other.flatten(), "value")
        assert one.shape in ((), (3, 1, 2, 2, *other.shape[1:]))
    if case.leaves:
        of_all, of_rows = (gradient(case, thing, with_gradients(case, given)) for given in (arguments, merged))
        for leaf, one, other in zip(case.leaves, of_all, of_rows, strict=True):
            assert one.shape == arguments[leaf].shape
            assert_same(one.flatten(), other.flatten(), f"gradient of {leaf}")


@each_case("without any dimension of rows there is one row", needs=with_leading)
def test_no_dimension_of_rows(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    per_row = {key for key, value in arguments.items() if isinstance(value, Tensor) and key not in ("weight", "bias")}
    row, rows = (
        {key: value[at] if key in per_row else value for key, value in arguments.items()} for at in (0, slice(1))
    )
    for one, other in zip(tensors(once(case, thing, row)), tensors(once(case, thing, rows)), strict=True):
        assert_same(one.flatten(), other.flatten(), "value")
        assert one.dim() == max(other.dim() - 1, 0)


@each_case(
    "one dimension too many is refused by name",
    needs=with_rows_alone,
    but={
        **dict.fromkeys(("LabelCooccurrence", "LabelCooccurrence, sparse"), "takes any dimensions before the labels"),
        "SpectralLabelGrouping": "takes any dimensions before the labels and the groups",
        **dict.fromkeys((*BACKBONES, "MLVPT"), "hands images to the model that is wrapped, which says what it takes"),
        **dict.fromkeys(CHOICES, "takes no tensor"),
    },
)
def test_a_dimension_too_many(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    more = {key: value.unsqueeze(0) if isinstance(value, Tensor) else value for key, value in arguments.items()}
    with pytest.raises(ValueError, match=A_NAME):
        case(more)


# -------------------------------------------------------------------------------------------------------- sizes of zero


def with_rows(case: Case) -> str | None:
    """For ``needs``: what sees labels alone is left out."""
    return None if any(x.numel() == 0 for x in tensors(case.draw(NO_ROWS))) else "takes no rows"


@each_case(
    "without rows the result is finite, and so are the gradients",
    needs=with_rows,
    but={
        "average_precision": "is NaN for a label without positives, as it says",
        "from_transformers": "the model of transformers that is wrapped takes no empty batch",
        "TransformersBackbone": "the model of transformers that is wrapped takes no empty batch",
    },
)
def test_no_rows(name: str) -> None:
    case = CASES[name]
    check_empty(case, NO_ROWS)
    output = once(case, ready(case), case.draw(NO_ROWS))
    if case.kind == "loss" and name != "correct_large_losses":
        assert output.sum() == 0


def check_empty(case: Case, sizes: Sizes) -> None:
    thing = ready(case) if sizes == NO_ROWS else case.module(case.draw(sizes), sizes)
    arguments = with_gradients(case, case.draw(sizes))
    output = once(case, thing, arguments)
    for tensor in numbers(output):
        assert tensor.isfinite().all()
    if case.leaves:
        leaves = [arguments[leaf] for leaf in case.leaves]
        for leaf, found in zip(leaves, torch.autograd.grad(scalar_of(output), leaves), strict=True):
            assert found.shape == leaf.shape
            assert found.isfinite().all()


def modules_of_sizes(kind: str) -> list[str]:
    return [name for name, case in CASES.items() if case.kind == kind and a_module(case) is None]


NEED_A_LABEL = {
    *(name for name in CASES if name.startswith(("multi_order_dependency", "MultiOrder", "MDKD", "DualContrastive"))),
    *modules_of_sizes("layer"),
    *modules_of_sizes("system"),
    *modules_of_sizes("metric"),
    *modules_of_sizes("grouping"),
    "LabelGroups",
}
NEED_A_WIDTH = {
    *(name for name in CASES if name.startswith(("sample_contrastive", "prototype_contrastive", "DualContrastive"))),
    *("purify", "quantile_mask", "spatial_aware_logits"),
    *modules_of_sizes("layer"),
    *("OPRL", "SADCL", "LatentContext"),
}


def with_labels(case: Case) -> str | None:
    """For ``needs``: what has no size that follows from the number of labels is left out."""
    return "has no dimension of labels" if shapes(case, "labels") == shapes(case, None) else None


def with_width(case: Case) -> str | None:
    """For ``needs``: what has no size of features is left out."""
    return "has no dimension of features" if shapes(case, "width") == shapes(case, None) else None


def shapes(case: Case, more: str | None) -> list[torch.Size]:
    """Return the shapes of the arguments, where one size is one more."""
    sizes = SIZES if more is None else SIZES._replace(**{more: getattr(SIZES, more) + 1})
    return [x.shape for x in tensors(case.draw(sizes))]


@each_case("without labels there is a finite result, or an error that names what needs one", needs=with_labels)
def test_no_labels(name: str) -> None:
    check_nothing(name, SIZES._replace(labels=0), name in NEED_A_LABEL)


@each_case("features of no numbers have a finite result, or an error that names what needs one", needs=with_width)
def test_no_width(name: str) -> None:
    check_nothing(name, SIZES._replace(width=0), name in NEED_A_WIDTH)


def check_nothing(name: str, sizes: Sizes, refused: bool) -> None:
    case = CASES[name]
    if not refused:
        check_empty(case, sizes)
        return
    with pytest.raises(ValueError, match=A_NAME):
        case(case.draw(sizes), sizes)
