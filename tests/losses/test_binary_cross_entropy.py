"""BinaryCrossEntropyLoss: PyTorch's, over the known labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mlcorr import BinaryCrossEntropyLoss
from mlcorr.functional import binary_cross_entropy_loss
from tests.reference import losses as reference


def test_equals_the_definition() -> None:
    logits = 3 * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.rand(4, 5, dtype=torch.float64)
    pairs = zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
    expected = sum(reference.binary_cross_entropy(x, y) for x, y in pairs) / 4
    assert binary_cross_entropy_loss(logits, target).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_unknown_labels_are_left_out(reduction: str) -> None:
    logits, target = torch.randn(2, 3, 5), torch.randint(-1, 2, (2, 3, 5))
    target[1, 1] = -1
    known = target >= 0
    entries = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), reduction="none") * known
    expected = {
        "none": entries,
        "sum": entries.sum(),
        "mean": entries.sum() / known.sum(),
        "batchmean": entries.sum() / known.any(-1).sum(),
    }[reduction]
    logits = logits.masked_fill(~known, float("nan")).requires_grad_()
    loss = BinaryCrossEntropyLoss(reduction=reduction)(logits, target)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert (logits.grad[~known] == 0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.5]], dtype=dtype, requires_grad=True)
    loss = binary_cross_entropy_loss(logits, torch.tensor([[0, 1, 1]]))
    loss.backward()
    assert loss.dtype == torch.float32
    exact = binary_cross_entropy_loss(logits.detach().double(), torch.tensor([[0, 1, 1]]))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    assert logits.grad.dtype == dtype


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"^reduction: "):
        BinaryCrossEntropyLoss(reduction="max")
    with pytest.raises(ValueError, match=r"^target: .*\(2, 3\)"):
        binary_cross_entropy_loss(torch.zeros(2, 4), torch.zeros(2, 3))
