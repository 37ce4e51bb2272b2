"""A mask of valid places that cannot be one is refused before the backbone runs, whose statistics would change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL

SYSTEMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "oprl": lambda backbone: OPRL(backbone, 8, 5, encoder_width=8),
    "sadcl": lambda backbone: SADCL(backbone, 8, 5, proj_dim=4, width=8, proj_width=8),
    "latent_context": lambda backbone: LatentContext(backbone, 8, 5, dim=8, units=2, width=8, beta=0.0),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    ("valid", "error"),
    [
        (torch.ones(4, 12), TypeError),
        ([[True] * 12] * 4, TypeError),
        (torch.ones(3, 12, dtype=torch.bool), ValueError),
        (torch.ones(4, 12, 1, dtype=torch.bool), ValueError),
        (torch.ones(12, dtype=torch.bool), ValueError),
    ],
)
def test_refused_before_any_state_changes(name: str, valid: object, error: type[Exception]) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    model = SYSTEMS[name](backbone)
    with pytest.raises(error, match=r"^valid: "):
        model(torch.randn(4, 3, 3, 4), valid=valid)
    assert backbone[1].num_batches_tracked == 0
    model(torch.randn(4, 3, 3, 4), valid=torch.ones(4, 12, dtype=torch.bool))
    assert backbone[1].num_batches_tracked == 1
