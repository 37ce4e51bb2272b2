"""Latent context compiled, exported, in half precision, saved and copied."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mlcorr.systems.latent_context import LatentContext
from tests.losses.compilers import need_compiler
from tests.systems.latent_context_cases import (
    CHANNELS,
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

OPTIONS = [{}, {"share_encoder": False, "fusion": "sum"}, {"partial_mode": "feature", "fusion": "concat"}]


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch._dynamo.reset()  # every case is another model for the same code, of which there may be eight


# ------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize(("options", "masked"), [(OPTIONS[0], False), (OPTIONS[1], True), ({"fusion": "none"}, True)])
def test_compiled_inference_equals_eager(options: dict[str, object], masked: bool) -> None:
    model, valid = latent_context(small_backbone(), **options).eval(), places() if masked else None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for one, other in zip(compiled(pictures(), valid=valid), model(pictures(), valid=valid), strict=True):
            assert one is other is None or torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "given"), [(OPTIONS[0], False), (OPTIONS[1], True), (OPTIONS[2], False)])
def test_compiled_training_equals_eager(options: dict[str, object], given: bool) -> None:
    model = latent_context(small_backbone(), mask_ratio=0.5, **options)

    def step(images: Tensor, target: Tensor, hide: Tensor | None) -> tuple[Tensor, Tensor]:
        output = model(images, target, hide=hide)
        return model.objective(output, target), output.hide

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for seed in range(3):  # other labels and other numbers of known ones each time
        images, target = pictures(seed=seed), targets().roll(seed, 1)
        target[seed] = -1
        results = []
        for run in (step, compiled):
            torch.manual_seed(seed)
            loss, hide = run(images, target, hidden() if given else None)
            results.append((hide, loss, *torch.autograd.grad(loss, list(model.parameters()))))
        (expected_hide, *expected), (found_hide, *found) = results
        assert torch.equal(found_hide, expected_hide)
        assert found_hide.any()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_compiled_evidence_equals_eager() -> None:
    model = latent_context().eval()
    compiled = torch.compile(model.logits_given, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features(), targets()), model.logits_given(features(), targets()))


def test_inductor_infers_as_eager() -> None:
    need_compiler("inductor")
    model = latent_context(depth=1).eval()
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    with torch.no_grad():
        for one, other in zip(compiled(features()), model(features()), strict=True):
            assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deployed", [False, True])
def test_it_exports_for_any_batch(deployed: bool) -> None:
    model = latent_context(small_backbone()).eval()
    model = model.deploy() if deployed else model
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (pictures(),), dynamic_shapes={"images": {0: batch}}).module()
    for some in (pictures(), pictures(7, 8)):
        for one, other in zip(exported(some), model(some), strict=True):
            assert one is other is None or torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_logits_given_labels_export_for_any_batch() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = latent_context(small_backbone())

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return self.model.logits_given(images, labels)

    model, batch = Given().eval(), torch.export.Dim("batch", min=2, max=64)
    shapes = ({0: batch}, {0: batch})
    exported = torch.export.export(model, (pictures(), targets()), dynamic_shapes=shapes).module()
    for rows in (4, 7):
        some = pictures(rows), targets(rows)
        torch.testing.assert_close(exported(*some), model(*some))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in torch.export.save
def test_exported_inference_can_be_saved() -> None:
    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = latent_context(small_backbone()).deploy()

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).logits.sigmoid()

    predictor, file = Predictor().eval(), io.BytesIO()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(predictor, (pictures(),), dynamic_shapes={"images": {0: batch}})
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for some in (pictures(), pictures(7, 8)):
        torch.testing.assert_close(loaded(some), predictor(some))


# -------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("training", [False, True])
def test_autocast_agrees_with_float32(training: bool) -> None:
    model = latent_context(small_backbone(), fusion="concat").train(training)
    images, target = pictures(), targets()
    expected = model(images, target, hide=hidden(), return_partial=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images, target, hide=hidden(), return_partial=True)
        loss = model.objective(found, target)
    assert loss.dtype == torch.float32
    for name in ("logits", "aux_logits", "partial_logits"):
        one, other = (getattr(each, name).detach().float() for each in (found, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * float(other.abs().max()))
        assert not torch.equal(one, other)
    for name in ("attention", "context_attention"):
        torch.testing.assert_close(getattr(found, name).float().sum(-1), torch.ones(4, LABELS), rtol=0, atol=1e-2)
    torch.testing.assert_close(loss, model.objective(expected, target), rtol=2e-2, atol=0)
    loss.backward()
    assert_all_have_gradients(model)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_in_half_precision_is_near_float64(dtype: torch.dtype, error: float, masked: bool) -> None:
    model, valid = latent_context().to(dtype), places() if masked else None
    exact = copy.deepcopy(model).double()
    images = features(dtype=dtype)
    output = model(images, targets(), hide=hidden(), valid=valid)
    expected = exact(images.double(), targets(), hide=hidden(), valid=valid)
    for name, value in expected._asdict().items():
        found = getattr(output, name)
        if name == "hide":
            continue
        assert found.dtype in (dtype, torch.float32), name
        torch.testing.assert_close(
            found.double(), value, rtol=0, atol=error * float(value.detach().abs().max()), msg=name
        )
    assert output.logits.dtype == dtype
    loss = model.objective(output, targets())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.objective(expected, targets()), rtol=4 * error, atol=0)
    loss.backward()
    assert_all_have_gradients(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_is_nan_for_huge_features_in_half_precision(dtype: torch.dtype) -> None:
    model = latent_context().to(dtype)
    output = model(300 * features(dtype=dtype), targets(), hide=hidden())
    assert all(each.isfinite().all() for each in output)
    loss = model.objective(output, targets())
    assert loss.isfinite()
    loss.backward()
    assert_all_have_gradients(model)


def test_a_base_loss_in_half_precision_is_averaged_in_float32() -> None:
    model = latent_context(base_loss=lambda logits, _: torch.full_like(logits, 14.0)).half()
    output, target = model(features(dtype=torch.float16), targets(), return_partial=False), torch.ones(1000, LABELS)
    many = torch.zeros(1000, LABELS, dtype=torch.float16)  # of which the sum, 70000, is no number of float16
    loss = model.objective(output._replace(logits=many, aux_logits=many), target)
    assert loss.dtype == torch.float32
    assert loss == 28


# ------------------------------------------------------------------------------------------------ saved and copied


def run(model: LatentContext) -> Tensor:
    torch.manual_seed(7)
    return model.objective(model(pictures(), targets()), targets())


@pytest.mark.parametrize("options", OPTIONS)
def test_state_dict_round_trip(options: dict[str, object]) -> None:
    model, other = (latent_context(small_backbone(), **options) for _ in range(2))
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    run(model)  # moves the statistics of batch norm
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert not torch.equal(run(copy.deepcopy(other)), run(copy.deepcopy(model)))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for _ in range(2):
        assert torch.equal(run(other), run(model))
    more = LatentContext(small_backbone(), CHANNELS, LABELS + 1, dim=8, width=10, units=3, heads=2, depth=2)
    with pytest.raises(RuntimeError):
        more.load_state_dict(model.state_dict())


def test_a_copy_shares_nothing() -> None:
    model = latent_context(small_backbone())
    other = copy.deepcopy(model)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    run(model).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert torch.equal(run(other), run(latent_context(small_backbone())))
