"""Latent context: equal to its equations, and independent of order, batch and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlcorr.functional import asymmetric_loss
from mlcorr.systems.latent_context import LatentContext, LatentContextOutput, recommended_beta
from tests.reference import latent_context as loops
from tests.systems.latent_context_cases import (
    CHANNELS,
    DIM,
    HEADS,
    LABELS,
    assert_all_have_gradients,
    features,
    hidden,
    latent_context,
    pictures,
    places,
    small_backbone,
    targets,
)

FUSIONS = ["gate", "sum", "concat", "none"]

# ------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "sum", "depth": 1},
        {"fusion": "concat", "depth": 0},
        {"fusion": "none", "depth": 3},
        {"partial_mode": "feature"},
        {"share_encoder": False, "heads": 4},
        {"share_encoder": False, "partial_mode": "feature", "depth": 1, "units": 1},
    ],
)
def test_every_step_equals_the_loops(options: dict[str, object], masked: bool) -> None:
    model = latent_context(**options).double().eval()
    images, target, hide = features(dtype=torch.float64), targets(), hidden()
    valid = places() if masked else None
    output = model(images, target, hide=hide, valid=valid, return_partial=True)
    expected = [
        loops.network(
            images[row].flatten(1).T.tolist(),
            model.state_dict(),
            options.get("heads", HEADS),
            options.get("fusion", "gate"),
            None if valid is None else valid[row].tolist(),
            target[row].tolist(),
            hide[row].tolist(),
            options.get("partial_mode", "state"),
        )
        for row in range(4)
    ]
    for name in loops.Result._fields:
        wanted = [getattr(each, name) for each in expected]
        if wanted[0] is None:
            assert options["fusion"] == "none"
            continue
        found = getattr(output, name)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-10, msg=name)


def test_shapes_are_those_of_the_table() -> None:
    output = latent_context()(features(), targets())
    assert isinstance(output, LatentContextOutput)
    assert output[0] is output.logits
    assert {name: tuple(value.shape) for name, value in output._asdict().items()} == {
        "logits": (4, LABELS),
        "aux_logits": (4, LABELS),
        "partial_logits": (4, LABELS),
        "hide": (4, LABELS),
        "attention": (4, LABELS, 12),
        "context_attention": (4, LABELS, 12),
        "class_features": (4, LABELS, DIM),
        "context_features": (4, LABELS, DIM),
        "fused_features": (4, LABELS, DIM),
    }
    assert output.hide.dtype == torch.bool


@pytest.mark.parametrize(("dim", "millions"), [(512, 15.6), (768, 27.6), (1024, 42.6)])
def test_defaults_and_their_cost(dim: int, millions: float) -> None:
    with torch.device("meta"):
        model = LatentContext(nn.Identity(), 2048, 80, dim=dim)
    assert round(sum(each.numel() for each in model.parameters()) / 1e6, 1) == millions
    assert tuple(model.context.units.shape) == (64, dim)
    layer = model.encoder.layers[0]
    assert (len(model.encoder.layers), layer.self_attn.num_heads, layer.linear1.out_features) == (3, 8, 2048)
    assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {0.1}
    assert (model.mask_ratio, model.alpha, model.beta) == (0.1, 1.0, 0.1)


def test_embeddings_and_units_begin_small_and_the_gate_closed() -> None:
    model = LatentContext(nn.Identity(), CHANNELS, 60, dim=64, units=60, width=8)
    for parameter in (model.label_embeddings, model.context.units):
        assert 0.019 < parameter.std() < 0.021
        assert parameter.mean().abs() < 0.002
    assert (model.fusion.gate.bias == -1).all()
    first, second, _ = model.encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


# --------------------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("settings", [{}, {"alpha": 2.5, "beta": 0.4}, {"alpha": 0.0, "mask_ratio": 0.5}])
def test_objective_equals_the_loops(settings: dict[str, float]) -> None:
    model = latent_context(**settings).double()
    target = targets()
    target[2] = -1
    output = model(features(dtype=torch.float64), target)
    logits = [each.tolist() for each in (output.aux_logits, output.logits, output.partial_logits)]
    weights = settings.get("alpha", 1.0), settings.get("beta", 0.1)
    expected = loops.objective(*logits, target.tolist(), output.hide.tolist(), *weights)
    terms = model.terms(output, target)
    assert list(terms) == ["aux", "full", "partial"]
    torch.testing.assert_close(
        torch.stack(list(terms.values())), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(model.objective(output, target), sum(terms.values()), rtol=1e-12, atol=0)
    assert expected[2] > 0


def test_without_the_branch_there_is_no_partial_term() -> None:
    model, target = latent_context(), targets()
    output = model(features(), target, return_partial=False)
    assert output.partial_logits is None
    assert output.hide is None
    expected = sum(
        asymmetric_loss(each, target, gamma_neg=4, gamma_pos=0, clip=0.05, reduction="mean") for each in output[:2]
    )
    torch.testing.assert_close(model.objective(output, target), expected)
    assert list(model.terms(output, target)) == ["aux", "full"]


def test_alpha_and_beta_are_factors() -> None:
    one, other = latent_context(), latent_context(alpha=3.0, beta=0.7)
    output, target = one(features(), targets()), targets()
    base, scaled = one.terms(output, target), other.terms(output, target)
    torch.testing.assert_close(scaled["aux"], base["aux"])
    torch.testing.assert_close(scaled["full"], 3 * base["full"])
    torch.testing.assert_close(scaled["partial"], 7 * base["partial"])


def strange(logits: Tensor, target: Tensor) -> Tensor:
    """Return cross entropy per entry, and nonsense at the labels that are unknown in `targets`."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits, target.clamp(0, 1).to(logits.dtype), reduction="none")
    return torch.where(targets() == -1, float("nan"), loss)


