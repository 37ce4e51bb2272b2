"""Losses of logits and targets in an exported graph whose batch may have any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlcorr import AsymmetricLoss, BinaryCrossEntropyLoss
from mlcorr.losses import partial

LOSSES = {
    "AsymmetricLoss": AsymmetricLoss(reduction="batchmean"),
    "BinaryCrossEntropyLoss": BinaryCrossEntropyLoss(),
    "PartialBCELoss": partial.PartialBCELoss(),
    "AssumeNegativeLoss": partial.AssumeNegativeLoss(reduction="batchmean"),
    "WeakAssumeNegativeLoss": partial.WeakAssumeNegativeLoss(reduction="batchmean"),
    "HillLoss": partial.HillLoss(reduction="batchmean"),
    "SPLCLoss": partial.SPLCLoss(reduction="batchmean"),
    "PartialAsymmetricLoss": partial.PartialAsymmetricLoss(reduction="batchmean"),
}


class Model(nn.Module):
    """A network with its loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.linear, self.loss = nn.Linear(3, 5), loss

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.linear(features), target)


@pytest.mark.parametrize("name", LOSSES)
def test_exported_for_any_batch(name: str) -> None:
    torch.manual_seed(0)
    model = Model(LOSSES[name])
    batch = torch.export.Dim("batch", min=2, max=4096)
    features, target = torch.randn(4, 3), torch.randint(-1, 2, (4, 5))
    exported = torch.export.export(model, (features, target), dynamic_shapes=({0: batch}, {0: batch})).module()
    for rows in (4, 7):
        features, target = torch.randn(rows, 3), torch.randint(-1, 2, (rows, 5))
        torch.testing.assert_close(exported(features, target), model(features, target))
