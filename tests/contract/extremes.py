"""Arguments at the ends of what their dtype holds, for every case; and how far from the truth a result may be."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.contract.case import Arguments, Case, Range, Sizes, scalar, tensors, with_gradients
from tests.contract.cases import CASES

# With prototypes given it is the same computation of numbers that both dtypes have.
OWN_WEIGHTS = {"DualContrastiveLoss, own prototypes": "its own weights are rounded too, those of the truth are not"}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIZES = Sizes(rows=26, labels=7)  # 182 entries: two arguments meet in all pairs of 13 logits


def name_of(case: Case) -> str:
    """Return the name of a case."""
    return next(name for name, each in CASES.items() if each is case)


def ends(values: Range, dtype: torch.dtype) -> Tensor:
    """Return the logits or probabilities at which something may overflow, vanish or lose its digits."""
    limits = torch.finfo(dtype)
    if values == "probabilities":
        zero, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
        inner = torch.tensor([0.5, limits.tiny, limits.eps], dtype=dtype)
        return torch.cat([torch.stack([zero, one, zero.nextafter(one), one.nextafter(zero)]), inner])
    sizes = torch.tensor([1e-7, 20.0, 88.0, 104.0, 1e4, limits.max], dtype=torch.float64)
    return torch.cat([torch.zeros(1), sizes, -sizes]).to(dtype)


def extremes(case: Case, dtype: torch.dtype, sizes: Sizes = SIZES) -> Iterator[tuple[str, Arguments]]:
    """Yield arguments that are extreme everywhere, and such of which every other row has one extreme entry."""
    for everywhere in (True, False):
        arguments = case.draw(sizes)
        for place, (name, values) in enumerate(case.floating.items()):
            ordinary = arguments[name]
            if values == "features":
                filled = _lengths(ordinary, dtype, case.kind, place)
            else:
                filled = _filled(ordinary, ends(values, dtype), place)
            rows = torch.arange(filled[..., 0].numel()).view(*filled.shape[:-1], 1)
            entries = torch.arange(filled.shape[-1]) == rows % filled.shape[-1]
            chosen = everywhere | ((rows % 2 == 0) & (entries | (values == "features")))
            arguments[name] = torch.where(chosen, filled, ordinary.to(dtype))
        yield "everywhere" if everywhere else "one among ordinary ones", arguments


def _filled(like: Tensor, values: Tensor, place: int) -> Tensor:
    """Return the values one after another; those of the second argument change when the first's have had their turn."""
    index = torch.arange(like.numel())
    return values[(index // len(values) if place else index) % len(values)].view(like.shape)


def _lengths(like: Tensor, dtype: torch.dtype, kind: str, place: int) -> Tensor:
    """Return rows of features with lengths from 0 on; for a loss, whose vectors have any, to what the dtype holds."""
    largest = torch.finfo(dtype).max
    scales = [0.0, 1e-30, 1.0, 1e4] + ([largest] if kind == "loss" else [])
    rows = torch.arange(like[..., 0].numel()).view(*like.shape[:-1], 1)
    scale = torch.tensor(scales, dtype=torch.float64)[(rows + 2 * place) % len(scales)]
    return torch.where(scale == largest, like.sign() * largest, (like * scale).clamp(-largest, largest)).to(dtype)


def measured(case: Case, arguments: Arguments, sizes: Sizes = SIZES) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the floating outputs, and the gradients to the leaves."""
    given = with_gradients(case, arguments)
    output = case(given, sizes)
    if case.leaves:
        scalar(output).backward()
    return (
        [value.detach() for value in tensors(output) if value.is_floating_point()],
        {leaf: given[leaf].grad for leaf in case.leaves},
    )


def computed_in(dtype: torch.dtype) -> float:
    """Return the precision of what is computed in: half precision is only a format to come in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def rounding(found: Tensor, truth: Tensor) -> Tensor:
    """Return by how much the truth changes where it is put into the dtype of ``found``."""
    limits = torch.finfo(found.dtype)
    return limits.eps * truth.abs() + limits.tiny * limits.eps


def assert_within(found: Tensor, truth: Tensor, allowed: Tensor, context: str) -> None:
    """Fail, and say by how many times what is allowed, unless ``found`` is near the truth."""
    if found.numel() == 0:
        return
    off, place = ((found.double() - truth).abs() / allowed).flatten().max(dim=0)
    what = f"{found.flatten()[place]:.9g} instead of {truth.flatten()[place]:.9g}"
    assert off <= 1, f"{context}: {what}, off by {off:.3g} of what is allowed"
