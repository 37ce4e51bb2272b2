"""Latent context: maps of every size, and errors that name what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlcorr.systems.latent_context import LatentContext, recommended_beta
from tests.systems.latent_context_cases import (
    CHANNELS,
    DIM,
    LABELS,
    assert_all_have_gradients,
    features,
    hidden,
    latent_context,
    places,
    targets,
)

# ----------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (6, 3), (1, 9)])
def test_a_map_of_any_size_is_its_tokens(height: int, width: int) -> None:
    model, images = latent_context().eval().double(), features(2, height, width, torch.float64)
    output = model(images)
    assert output.attention.shape == (2, LABELS, height * width)
    torch.testing.assert_close(output, model(images.flatten(2).mT), rtol=1e-12, atol=1e-12)
    if height * width == 1:
        assert (output.attention == 1).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_an_empty_batch(masked: bool, given: bool) -> None:
    model = latent_context()
    valid, hide = (places(0) if masked else None), (hidden(0) if given else None)
    output = model(features(0), targets(0), hide=hide, valid=valid)
    loss = model.objective(output, targets(0))
    loss.backward()
    assert output.logits.shape == output.partial_logits.shape == (0, LABELS)
    assert loss == 0
    assert_all_have_gradients(model)


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"units": 1}, {"heads": 1}, {"heads": DIM}, {"depth": 0}])
def test_the_smallest_sizes(options: dict[str, int]) -> None:
    model = latent_context(**options)
    target = targets(1, model.num_labels)
    output = model(features(1, 1, 1), target)
    model.objective(output, target).backward()
    assert all(each.isfinite().all() for each in output)
    assert_all_have_gradients(model)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet"}, TypeError, r"^backbone: .*str"),
        ({"in_channels": 0}, ValueError, r"^in_channels: "),
        ({"num_labels": 0}, ValueError, r"^num_labels: "),
        ({"dim": 0}, ValueError, r"^dim: "),
        ({"units": 0}, ValueError, r"^units: "),
        ({"depth": -1}, ValueError, r"^depth: "),
        ({"depth": 1.0}, TypeError, r"^depth: "),
        ({"heads": 3}, ValueError, r"^heads: expected a divisor of dim, 8, got 3"),
        ({"width": 0}, ValueError, r"^width: "),
        ({"dropout": 1.5}, ValueError, r"^dropout: "),
        ({"mask_ratio": -0.1}, ValueError, r"^mask_ratio: "),
        ({"mask_ratio": 1.1}, ValueError, r"^mask_ratio: "),
        ({"mask_ratio": "half"}, TypeError, r"^mask_ratio: "),
        ({"alpha": -1.0}, ValueError, r"^alpha: "),
        ({"beta": -0.1}, ValueError, r"^beta: "),
        ({"beta": float("nan")}, ValueError, r"^beta: "),
        ({"fusion": "product"}, ValueError, r"^fusion: .*'gate'"),
        ({"partial_mode": "label"}, ValueError, r"^partial_mode: .*'state'"),
        ({"base_loss": "asl"}, TypeError, r"^base_loss: "),
        ({"group": "world"}, TypeError, r"^group: "),
    ],
)
def test_bad_settings_are_named(options, error, message) -> None:
    settings = {"backbone": nn.Identity(), "in_channels": CHANNELS, "num_labels": LABELS, "dim": 8, **options}
    with pytest.raises(error, match=message):
        LatentContext(**settings)


def test_bad_input_is_named() -> None:
    model = latent_context()
    with pytest.raises(ValueError, match=r"^in_channels: expected the backbone's number of channels, 8, got 6"):
        model(torch.zeros(2, 8, 4, 4), targets(2))
    with pytest.raises(ValueError, match=r"^backbone: .*tokens \(B, N, D\) from it, got \(2, 6\)"):
        model(torch.zeros(2, CHANNELS), targets(2))
    with pytest.raises(ValueError, match=r"^backbone: expected at least one place"):
        model(torch.zeros(2, 0, CHANNELS), targets(2))
    with pytest.raises(ValueError, match=r"^valid: .*\(4, 11\)"):
        model(features(), targets(), valid=places(4, 11))
    with pytest.raises(TypeError, match=r"^valid: "):
        model(features(), targets(), valid=places().long())
    with pytest.raises((TypeError, ValueError), match=r"^target: "):
        model(features())
    with pytest.raises((TypeError, ValueError), match=r"^target: "):
        model.eval()(features(), return_partial=True)
    model.train()
    with pytest.raises(ValueError, match=r"^target: .*\(4, 6\)"):
        model(features(), targets(4, 6))
    with pytest.raises(ValueError, match=r"^hide: .*\(3, 5\)"):
        model(features(), targets(), hide=hidden(3))
    with pytest.raises(TypeError, match=r"^hide: "):
        model(features(), targets(), hide=hidden().long())
    with pytest.raises(ValueError, match=r"^known_labels: .*\(3, 5\)"):
        model.logits_given(features(), targets(3))
    with pytest.raises(ValueError, match=r"^target: .*\(3, 5\)"):
        model.objective(model(features(), targets()), targets(3))
    with pytest.raises(ValueError, match=r"^partial_mode: expected 'state' to show labels' values, got 'feature'"):
        latent_context(partial_mode="feature").logits_given(features(), targets())


def test_a_base_loss_must_be_per_entry() -> None:
    model = latent_context(base_loss=lambda logits, _: logits.mean())
    output = model(features(), targets())
    with pytest.raises(ValueError, match=r"^base_loss: .*\(4, 5\)"):
        model.objective(output, targets())


@pytest.mark.parametrize(("missing", "error"), [(-0.1, ValueError), (1.1, ValueError), ("10%", TypeError)])
def test_a_bad_fraction_of_missing_labels_is_named(missing: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^missing: "):
        recommended_beta(missing)
