"""OPRL: assembled as its parts say, independent of batch and padding, and able to learn."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from mlcorr.functional import asymmetric_loss
from mlcorr.systems._positions import sine_cosine_positions
from mlcorr.systems.oprl import OPRL, OPRLOutput

CHANNELS, LABELS = 16, 5


def oprl(backbone: nn.Module | None = None, **options) -> OPRL:
    torch.manual_seed(0)
    settings = {"encoder_heads": 4, "encoder_width": 8, "hidden_dim": 6, **options}
    return OPRL(backbone or nn.Identity(), CHANNELS, LABELS, **settings)


def features(batch: int = 3, height: int = 4, width: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, CHANNELS, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def targets(batch: int = 3) -> Tensor:
    return torch.randint(-1, 2, (batch, LABELS), generator=torch.Generator().manual_seed(2))


def cooccurrence() -> Tensor:
    return torch.rand(LABELS, LABELS, generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------------ what is computed


def test_it_is_the_composition_of_its_parts() -> None:
    model = oprl(dim=12, cooccurrence=cooccurrence(), positions=True).eval().double()
    images = features(dtype=torch.float64)
    output = model(images)
    assert isinstance(output, OPRLOutput)
    assert output[0] is output.logits

    tokens = images.flatten(2).transpose(1, 2) + sine_cosine_positions(4, 6, CHANNELS, like=images)
    purified = model.purification(model.encoder[0](tokens))
    label_features = model.refiner(model.messages(purified.features))
    torch.testing.assert_close(output.logits, model.classifier(label_features))
    torch.testing.assert_close(output.label_features, label_features)
    torch.testing.assert_close(output.aux_logits, purified.aux_logits)
    torch.testing.assert_close(output.attention, purified.attention)
    assert output.valid_rows is None
    assert [tuple(each.shape) for each in output[:4]] == [(3, 5), (3, 5), (3, 5, 24), (3, 5, 12)]


def test_objective_is_the_sum_of_two_asymmetric_losses() -> None:
    model = oprl(gamma_neg=3.0, gamma_pos=1.0, clip=0.1, aux_weight=0.7)
    output, target = model(features()), targets()
    settings = {"gamma_neg": 3.0, "gamma_pos": 1.0, "clip": 0.1, "reduction": "batchmean"}
    expected = asymmetric_loss(output.logits, target, **settings)
    expected = expected + 0.7 * asymmetric_loss(output.aux_logits, target, **settings)
    torch.testing.assert_close(model.objective(output, target), expected)


def test_defaults_of_the_loss_are_those_of_the_specification() -> None:
    model = oprl()
    output, target = model(features()), targets().clamp(min=0)
    p = output.logits.sigmoid(), output.aux_logits.sigmoid()
    expected = sum(
        torch.where(target == 1, -q.log(), -((q - 0.05).clamp(min=0) ** 4) * (1 - (q - 0.05).clamp(min=0)).log()).sum()
        for q in p
    )
    torch.testing.assert_close(model.objective(output, target), expected / 3)


def test_unknown_labels_have_neither_loss_nor_gradient() -> None:
    model = oprl()
    output = model(features())
    loss = model.objective(output, torch.full((3, LABELS), -1))
    gradients = torch.autograd.grad(loss, model.parameters(), allow_unused=True)
    assert loss == 0
    assert all(gradient is None or not gradient.any() for gradient in gradients)

    target = targets()
    gradients = torch.autograd.grad(model.objective(output, target), (output.logits, output.aux_logits))
    for gradient in gradients:
        assert not gradient[target == -1].any()


def test_positions_tell_places_apart_and_are_not_stored() -> None:
    with_positions, without = (oprl(positions=positions).eval() for positions in (True, False))
    assert with_positions.state_dict().keys() == without.state_dict().keys()
    images = features()
    turned = images.flip(-1)
    torch.testing.assert_close(without(turned).logits, without(images).logits)
    torch.testing.assert_close(
        without(turned).attention.unflatten(-1, (4, 6)).flip(-1), without(images).attention.unflatten(-1, (4, 6))
    )
    assert (with_positions(turned).logits - with_positions(images).logits).abs().max() > 1e-4


def test_sine_cosine_positions_equal_their_definition() -> None:
    codes = sine_cosine_positions(3, 5, 8, like=torch.empty(0, dtype=torch.float64))
    for row in range(3):
        for column in range(5):
            for k in range(2):
                angle_row, angle_column = (place / 10_000 ** (k / 2) for place in (row, column))
                found = codes[row * 5 + column]
                angles = torch.tensor([angle_row, angle_column], dtype=torch.float64)
                expected = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
                torch.testing.assert_close(found[k::2], expected, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("positions", [False, True])
def test_each_image_has_the_output_that_it_has_alone(positions: bool) -> None:
    model = oprl(cooccurrence=cooccurrence(), positions=positions).eval().double()
    images = features(dtype=torch.float64)
    valid = torch.rand(3, 24, generator=torch.Generator().manual_seed(4)) < 0.7
    for mask in (None, valid):
        together = model(images, mask)
        for row in range(3):
            alone = model(images[row : row + 1], None if mask is None else mask[row : row + 1])
            for one, other in zip(together[:4], alone[:4], strict=True):
                torch.testing.assert_close(one[row : row + 1], other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("filling", [7.0, 1e30, float("nan"), float("inf")])
def test_padding_changes_nothing(filling: float) -> None:
    model = oprl(cooccurrence=cooccurrence()).eval().double()
    tokens = features(dtype=torch.float64).flatten(2).mT
    padded = torch.cat([torch.full((3, 4, CHANNELS), filling, dtype=torch.float64), tokens], dim=1)
    valid = torch.cat([torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 24, dtype=torch.bool)], dim=1)
    expected, found = model(tokens), model(padded, valid)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.aux_logits, expected.aux_logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.attention[..., 4:], expected.attention, rtol=1e-12, atol=1e-12)
    assert not found.attention[..., :4].any()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layers", [0, 1])
def test_an_image_without_a_valid_place_is_finite_and_left_out_of_the_auxiliary_loss(training, layers) -> None:
    model = oprl(encoder_layers=layers, encoder_dropout=0.0).train(training)
    valid = torch.ones(3, 24, dtype=torch.bool)
    valid[1] = False
    output, target = model(features(), valid), targets().clamp(min=0)
    assert output.valid_rows.tolist() == [True, False, True]
    assert not output.attention[1].any()
    with torch.no_grad():  # which takes PyTorch's fused layer in evaluation
        again = model(features(), valid)
        assert model._tokens(features(), valid).isfinite().all()
    for each, other in zip(output[:4], again[:4], strict=True):
        assert each.isfinite().all()
        torch.testing.assert_close(other, each)

    settings = {"gamma_pos": 0.0, "reduction": "batchmean"}
    expected = asymmetric_loss(output.logits, target, **settings)
    expected = expected + asymmetric_loss(output.aux_logits[[0, 2]], target[[0, 2]], **settings)
    for kind in (target, target.bool(), target.to(torch.uint8), target.float()):
        torch.testing.assert_close(model.objective(output, kind), expected)
    gradients = torch.autograd.grad(model.objective(output, target), model.parameters())
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_tokens_and_map_are_the_same_thing() -> None:
    model, images = oprl().eval(), features()
    torch.testing.assert_close(model(images.flatten(2).mT).logits, model(images).logits)


# --------------------------------------------------------------------------------------------------- switches

SWITCHES = {
    "encoder": {"encoder_layers": 0},
    "purification": {"tau": 0.0},
    "messages": {"schedule": ()},
    "average messages": {"schedule": ("cooccurrence",) * 3},
    "co-occurrence messages": {"schedule": ("average",) * 3},
    "refinement": {"paths": ()},
    "representation path": {"paths": ("category",)},
    "category path": {"paths": ("representation",)},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_each_part_can_be_switched_off(name: str) -> None:
    whole = oprl(cooccurrence=cooccurrence()).eval()
    part = oprl(cooccurrence=cooccurrence(), **SWITCHES[name]).eval()
    shared = {key: value for key, value in whole.state_dict().items() if key in part.state_dict()}
    shared = {key: value for key, value in shared.items() if value.shape == part.state_dict()[key].shape}
    part.load_state_dict(shared, strict=False)
    images = features()
    assert (part(images).logits - whole(images).logits).abs().max() > 1e-4
    part.objective(part(images), targets()).backward()
    assert all(p.grad is not None for p in part.parameters() if p.requires_grad)


def test_switches_do_what_they_say() -> None:
    images = features()
    plain = oprl(tau=0.0).eval()(images)
    assert (plain.attention > 0).all()
    assert ((oprl(tau=0.5).eval()(images).attention > 0).sum(-1) == 12).all()  # 24 − ⌈0.5 · 23⌉

    bare = oprl(schedule=(), paths=()).eval()
    purified = bare.purification(bare.encoder[0](images.flatten(2).mT))
    torch.testing.assert_close(bare(images).label_features, purified.features)


def test_without_supervision_the_auxiliary_logits_are_not_used() -> None:
    model = oprl(aux_weight=0.0)
    output = model(features())._replace(aux_logits=torch.full((3, LABELS), float("nan")))
    target = targets()
    expected = asymmetric_loss(output.logits, target, gamma_pos=0.0, reduction="batchmean")
    torch.testing.assert_close(model.objective(output, target), expected)


def test_cooccurrence_can_be_replaced_and_is_saved() -> None:
    model, other = oprl(cooccurrence=cooccurrence()).eval(), oprl().eval()
    images = features()
    assert (other(images).logits - model(images).logits).abs().max() > 1e-4
    other.set_cooccurrence(cooccurrence())
    torch.testing.assert_close(other(images).logits, model(images).logits)
    with pytest.raises(ValueError, match=r"^cooccurrence: "):
        model.set_cooccurrence(torch.eye(LABELS + 1))


# ------------------------------------------------------------------------------------- compiled, saved, mixed


def small_backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 5, stride=4, padding=2), nn.BatchNorm2d(CHANNELS), nn.ReLU())


@pytest.mark.parametrize("training", [False, True])
def test_compiled_equals_eager(training: bool) -> None:
    model = oprl(small_backbone(), cooccurrence=cooccurrence(), encoder_dropout=0.0, positions=True).train(training)
    images, target = torch.randn(4, 3, 16, 24), targets(4)
    valid = torch.rand(4, 24) < 0.8

    def step(images: Tensor, valid: Tensor | None, target: Tensor) -> Tensor:
        return model.objective(model(images, valid), target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for mask in (None, valid):
        expected, found = (
            (loss, *torch.autograd.grad(loss, model.parameters()))
            for loss in (run(images, mask, target) for run in (step, compiled))
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_exports_for_inference() -> None:
    model = oprl(small_backbone(), cooccurrence=cooccurrence(), positions=True).eval()
    images = torch.randn(4, 3, 16, 24)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images,), dynamic_shapes={"images": {0: batch}})
    for some in (images, torch.randn(7, 3, 16, 24)):
        with torch.no_grad():
            for one, other in zip(exported.module()(some)[:4], model(some)[:4], strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in torch.export.save
def test_exported_probabilities_can_be_saved() -> None:
    class Predictor(nn.Module):
        def __init__(self, model: OPRL) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).logits.sigmoid()

    predictor, images, file = Predictor(oprl(small_backbone()).eval()), torch.randn(2, 3, 16, 24), io.BytesIO()
    torch.export.save(torch.export.export(predictor, (images,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(images), predictor(images))


def test_autocast_agrees_with_float32() -> None:
    model = oprl(small_backbone(), cooccurrence=cooccurrence(), tau=0.0).eval()  # so that no rank can differ
    images, target = torch.randn(4, 3, 16, 24), targets(4)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images)
        loss = model.objective(found, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0, atol=5e-2)
    torch.testing.assert_close(found.aux_logits.float(), expected.aux_logits, rtol=0, atol=5e-2)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_nothing_is_nan_for_huge_features() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = oprl(encoder_layers=0).to(dtype)
        output = model(1e4 * features(dtype=dtype))
        assert all(each.isfinite().all() for each in output[:4])
        gradients = torch.autograd.grad(model.objective(output, targets()), model.parameters())
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_float16_under_autocast_stands_many_labels_that_all_speak() -> None:
    """The messages of 80 labels that know each other add up to more than float16 holds."""
    crowd = torch.full((80, 80), 0.9)
    model = OPRL(nn.Identity(), 32, 80, encoder_heads=4, encoder_width=32, encoder_layers=0, cooccurrence=crowd)
    for scale in (1.0, 1e3, 1e4):
        images = scale * torch.randn(2, 32, 6, 6)
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(images)
            loss = model.objective(output, torch.ones(2, 80))
        assert output.logits.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, model.parameters()))


@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch(masked: bool) -> None:
    model = oprl()
    none = features()[:0]
    places = none.flatten(2).shape[-1]
    output = model(none, torch.ones(0, places, dtype=torch.bool) if masked else None)
    loss = model.objective(output, targets()[:0])
    loss.backward()
    assert output.logits.shape == (0, LABELS)
    assert loss == 0


def test_permuted_places() -> None:
    model = oprl(encoder_dropout=0.0).eval().double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 12, CHANNELS, dtype=torch.float64)
    plain, permuted = model(x), model(x[:, order])
    torch.testing.assert_close(permuted.logits, plain.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(permuted.attention, plain.attention[..., order], rtol=0, atol=1e-12)


def test_permuted_labels() -> None:
    model, other = (oprl(cooccurrence=cooccurrence()).eval().double() for _ in range(2))
    order = torch.randperm(LABELS, generator=torch.Generator().manual_seed(0))
    state = model.state_dict()
    for name, value in state.items():
        if name.startswith(("purification.score.", "classifier.")):
            state[name] = value[order]
        elif name == "messages.cooccurrence":
            state[name] = value[order][:, order]
        elif ".over_labels.0.weight" in name:
            state[name] = value[:, order]
        elif ".over_labels.3." in name:
            state[name] = value[order]
    other.load_state_dict(state)
    x = torch.randn(2, 12, CHANNELS, dtype=torch.float64)
    for found, expected in zip(other(x)[:4], model(x)[:4], strict=True):
        torch.testing.assert_close(found, expected[:, order], rtol=0, atol=1e-12)


def test_state_dict_round_trip_and_other_numbers_of_labels() -> None:
    model, images = oprl(small_backbone(), cooccurrence=cooccurrence()).eval(), torch.randn(2, 3, 16, 24)
    other = oprl(small_backbone(), cooccurrence=torch.eye(LABELS)).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(images).logits, model(images).logits)
    more = OPRL(small_backbone(), CHANNELS, LABELS + 1, encoder_heads=4, encoder_width=8, hidden_dim=6)
    with pytest.raises(RuntimeError, match="size mismatch"):
        more.load_state_dict(model.state_dict())


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet"}, TypeError, r"^backbone: .*str"),
        ({"in_channels": 0}, ValueError, r"^in_channels: "),
        ({"in_channels": 10}, ValueError, r"^encoder_heads: expected a divisor of in_channels, 10, got 8"),
        ({"in_channels": 10, "encoder_heads": 5, "positions": True}, ValueError, r"^positions: .*divisible by 4"),
        ({"num_labels": 0}, ValueError, r"^num_labels: "),
        ({"dim": 0}, ValueError, r"^dim: "),
        ({"encoder_layers": -1}, ValueError, r"^encoder_layers: "),
        ({"encoder_width": 0}, ValueError, r"^encoder_width: "),
        ({"encoder_dropout": 1.5}, ValueError, r"^encoder_dropout: "),
        ({"tau": 1.5}, ValueError, r"^tau: "),
        ({"top_k": 0}, ValueError, r"^top_k: "),
        ({"schedule": ("both",)}, ValueError, r"^schedule: "),
        ({"paths": ("both",)}, ValueError, r"^paths: "),
        ({"cooccurrence": torch.eye(4)}, ValueError, r"^cooccurrence: "),
        ({"cooccurrence": -torch.eye(5)}, ValueError, r"^cooccurrence: "),
        ({"aux_weight": -1.0}, ValueError, r"^aux_weight: "),
        ({"clip": 2.0}, ValueError, r"^clip: "),
    ],
)
def test_bad_settings_are_named(options, error, message) -> None:
    settings = {"backbone": nn.Identity(), "in_channels": CHANNELS, "num_labels": LABELS, "encoder_width": 8, **options}
    with pytest.raises(error, match=message):
        OPRL(**settings)


def test_bad_input_is_named() -> None:
    model = oprl()
    with pytest.raises(ValueError, match=r"^in_channels: expected the backbone's number of channels, 8, got 16"):
        model(torch.zeros(2, 8, 4, 4))
    with pytest.raises(ValueError, match=r"^backbone: .*tokens \(B, N, D\) from it, got \(2, 16\)"):
        model(torch.zeros(2, 16))
    with pytest.raises(ValueError, match=r"^backbone: .*got list"):
        oprl(Listing())(torch.zeros(2, 16, 4, 4))
    with pytest.raises(ValueError, match=r"^valid: .*\(2, 15\)"):
        model(torch.zeros(2, 16, 4, 4), torch.ones(2, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^positions: .*tokens"):
        oprl(positions=True)(torch.zeros(2, 9, 16))
    with pytest.raises(ValueError, match=r"^target: .*\(3, 4\)"):
        model.objective(model(features()), torch.zeros(3, 4))


class Listing(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]
