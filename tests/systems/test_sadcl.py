"""SADCL: assembled as its parts say, and labels independent of each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlcorr import AsymmetricLoss, DualContrastiveLoss
from mlcorr.functional import asymmetric_loss, binary_cross_entropy_loss
from mlcorr.systems._positions import sine_cosine_positions
from mlcorr.systems.sadcl import SADCL, SADCLOutput
from tests.reference import sadcl_system
from tests.systems.sadcl_cases import (
    CHANNELS,
    LABELS,
    assert_all_have_gradients,
    features,
    sadcl,
    small_backbone,
    targets,
)

# ------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("layers", [(1, 2), (0, 1), (2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_label_features_equal_the_loops(layers: tuple[int, int], masked: bool) -> None:
    model = sadcl(encoder_layers=layers[0], decoder_layers=layers[1]).double()
    for parameter in model.parameters():  # also those that begin as 0 or 1
        nn.init.normal_(parameter, std=0.4)
    images = features(2, dtype=torch.float64)
    valid = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) < 0.7 if masked else None
    tokens = images.flatten(2).mT
    positions = sine_cosine_positions(3, 4, CHANNELS, like=images)
    weights = model.label_queries.state_dict()
    expected = torch.stack(
        [
            sadcl_system.label_features(
                tokens[image], positions, weights, 2, None if valid is None else valid[image].tolist()
            )
            for image in range(2)
        ]
    )
    torch.testing.assert_close(model(images, valid).label_features, expected, rtol=1e-10, atol=1e-11)


def test_it_is_the_composition_of_its_parts() -> None:
    model = sadcl(dim=8).double()
    images = features(dtype=torch.float64)
    output = model(images)
    assert isinstance(output, SADCLOutput)
    assert output[0] is output.logits
    assert [tuple(each.shape) for each in output] == [(3, 5), (3, 5, 8), (3, 5, 6)]

    convolution = nn.Conv2d(CHANNELS, 8, 1).double()
    convolution.weight.data.copy_(model.input_projection.weight[..., None, None])
    convolution.bias.data.copy_(model.input_projection.bias)
    tokens = convolution(images).flatten(2).mT
    expected = model.label_queries(tokens, sine_cosine_positions(3, 4, 8, like=images))
    torch.testing.assert_close(output.label_features, expected, rtol=1e-10, atol=1e-12)
    logits = torch.einsum("bld,ld->bl", expected, model.classifier.weight) + model.classifier.bias
    torch.testing.assert_close(output.logits, logits, rtol=1e-10, atol=1e-12)
    first, second = model.projector[0], model.projector[2]
    hidden = (expected @ first.weight.T + first.bias).clamp(min=0)
    projected = hidden @ second.weight.T + second.bias
    torch.testing.assert_close(output.embeddings, projected, rtol=1e-10, atol=1e-12)
    assert isinstance(sadcl().input_projection, nn.Identity)


def test_inference_leaves_the_projector_out() -> None:
    model = sadcl().eval()
    whole, short = model(features()), model(features(), embed=False)
    assert torch.equal(short.logits, whole.logits)
    assert torch.equal(short.label_features, whole.label_features)
    assert short.embeddings is None
    model.projector = None
    assert torch.equal(model(features(), embed=False).logits, whole.logits)


def test_objective_is_the_sum_of_its_parts() -> None:
    weights = {"classification_weight": 3.0, "sample_weight": 5.0, "prototype_weight": 7.0}
    model = sadcl(**weights, temperature=0.3, prototype_temperature=0.1, bank=None)
    output, target = model(features(6)), targets(6)
    own = DualContrastiveLoss(
        LABELS, 6, temperature=0.3, prototype_temperature=0.1, bank=None, own_prototypes=False
    ).terms(output.embeddings, target, output.logits.sigmoid(), prototypes=model.projector(model.prototypes))
    assert own["sample"] > 0
    assert own["prototype"] > 0
    base = binary_cross_entropy_loss(output.logits, target, reduction="mean")
    expected = 3 * base + 5 * own["sample"] + 7 * own["prototype"]
    torch.testing.assert_close(model.objective(output, target), expected)
    terms = model.terms(output, target)
    torch.testing.assert_close(terms["base"], 3 * base)
    torch.testing.assert_close(terms["base"] + terms["sample"] + terms["prototype"], expected)
    assert {"active", "anchors", "classes", "dropped"} <= terms.keys()
    assert terms["active"] == (target == 1).sum()


def test_defaults_are_those_of_the_authors_code() -> None:
    with torch.device("meta"):
        model = SADCL(nn.Identity(), 2048, 80)
    assert (model.classification_weight, model.sample_weight, model.prototype_weight) == (1000.0, 100.0, 50.0)
    assert [tuple(each.shape) for each in (model.prototypes, model.label_queries.queries)] == [(80, 2048)] * 2
    assert [len(model.label_queries.encoder), len(model.label_queries.decoder)] == [1, 2]
    layer = model.label_queries.decoder[0]
    assert (layer.attention.num_heads, layer.feed_forward[0].out_features, layer.dropout.p) == (4, 8192, 0.1)
    assert [model.projector[0].out_features, model.projector[2].out_features] == [2048, 1024]


def test_weights_begin_xavier_uniform() -> None:
    model = sadcl(dim=32, width=64, proj_width=64, proj_dim=16)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and not name.startswith("classifier"):
            assert parameter.unique().numel() == 1, name
        elif name.endswith(("queries", "prototypes")):
            assert 0.8 < parameter.std() < 1.2, name
        elif not name.startswith("classifier"):
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.95 * bound < parameter.abs().max() <= bound, name
    layers = [layer.attention.in_proj_weight for layer in model.label_queries.decoder]
    assert not torch.equal(*layers)


def test_another_base_loss() -> None:
    model = sadcl(base_loss=AsymmetricLoss(gamma_pos=0.0, reduction="batchmean"), classification_weight=2.0)
    model.contrast = False
    output, target = model(features()), targets()
    expected = 2 * asymmetric_loss(output.logits, target, gamma_pos=0.0, reduction="batchmean")
    torch.testing.assert_close(model.objective(output, target), expected)


# ---------------------------------------------------------------------------------------- stages and unknowns


@pytest.mark.parametrize("bank", ["per_label", "global", None])
@pytest.mark.parametrize("contrast", [False, True])
def test_every_parameter_has_a_gradient_in_both_stages(contrast: bool, bank: str | None) -> None:
    model = sadcl(small_backbone(), dim=8, bank=bank)
    model.contrast = contrast
    images = torch.randn(4, 3, 12, 16)
    for target in (targets(4), torch.zeros(4, LABELS), torch.full((4, LABELS), -1)):  # also nothing to contrast
        model.zero_grad()
        model.objective(model(images), target).backward()
        assert_all_have_gradients(model)
    model.zero_grad()
    model.objective(model(images), targets(4)).backward()
    trained = [model.prototypes, *model.projector.parameters()]
    assert all(bool(parameter.grad.any()) == contrast for parameter in trained)


def test_stage_one_is_classification_alone_and_writes_nothing() -> None:
    model = sadcl(bank_threshold=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.contrast = False
    output, target = model(features()), targets()
    base = 1000 * binary_cross_entropy_loss(output.logits, target, reduction="mean")
    broken = output._replace(embeddings=output.embeddings * float("nan"))
    assert torch.equal(model.objective(output, target), base)
    assert torch.equal(model.objective(broken, target), base)
    assert torch.equal(model.objective(model(features(), embed=False), target), base)
    assert list(model.terms(output, target)) == ["base"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.contrast = True
    model.objective(output, target)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(name.startswith("contrastive_loss.") for name in changed)


def test_terms_and_evaluation_write_nothing() -> None:
    model = sadcl(bank_threshold=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(features())
    model.terms(output, targets())
    model.eval().objective(output, targets())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_bank_takes_confident_positives() -> None:
    model = sadcl(bank_threshold=0.8)
    output, target = model(features()), targets()
    logits = torch.full((3, LABELS), 1.3)  # a probability of 0.79
    model.objective(output._replace(logits=logits), target)
    empty = model.terms(output, target)
    logits[target == 1] = 1.5  # of 0.82
    model.objective(output._replace(logits=logits), target)
    filled = model.terms(output, target)
    assert empty["anchors"] < (target == 1).sum()  # some label stands alone in the batch
    assert filled["anchors"] == (target == 1).sum()  # and finds itself in the bank
    assert all(not buffer.requires_grad for buffer in model.buffers())


@pytest.mark.parametrize("contrast", [False, True])
def test_unknown_labels_have_neither_loss_nor_gradient(contrast: bool) -> None:
    model = sadcl()
    model.contrast = contrast
    output, target = model(features()), targets()
    unknown = target == -1
    assert unknown.any()
    parts = (output.logits, output.embeddings)
    for gradient in torch.autograd.grad(model.objective(output, target), parts, retain_graph=True, allow_unused=True):
        assert not gradient[unknown].any()
    other = output._replace(
        logits=output.logits.masked_fill(unknown, 7.0),
        embeddings=output.embeddings.masked_fill(unknown.unsqueeze(-1), 5.0),
    )
    model.contrastive_loss.reset_bank()
    expected = model.objective(output, target)
    model.contrastive_loss.reset_bank()
    torch.testing.assert_close(model.objective(other, target), expected)

    nothing = model.objective(output, torch.full((3, LABELS), -1))
    assert nothing == 0


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32])
def test_any_dtype_of_target(kind: torch.dtype) -> None:
    model = sadcl(bank=None)
    output, target = model(features()), targets().clamp(min=0)
    torch.testing.assert_close(model.objective(output, target.to(kind)), model.objective(output, target))


# ------------------------------------------------------------------------------------------------ invariances


def test_a_label_depends_on_no_other_label() -> None:
    model = sadcl().eval().double()
    few = sadcl(num_labels=3).eval().double()
    chosen = torch.tensor([4, 0, 3])
    state = model.state_dict()
    for name in ("label_queries.queries", "classifier.weight", "classifier.bias", "prototypes"):
        state[name] = state[name][chosen]
    few.load_state_dict({k: v for k, v in state.items() if not k.startswith("contrastive_loss.")}, strict=False)
    for found, expected in zip(few(features(dtype=torch.float64)), model(features(dtype=torch.float64)), strict=True):
        chosen_part = expected[chosen] if expected.dim() == 2 and len(expected) == LABELS else expected[:, chosen]
        torch.testing.assert_close(found, chosen_part, rtol=1e-12, atol=1e-12)


def test_permuted_labels() -> None:
    order = torch.randperm(LABELS, generator=torch.Generator().manual_seed(0))
    model, other = (sadcl(bank=None).double() for _ in range(2))
    state = model.state_dict()
    for name in ("label_queries.queries", "classifier.weight", "classifier.bias", "prototypes"):
        state[name] = state[name][order]
    other.load_state_dict(state)
    images, target = features(6, dtype=torch.float64), targets(6)
    one, two = model(images), other(images)
    torch.testing.assert_close(two.logits, one.logits[:, order], rtol=1e-12, atol=1e-12)
    expected, found = model.objective(one, target), other.objective(two, target[:, order])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_each_image_has_the_output_that_it_has_alone() -> None:
    model = sadcl().eval().double()
    images = features(dtype=torch.float64)
    valid = torch.rand(3, 12, generator=torch.Generator().manual_seed(4)) < 0.7
    for mask in (None, valid):
        together = model(images, mask)
        for row in range(3):
            alone = model(images[row : row + 1], None if mask is None else mask[row : row + 1])
            for one, other in zip(together[:3], alone[:3], strict=True):
                torch.testing.assert_close(one[row : row + 1], other, rtol=1e-12, atol=1e-12)


def test_another_map_size_than_trained_on() -> None:
    model = sadcl(small_backbone(), dim=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.objective(model(torch.randn(4, 3, 12, 16)), targets(4)).backward()
    optimizer.step()
    larger = model.eval()(torch.randn(4, 3, 24, 20))
    assert larger.logits.shape == (4, LABELS)
    assert larger.logits.isfinite().all()


def test_positions_tell_places_of_a_map_apart_and_tokens_have_none() -> None:
    placed, plain = (sadcl(positions=positions).eval() for positions in (True, False))
    assert placed.state_dict().keys() == plain.state_dict().keys()
    images = features()
    torch.testing.assert_close(plain(images.flip(-1)).logits, plain(images).logits)
    assert (placed(images.flip(-1)).logits - placed(images).logits).abs().max() > 1e-4
    tokens = images.flatten(2).mT
    assert torch.equal(placed(tokens).logits, plain(tokens).logits)
    torch.testing.assert_close(plain(tokens).logits, plain(images).logits)


@pytest.mark.parametrize("filling", [7.0, 1e30, float("nan"), float("inf")])
def test_padding_changes_nothing(filling: float) -> None:
    model = sadcl(dim=8).eval().double()
    tokens = features(dtype=torch.float64).flatten(2).mT
    padded = torch.cat([torch.full((3, 4, CHANNELS), filling, dtype=torch.float64), tokens], dim=1)
    valid = torch.cat([torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 12, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(model(padded, valid).logits, model(tokens).logits, rtol=1e-12, atol=1e-12)


def test_an_image_without_a_valid_place_is_finite() -> None:
    model = sadcl()
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1] = False
    output = model(features(), valid)
    model.objective(output, targets()).backward()
    assert all(each.isfinite().all() for each in output)
    assert_all_have_gradients(model)
    expected = model(features()).logits
    torch.testing.assert_close(output.logits[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch(masked: bool) -> None:
    model = sadcl()
    output = model(features()[:0], torch.ones(0, 12, dtype=torch.bool) if masked else None)
    loss = model.objective(output, targets()[:0])
    loss.backward()
    assert output.logits.shape == (0, LABELS)
    assert loss == 0
    assert_all_have_gradients(model)


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet"}, TypeError, r"^backbone: .*str"),
        ({"in_channels": 0}, ValueError, r"^in_channels: "),
        ({"heads": 3}, ValueError, r"^heads: expected a divisor of dim, 16, got 3"),
        ({"dim": 6, "heads": 2}, ValueError, r"^positions: .*divisible by 4, got 6"),
        ({"num_labels": 0}, ValueError, r"^num_labels: "),
        ({"dim": 0}, ValueError, r"^dim: "),
        ({"proj_dim": 0}, ValueError, r"^proj_dim: "),
        ({"proj_width": 0}, ValueError, r"^proj_width: "),
        ({"encoder_layers": -1}, ValueError, r"^encoder_layers: "),
        ({"decoder_layers": 0}, ValueError, r"^decoder_layers: "),
        ({"width": 0}, ValueError, r"^width: "),
        ({"dropout": 1.5}, ValueError, r"^dropout: "),
        ({"base_loss": "asl"}, TypeError, r"^base_loss: "),
        ({"classification_weight": -1.0}, ValueError, r"^classification_weight: "),
        ({"sample_weight": -1.0}, ValueError, r"^sample_weight: "),
        ({"prototype_weight": float("nan")}, ValueError, r"^prototype_weight: "),
        ({"temperature": 0.0}, ValueError, r"^temperature: "),
        ({"bank": "ring"}, ValueError, r"^bank: "),
        ({"bank_size": 0}, ValueError, r"^bank_size: "),
        ({"group": "world"}, TypeError, r"^group: "),
    ],
)
def test_bad_settings_are_named(options, error, message) -> None:
    settings = {"backbone": nn.Identity(), "in_channels": CHANNELS, "num_labels": LABELS, "width": 8, **options}
    with pytest.raises(error, match=message):
        SADCL(**settings)


def test_bad_input_is_named() -> None:
    model = sadcl()
    with pytest.raises(ValueError, match=r"^in_channels: expected the backbone's number of channels, 8, got 16"):
        model(torch.zeros(2, 8, 4, 4))
    with pytest.raises(ValueError, match=r"^backbone: .*tokens \(B, N, D\) from it, got \(2, 16\)"):
        model(torch.zeros(2, 16))
    with pytest.raises(ValueError, match=r"^backbone: expected at least one place"):
        model(torch.zeros(2, 0, 16))
    with pytest.raises(ValueError, match=r"^valid: .*\(2, 15\)"):
        model(torch.zeros(2, 16, 4, 4), torch.ones(2, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^target: .*\(3, 4\)"):
        model.objective(model(features()), torch.zeros(3, 4))
    output = model(features())
    with pytest.raises(ValueError, match=rf"^output.logits: expected {LABELS} labels, got {LABELS - 1}$"):
        model.objective(output._replace(logits=output.logits[:, 1:]), targets())
    with pytest.raises(ValueError, match=rf"^output.logits: expected the shape \(B, labels\), got \({LABELS},\)$"):
        model.objective(output._replace(logits=output.logits[0]), targets())
    with pytest.raises(ValueError, match=r"^output: expected embeddings to contrast"):
        model.objective(model(features(), embed=False), targets())
