"""S2S of one label a sample, without a bank, is the supervised contrastive loss of pytorch-metric-learning."""

from __future__ import annotations

import pytest
import torch

from mlcorr.functional import sample_contrastive_loss

peer = pytest.importorskip("pytorch_metric_learning.losses", reason="needs pytorch-metric-learning")

LABELS = {
    "three classes": [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1],
    "classes of one": [0, 0, 0, 4, 1, 1, 5, 2, 2, 2, 0, 3],
    "one pair": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10],
    "none alike": list(range(12)),
}


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("of", LABELS)
@pytest.mark.parametrize("by_sums", [False, True])
def test_equals_the_peer(of: str, temperature: float, by_sums: bool) -> None:
    labels = torch.tensor(LABELS[of])
    x = torch.randn(12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(3).requires_grad_()
    found = []
    for loss in (
        sample_contrastive_loss(
            x, labels, num_labels=12 if by_sums else None, temperature=temperature, block_size=5
        ),
        peer.SupConLoss(temperature=temperature)(x, labels),
    ):  # fmt: skip
        found.append((loss.detach(), *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_of_one_class_alone_the_peer_makes_nothing() -> None:
    x = torch.eye(4, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    assert peer.SupConLoss(temperature=1.0)(x, labels).item() == 0
    # Without negatives the denominator is the positives': log 3.
    assert sample_contrastive_loss(x, labels, temperature=1.0).item() == pytest.approx(1.0986122886681098)