def test_another_base_loss_whose_value_at_unknown_labels_does_not_matter() -> None:
    model = latent_context(base_loss=strange)
    output, target = model(features(), targets(), hide=hidden()), targets()
    assert (target == -1).any()
    plain = nn.functional.binary_cross_entropy_with_logits
    known, hide = target >= 0, hidden() & (target >= 0)
    expected = plain(output.aux_logits[known], target[known].float()) + plain(
        output.logits[known], target[known].float()
    )
    expected = expected + 0.1 * plain(output.partial_logits[hide], target[hide].float())
    torch.testing.assert_close(model.objective(output, target), expected)
    model.objective(output, target).backward()
    assert_all_have_gradients(model)


@pytest.mark.parametrize("given", [False, True])
def test_nothing_known_is_no_loss_and_no_gradient(given: bool) -> None:
    model, target = latent_context(small_backbone()), torch.full((4, LABELS), -1)
    output = model(pictures(), target, hide=hidden() if given else None)
    assert not output.hide.any()
    loss = model.objective(output, target)
    loss.backward()
    assert loss == 0
    assert_all_have_gradients(model)
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_an_image_of_unknown_labels_changes_no_mean() -> None:
    model, target = latent_context().double(), targets()
    output = model(features(dtype=torch.float64), target, hide=hidden())
    expected = model.terms(output, target)
    more = torch.cat([features(dtype=torch.float64), features(2, dtype=torch.float64) - 1])
    output = model(
        more, torch.cat([target, torch.full((2, LABELS), -1)]), hide=torch.cat([hidden(), hidden(2).logical_not()])
    )
    found = model.terms(output, torch.cat([target, torch.full((2, LABELS), -1)]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32])
def test_any_dtype_of_target(kind: torch.dtype) -> None:
    model, target = latent_context(), targets().clamp(min=0)
    expected = model(features(), target, hide=hidden())
    found = model(features(), target.to(kind), hide=hidden())
    torch.testing.assert_close(found.partial_logits, expected.partial_logits)
    torch.testing.assert_close(model.objective(found, target.to(kind)), model.objective(expected, target))


@pytest.mark.parametrize(
    ("missing", "beta"),
    [(0.0, 0.1), (0.1, 0.1), (0.3, 0.2), (0.5, 0.3), (0.7, 0.35), (0.9, 0.4), (0.95, 0.4), (1.0, 0.4)],
)
def test_recommended_beta(missing: float, beta: float) -> None:
    assert recommended_beta(missing) == pytest.approx(beta, rel=1e-12)
    assert isinstance(recommended_beta(missing), float)


# ------------------------------------------------------------------------------------------------ invariances


def per_label(model: LatentContext) -> list[nn.Parameter]:
    classifiers = (model.aux_classifier, model.classifier, model.partial.classifier)
    return [model.class_map.weight, model.label_embeddings, *(p for each in classifiers for p in each.parameters())]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_permuted_labels(fusion: str) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    model, other, equal = (latent_context(fusion=fusion).eval().double() for _ in range(3))
    with torch.no_grad():
        for parameter in per_label(other):
            parameter.copy_(parameter[order])
        for parameter in per_label(equal):  # that know their labels by the class map alone
            parameter.copy_(parameter if parameter is equal.class_map.weight else parameter[:1].expand_as(parameter))
        equal.label_embeddings.zero_()
    images, target = features(dtype=torch.float64), targets()
    expected = model(images, target, hide=hidden(), return_partial=True)
    found = other(images, target[:, order], hide=hidden()[:, order], return_partial=True)
    assert (found.logits - expected.logits).abs().max() > 1e-3
    for one, whole in zip(found, expected, strict=True):
        if isinstance(whole, Tensor):
            torch.testing.assert_close(one, whole[:, order], rtol=1e-12, atol=1e-12)
    before = equal(images).logits
    with torch.no_grad():
        equal.class_map.weight.copy_(equal.class_map.weight[order])
    torch.testing.assert_close(equal(images).logits, before[:, order], rtol=1e-12, atol=1e-12)


