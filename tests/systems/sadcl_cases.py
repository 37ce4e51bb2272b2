"""A small SADCL and data for it, as its tests use them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlcorr.systems.sadcl import SADCL

CHANNELS, LABELS = 16, 5


def sadcl(backbone: nn.Module | None = None, num_labels: int = LABELS, **options) -> SADCL:
    torch.manual_seed(0)
    settings = {"proj_dim": 6, "proj_width": 10, "width": 12, "heads": 2, "dropout": 0.0, **options}
    return SADCL(backbone or nn.Identity(), CHANNELS, num_labels, **settings)


def features(batch: int = 3, height: int = 3, width: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, CHANNELS, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def targets(batch: int = 3) -> Tensor:
    return torch.randint(-1, 2, (batch, LABELS), generator=torch.Generator().manual_seed(2))


def small_backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 5, stride=4, padding=2), nn.BatchNorm2d(CHANNELS), nn.ReLU())


def assert_all_have_gradients(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
