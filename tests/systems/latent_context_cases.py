"""A small LatentContext and data for it, as its tests use them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlcorr.systems.latent_context import LatentContext

CHANNELS, LABELS, DIM, UNITS, HEADS = 6, 5, 8, 3, 2  # no two sizes alike, nor with 4 images of 3 × 4 places


def latent_context(backbone: nn.Module | None = None, num_labels: int = LABELS, **options) -> LatentContext:
    """Return the same small model each time, without dropout; of weights large enough for all to matter."""
    torch.manual_seed(0)
    settings = {"dim": DIM, "units": UNITS, "depth": 2, "heads": HEADS, "width": 10, "dropout": 0.0, **options}
    model = LatentContext(backbone or nn.Identity(), CHANNELS, num_labels, **settings)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            nn.init.normal_(parameter, std=0.4)
    return model


def features(batch: int = 4, height: int = 3, width: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, CHANNELS, height, width, dtype=dtype, generator=torch.Generator().manual_seed(2))


def targets(batch: int = 4, labels: int = LABELS) -> Tensor:
    """Return 0, 1 and −1, and in the first row all of them, with two zeros and two ones."""
    target = torch.randint(-1, 2, (batch, labels), generator=torch.Generator().manual_seed(3))
    target[:1, :LABELS] = torch.tensor([1, 0, -1, 0, 1])[:labels]
    return target


def hidden(batch: int = 4, labels: int = LABELS) -> Tensor:
    """Return a choice of labels to hide, known or not; in the first row one that is 1 and one that is 0."""
    hide = torch.rand(batch, labels, generator=torch.Generator().manual_seed(4)) < 0.4
    hide[:1, :LABELS] = torch.tensor([True, True, True, False, False])[:labels]
    return hide


def places(batch: int = 4, number: int = 12) -> Tensor:
    """Return which places are valid: some of each image, and never none."""
    valid = torch.rand(batch, number, generator=torch.Generator().manual_seed(5)) < 0.7
    valid[:, 0] = True
    return valid


def pictures(batch: int = 4, seed: int = 6) -> Tensor:
    return torch.randn(batch, 3, 12, 16, generator=torch.Generator().manual_seed(seed))


def small_backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 5, stride=4, padding=2), nn.BatchNorm2d(CHANNELS), nn.ReLU())


def flipped(target: Tensor, where: Tensor) -> Tensor:
    """Return the target with 0 and 1 exchanged at the known entries of ``where``."""
    return torch.where(where & (target >= 0), 1 - target, target)


def assert_all_have_gradients(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
