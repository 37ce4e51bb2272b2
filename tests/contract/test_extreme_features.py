"""Images and features of zeros, next to zeros, and of 1e4: what multiplies them with weights stays finite."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.contract.case import Arguments, Case, Sizes, cast, each_case, scalar, tensors, with_gradients
from tests.contract.cases import CASES
from tests.contract.extremes import DTYPES, assert_within, rounding

_OFF = 64  # roundings that a value may be off by, after some layers of products
_WITH_QUANTILES = ("SpatialPurifiedAttention", "OPRL")


def of_features(case: Case) -> str | None:
    """For ``needs``: what multiplies features with weights."""
    if case.kind not in ("layer", "system", "backbone") or "features" not in case.floating.values():
        return "has no products of features and weights; see extreme numbers"
    return None


@each_case("large and small features", needs=of_features)
def test_large_and_small_features(name: str) -> None:
    case = CASES[name]
    for scale in (0.0, 1e-30, 1e4):
        for dtype in DTYPES:
            context = f"{dtype}, features of {scale:g}"
            arguments = case.draw(Sizes())
            features = next(iter(case.floating))  # what else there is are weights
            arguments[features] = arguments[features].clamp(-1, 1) * scale
            arguments = cast(arguments, dtype)
            thing = case.module(arguments)
            values, gradients = measured_with_weights(case, thing, arguments)
            wide = copy.deepcopy(thing).double() if isinstance(thing, nn.Module) else thing
            true_values, true_gradients = measured_with_weights(case, wide, cast(arguments, torch.float64))
            for value, truth in zip(values, true_values, strict=True):
                fits = truth.abs() <= torch.finfo(value.dtype).max
                assert value[fits].isfinite().all(), context
                # Where all places of a picture are alike, rounding decides which are above a quantile.
                if dtype == torch.float32 and (scale > 1 or name not in _WITH_QUANTILES):
                    allowed = rounding(value, truth) + _OFF * torch.finfo(dtype).eps * truth.abs().max()
                    assert_within(value, truth, allowed, context)
            # Where the truth does not fit there is no gradient: of zeros, each layer norm makes it 300 times as large.
            if all((truth.abs() <= torch.finfo(dtype).max).all() for truth in true_gradients.values()):
                for of, gradient in gradients.items():
                    assert gradient.isfinite().all(), f"{context}, {of}"


def measured_with_weights(case: Case, thing: Any, arguments: Arguments) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the floating outputs, and the gradients to the leaves and to the weights of a module."""
    given = with_gradients(case, arguments)
    output = case.call(thing, given)
    scalar(output).backward()
    weights = thing.named_parameters() if isinstance(thing, nn.Module) else ()
    gradients = {f"weight {of}": weight.grad for of, weight in weights if weight.grad is not None}
    gradients.update((leaf, given[leaf].grad) for leaf in case.leaves)
    return [value.detach() for value in tensors(output) if value.is_floating_point()], gradients


def of_directions(case: Case) -> str | None:
    """For ``needs``: losses of vectors."""
    directions = case.kind == "loss" and "features" in case.floating.values()
    return None if directions else "is no loss of vectors"


@each_case("vectors of any length", needs=of_directions)
def test_vectors_of_any_length(name: str) -> None:
    """Powers of two, so that the vectors of any length have the same digits; and so their losses."""
    case = CASES[name]
    for dtype in (torch.float32, torch.float64):
        arguments = cast(case.draw(Sizes()), dtype)
        largest = 2.0 ** (120 if dtype == torch.float32 else 1000)
        lengths, scaled = {}, dict(arguments)
        for leaf in case.leaves:
            vectors = arguments[leaf]
            rows = torch.arange(vectors[..., 0].numel()).view(*vectors.shape[:-1], 1)
            lengths[leaf] = torch.tensor([largest, 2.0**-16, 1.0, 2.0**60], dtype=dtype)[rows % 4]
            scaled[leaf] = vectors * lengths[leaf]
        (found,), gradients = measured_with_weights(case, case.module(arguments), scaled)
        (expected,), usual = measured_with_weights(case, case.module(arguments), arguments)
        allowed = _OFF * torch.finfo(dtype).eps
        assert_within(found, expected.double(), allowed * expected.double().abs(), f"{dtype}")
        for leaf, length in lengths.items():
            truth = usual[leaf].double()
            undone = (gradients[leaf].double() * length.double()).clamp(-1e300, 1e300)
            vanishing = torch.finfo(dtype).tiny * length.double()
            assert_within(undone, truth, allowed * truth.abs().max() + vanishing, f"{dtype}, {leaf}")
