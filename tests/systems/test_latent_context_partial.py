"""The partial branch of latent context: how many are hidden, which, and that what is hidden stays hidden."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from mlcorr.systems.latent_context import LatentContext, LatentContextOutput
from tests.reference.latent_context import hidden_count
from tests.systems.latent_context_cases import (
    LABELS,
    features,
    flipped,
    hidden,
    latent_context,
    targets,
)

MODES = [{}, {"share_encoder": False}, {"partial_mode": "feature"}]


def least(num_labels: int, ratio: float) -> LatentContext:
    """Return the cheapest model that hides labels."""
    return latent_context(num_labels=num_labels, mask_ratio=ratio, dim=2, heads=1, units=1, depth=0, width=1)


def drawn(model: LatentContext, target: Tensor) -> Tensor:
    with torch.no_grad():
        return model(features(len(target), 1, 1), target).hide


# ------------------------------------------------------------------------------------------- how many and which


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_the_count_is_exactly_the_ceiling(ratio: float) -> None:
    labels = 100
    known = torch.arange(labels + 1)
    order = torch.rand(labels + 1, labels, generator=torch.Generator().manual_seed(0)).argsort(-1)
    target = torch.where(order < known.unsqueeze(1), order % 2, -1)  # row k has k known labels
    assert ((target >= 0).sum(1) == known).all()
    torch.manual_seed(1)
    hide = drawn(least(labels, ratio), target)
    assert hide.sum(1).tolist() == [hidden_count(ratio, number) for number in range(labels + 1)]
    assert not (hide & (target < 0)).any()


@pytest.mark.parametrize(
    ("ratio", "labels", "count"), [(0.6, 25, 15), (0.1, 20, 2), (0.1, 80, 8), (0.1, 81, 9), (0.1, 500, 50), (0.1, 1, 1)]
)
def test_counts_that_rounding_would_spoil(ratio: float, labels: int, count: int) -> None:
    assert drawn(least(labels, ratio), torch.ones(2, labels)).sum(1).tolist() == [count, count]


def test_every_subset_of_the_known_labels_is_as_likely() -> None:
    draws, target = 6000, torch.tensor([1, -1, 0, 1, -1, 0])
    torch.manual_seed(0)
    hide = drawn(least(6, 0.5), target.expand(draws, 6))
    subsets = {pair: int(hide[:, pair].all(1).sum()) for pair in combinations((0, 2, 3, 5), 2)}
    assert sum(subsets.values()) == draws
    share = 1 / len(subsets)
    bound = 4.5 * math.sqrt(draws * share * (1 - share))  # 6 comparisons: chance of a false alarm below 1e-4
    assert all(abs(number - draws * share) < bound for number in subsets.values())
    same = int((hide[1:] == hide[:-1]).all(1).sum())  # rows are drawn apart
    assert abs(same - draws * share) < bound


def test_a_call_draws_anew_and_a_seed_repeats_it() -> None:
    model, target = least(40, 0.5), torch.ones(3, 40)
    torch.manual_seed(0)
    first, second = drawn(model, target), drawn(model, target)
    torch.manual_seed(0)
    assert torch.equal(drawn(model, target), first)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(drawn(model, 1 - target), first)  # no word of the values in the choice


def test_given_labels_are_hidden_where_they_are_known() -> None:
    model, target = latent_context(), targets()
    everything = torch.ones(4, LABELS, dtype=torch.bool)
    state = torch.get_rng_state()
    output = model(features(), target, hide=everything)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(output.hide, target >= 0)
    same = model(features(), target, hide=target >= 0)
    assert torch.equal(output.partial_logits, same.partial_logits)
    assert torch.equal(model.objective(output, target), model.objective(same, target))
    assert torch.equal(model.objective(output._replace(hide=everything), target), model.objective(same, target))


# -------------------------------------------------------------------------------------------------- what it sees


def seen(model: LatentContext, target: Tensor, hide: Tensor | None) -> tuple[LatentContextOutput, dict[str, Tensor]]:
    """Return all outputs, and the gradients of each of the three logits, drawing the same each time."""
    torch.manual_seed(0)
    output = model(features(), target, hide=hide, return_partial=True)
    factors = torch.randn(4, LABELS, generator=torch.Generator().manual_seed(1))
    gradients = {}
    for kind in ("logits", "aux_logits", "partial_logits"):
        own = torch.autograd.grad(
            (getattr(output, kind) * factors).sum(), list(model.parameters()), retain_graph=True, allow_unused=True
        )
        for (name, _), gradient in zip(model.named_parameters(), own, strict=True):
            if gradient is not None:
                gradients[f"{kind} {name}"] = gradient
    return output, gradients


def assert_bitwise(one: LatentContextOutput, other: LatentContextOutput, *leave_out: str) -> None:
    for name, value in one._asdict().items():
        assert name in leave_out or torch.equal(value, getattr(other, name)), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", MODES)
def test_a_hidden_label_reaches_nothing(options: dict[str, object], training: bool) -> None:
    model, target = latent_context(dropout=0.2, mask_ratio=0.5, **options).train(training), targets()
    for hide in (hidden(), None):
        output, gradients = seen(model, target, hide)
        assert (output.hide & (target == 1)).any()
        assert (output.hide & (target == 0)).any()
        other, found = seen(model, flipped(target, output.hide), hide)
        assert_bitwise(output, other)
        assert gradients.keys() == found.keys()
        for name, gradient in gradients.items():
            assert torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", MODES)
def test_no_label_reaches_the_logits(options: dict[str, object], training: bool) -> None:
    model, target = latent_context(dropout=0.2, **options).train(training), targets()
    output, gradients = seen(model, target, hidden())
    for others in (flipped(target, target >= 0), torch.full_like(target, -1), torch.zeros_like(target)):
        other, found = seen(model, others, hidden())
        assert_bitwise(output, other, "hide", "partial_logits")
        for name, gradient in gradients.items():
            if not name.startswith("partial_logits"):
                assert torch.equal(gradient, found[name]), name


def test_shown_labels_reach_the_partial_logits_of_others() -> None:
    model, target, hide = latent_context().eval(), targets(), hidden()
    expected = model(features(), target, hide=hide, return_partial=True).partial_logits
    assert (target[0, 3:] >= 0).all()
    assert not hide[0, 3:].any()
    one = torch.zeros_like(hide)
    one[0, 3] = True
    for changed in (flipped(target, one), target.masked_fill(one, -1)):
        found = model(features(), changed, hide=hide, return_partial=True).partial_logits
        assert ((found[0] - expected[0]).abs() > 1e-4).all()
        torch.testing.assert_close(found[1:], expected[1:])


def test_hidden_and_unknown_labels_look_alike() -> None:
    model, target, hide = latent_context().eval(), targets(), hidden()
    expected = model(features(), target, hide=hide, return_partial=True).partial_logits
    unknown = target.masked_fill(hide, -1)
    assert not torch.equal(unknown, target)
    none = torch.zeros_like(hide)
    assert torch.equal(model(features(), unknown, hide=none, return_partial=True).partial_logits, expected)


def test_features_are_what_the_other_mode_hides() -> None:
    model, target = latent_context(partial_mode="feature").eval(), targets()
    hide = torch.zeros(4, LABELS, dtype=torch.bool)
    hide[:, 3] = True
    target[:, 3] = 1
    expected = model(features(), target, hide=hide, return_partial=True)
    values = model(features(), flipped(target, target >= 0), hide=hide, return_partial=True)
    assert torch.equal(values.partial_logits, expected.partial_logits)  # there are no states
    with torch.no_grad():
        model.class_map.weight[3] += 1
    found = model(features(), target, hide=hide, return_partial=True)
    assert torch.equal(found.partial_logits, expected.partial_logits)
    assert not torch.equal(found.logits, expected.logits)
    with torch.no_grad():
        model.class_map.weight[2] += 1
    found = model(features(), target, hide=hide, return_partial=True)
    assert (found.partial_logits[:, 3] - expected.partial_logits[:, 3]).abs().min() > 1e-6


# ------------------------------------------------------------------------------------------------------- its ends


@pytest.mark.parametrize("options", MODES)
def test_a_ratio_of_0_hides_nothing_and_costs_nothing(options: dict[str, object]) -> None:
    model, target = latent_context(mask_ratio=0.0, **options), targets()
    output = model(features(), target)
    assert not output.hide.any()
    terms = model.terms(output, target)
    assert terms["partial"] == 0
    gradients = torch.autograd.grad(terms["partial"], list(model.parameters()), allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


def test_a_ratio_of_1_hides_all_and_leaves_the_full_branch() -> None:
    model, target = latent_context(mask_ratio=1.0).double(), targets()
    output = model(features(dtype=torch.float64), target)
    assert torch.equal(output.hide, target >= 0)
    assert (output.partial_logits - output.logits).abs().max() > 1e-2
    model.partial.classifier.load_state_dict(model.classifier.state_dict())
    output = model(features(dtype=torch.float64), target)
    torch.testing.assert_close(output.partial_logits, output.logits, rtol=1e-12, atol=1e-12)


def test_one_known_label_is_hidden_and_none_is_shown() -> None:
    model, target = latent_context(), torch.full((4, LABELS), -1)
    target[:, 2] = torch.tensor([0, 1, 0, 1])
    output = model(features(), target)
    assert torch.equal(output.hide, target >= 0)
    other = model(features(), 1 - target.masked_fill(target < 0, 2))
    assert torch.equal(other.hide, output.hide)
    assert torch.equal(other.partial_logits, output.partial_logits)
    assert model.terms(output, target)["partial"] > 0


@pytest.mark.parametrize("partial", [None, True, False])
@pytest.mark.parametrize("training", [False, True])
def test_when_the_branch_runs(training: bool, partial: bool | None) -> None:
    model = latent_context().train(training)
    output = model(features(), targets(), return_partial=partial)
    runs = training if partial is None else partial
    assert (output.partial_logits is not None) == (output.hide is not None) == runs
    if not runs:
        assert torch.equal(model(features(), return_partial=partial).logits, output.logits)
    torch.testing.assert_close(output.logits, model.eval()(features()).logits)


# --------------------------------------------------------------------------------------------- test-time evidence


@pytest.mark.parametrize("options", MODES[:2])
def test_known_labels_at_inference(options: dict[str, object]) -> None:
    model, known = latent_context(**options).eval(), targets()
    found = model.logits_given(features(), known)
    none = torch.zeros(4, LABELS, dtype=torch.bool)
    expected = model(features(), known, hide=none, return_partial=True).partial_logits
    torch.testing.assert_close(found, expected)
    assert (found - model.logits_given(features(), flipped(known, known >= 0))).abs().max() > 1e-2
    valid = torch.ones(4, 12, dtype=torch.bool)
    valid[:, 7:] = False
    expected = model(features(), known, hide=none, valid=valid, return_partial=True).partial_logits
    torch.testing.assert_close(model.logits_given(features(), known, valid=valid), expected)


def test_no_known_label_leaves_the_full_branch() -> None:
    model = latent_context().eval()
    model.partial.classifier.load_state_dict(model.classifier.state_dict())
    unknown = torch.full((4, LABELS), -1)
    torch.testing.assert_close(model.logits_given(features(), unknown), model(features()).logits)
    state = torch.get_rng_state()
    model.logits_given(features(), targets())
    assert torch.equal(torch.get_rng_state(), state)