def test_permuted_places_and_units() -> None:
    model, order = latent_context().eval().double(), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    tokens = features(dtype=torch.float64).flatten(2).mT
    expected = model(tokens)
    found = model(tokens[:, order])
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    for name in ("attention", "context_attention"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name)[..., order], rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        model.context.units.copy_(model.context.units.flip(0))
    torch.testing.assert_close(model(tokens), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_distribution_over_the_places(masked: bool) -> None:
    output = latent_context()(features(), targets(), valid=places() if masked else None)
    for attention in (output.attention, output.context_attention):
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(4, LABELS))
        if masked:
            assert not attention[~places().unsqueeze(1).expand_as(attention)].any()


def test_one_unit_gives_all_classes_one_context() -> None:
    one, three = (latent_context(units=units).eval()(features()).context_features for units in (1, 3))
    torch.testing.assert_close(one, one[:, :1].expand_as(one))
    assert (three - three[:, :1]).abs().max() > 1e-3


def test_a_closed_gate_keeps_the_context_out() -> None:
    model = latent_context().double()
    with torch.no_grad():
        model.fusion.gate.weight.zero_()
        model.fusion.gate.bias.fill_(-1e4)
    output = model(features(dtype=torch.float64), targets())
    expected = model.fusion.norm(output.class_features)
    torch.testing.assert_close(output.fused_features, expected, rtol=1e-12, atol=1e-12)
    model.objective(output, targets()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.context.parameters())
    assert model.class_map.weight.grad.any()


@pytest.mark.parametrize("depth", [0, 1])
def test_only_the_encoder_lets_labels_interact(depth: int) -> None:
    model = latent_context(depth=depth).eval().double()
    images = features(dtype=torch.float64)
    before = model(images)
    with torch.no_grad():
        model.class_map.weight[3] += 1
    difference = (model(images).logits - before.logits).abs().amax(0)
    assert difference[3] > 1e-3
    assert bool((difference[[0, 1, 2, 4]] > 1e-6).all()) == (depth > 0)
    assert bool((difference[[0, 1, 2, 4]] < 1e-12).all()) == (depth == 0)
    aux = (model(images).aux_logits - before.aux_logits).abs().amax(0)
    assert (aux > 1e-12).tolist() == [False, False, False, True, False]


def test_each_image_has_the_output_that_it_has_alone() -> None:
    model = latent_context().eval().double()
    images, target, hide = features(dtype=torch.float64), targets(), hidden()
    for mask in (None, places()):
        together = model(images, target, hide=hide, valid=mask, return_partial=True)
        for row in (slice(each, each + 1) for each in range(4)):
            own = None if mask is None else mask[row]
            alone = model(images[row], target[row], hide=hide[row], valid=own, return_partial=True)
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one[row], other, rtol=1e-12, atol=1e-12)


def test_evaluation_repeats_itself_and_needs_no_gradient_mode() -> None:
    model = latent_context(dropout=0.5).eval()
    for one, other in zip(model(features()), model(features()), strict=True):
        assert one is other is None or torch.equal(one, other)
    with torch.no_grad():
        torch.testing.assert_close(model(features()).logits, model(features()).logits)
        without = model.double()(features(dtype=torch.float64)).logits
    torch.testing.assert_close(without, model(features(dtype=torch.float64)).logits, rtol=1e-12, atol=1e-12)
    model.float().train()
    assert not torch.equal(model(features(), targets()).logits, model(features(), targets()).logits)


@pytest.mark.parametrize("filling", [7.0, 1e30, float("nan"), float("inf")])
def test_padding_changes_nothing(filling: float) -> None:
    model = latent_context().double()
    tokens, target = features(dtype=torch.float64).flatten(2).mT, targets()
    padded = torch.cat([torch.full((4, 3, CHANNELS), filling, dtype=torch.float64), tokens], dim=1).requires_grad_()
    valid = torch.cat([torch.zeros(4, 3, dtype=torch.bool), torch.ones(4, 12, dtype=torch.bool)], dim=1)
    expected, found = model(tokens, target, hide=hidden()), model(padded, target, hide=hidden(), valid=valid)
    for name, one in found._asdict().items():
        if "attention" in name:
            assert not one[..., :3].any()
            one = one[..., 3:]
        torch.testing.assert_close(one, getattr(expected, name), rtol=1e-12, atol=1e-12)
    model.objective(found, target).backward()
    assert_all_have_gradients(model)
    assert not padded.grad[:, :3].any()
    assert padded.grad[:, 3:].any()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_image_without_a_valid_place_is_finite(fusion: str) -> None:
    model, target, valid = latent_context(fusion=fusion), targets(), places()
    valid[1] = False
    images = features().requires_grad_()
    output = model(images, target, hide=hidden(), valid=valid)
    assert all(each is None or each.isfinite().all() for each in output)
    assert not output.class_features[1].any()
    assert not output.attention[1].any()
    model.objective(output, target).backward()
    assert_all_have_gradients(model)
    assert not images.grad[1].any()
    assert images.grad[0].any()
    expected = model(features(), target, hide=hidden(), valid=places()).logits
    rest = [0, 2, 3]
    torch.testing.assert_close(output.logits[rest], expected[rest])
    nan = torch.where(torch.arange(4).view(4, 1, 1, 1) == 1, float("nan"), features())
    assert model(nan, target, hide=hidden(), valid=valid).logits.isfinite().all()
