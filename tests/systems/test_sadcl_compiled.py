"""SADCL compiled, exported, in half precision, saved and copied."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mlcorr.systems.sadcl import SADCL
from tests.systems.sadcl_cases import (
    CHANNELS,
    LABELS,
    assert_all_have_gradients,
    features,
    sadcl,
    small_backbone,
    targets,
)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_equals_eager(training: bool) -> None:
    model = sadcl(small_backbone(), dim=8).train(training)
    images = torch.randn(4, 3, 12, 16)
    valid = torch.rand(4, 12) < 0.8
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for mask in (None, valid):
        expected, found = (
            (*output[:3], *torch.autograd.grad(sum(each.square().sum() for each in output), model.parameters()))
            for output in (run(images, mask) for run in (model, compiled))
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("bank", ["per_label", "global", None])
def test_objective_compiles_with_max_active(contrast: bool, bank: str | None) -> None:
    eager, model = (sadcl(max_active=12, bank=bank, bank_threshold=0.0) for _ in range(2))
    eager.contrast = model.contrast = contrast

    def step(images: Tensor, target: Tensor) -> Tensor:
        return model.objective(model(images), target)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for seed in range(3):  # with other positives every time, and a bank that fills
        images, target = torch.randn(3, CHANNELS, 3, 4), torch.randint(-1, 2, (3, LABELS))
        target[seed] = 1
        expected, found = eager.objective(eager(images), target), compiled(images, target)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        gradients = [torch.autograd.grad(loss, part.parameters()) for loss, part in ((expected, eager), (found, model))]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in torch.export.save
def test_inference_exports_and_can_be_saved() -> None:
    class Predictor(nn.Module):
        def __init__(self, model: SADCL) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images, embed=False).logits.sigmoid()

    predictor, images, file = Predictor(sadcl(small_backbone()).eval()), torch.randn(4, 3, 12, 16), io.BytesIO()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(predictor, (images,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for some in (images, torch.randn(7, 3, 12, 16)):
        torch.testing.assert_close(loaded(some), predictor(some))


def test_autocast_agrees_with_float32() -> None:
    model = sadcl(small_backbone(), bank=None)
    images, target = torch.randn(4, 3, 12, 16), targets(4)
    expected = model(images)
    whole = model.objective(expected, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images)
        loss = model.objective(found, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0, atol=5e-2)
    torch.testing.assert_close(loss, whole, rtol=2e-2, atol=0)
    loss.backward()
    assert_all_have_gradients(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_is_nan_for_huge_features_in_half_precision(dtype: torch.dtype) -> None:
    model = sadcl(encoder_layers=0).to(dtype)
    output = model(100 * features(dtype=dtype))
    loss = model.objective(output, targets())
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    assert_all_have_gradients(model)


def test_state_dict_round_trip_with_a_filled_bank() -> None:
    model, other = (sadcl(small_backbone(), bank_threshold=0.0) for _ in range(2))
    images, target = torch.randn(4, 3, 12, 16), targets(4)
    model.objective(model(images), target)
    model.prototypes.data.mul_(2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for _ in range(2):
        assert torch.equal(other.objective(other(images), target), model.objective(model(images), target))
    more = SADCL(small_backbone(), CHANNELS, LABELS + 1, proj_dim=6, proj_width=10, width=12, heads=2)
    with pytest.raises(RuntimeError):
        more.load_state_dict(model.state_dict())


def test_a_copy_shares_nothing() -> None:
    model = sadcl(small_backbone(), bank_threshold=0.0)
    other = copy.deepcopy(model)
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()))
    images, target = torch.randn(4, 3, 12, 16), targets(4)
    before = copy.deepcopy(other.state_dict())
    model.objective(model(images), target).backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    torch.testing.assert_close(dict(other.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(other(images).logits, model(images).logits)
