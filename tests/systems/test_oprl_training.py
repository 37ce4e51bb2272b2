"""OPRL: it has the paper's size, and it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlcorr.metrics import multilabel_scores
from mlcorr.systems.oprl import OPRL
from tests.systems.planted import planted

CHANNELS, LABELS = 16, 5


def count(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_paper_sized_head_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        model = OPRL(nn.Identity(), 2048, 80, cooccurrence=None)
    assert round(count(model.encoder), 2) == 25.19
    assert round(count(model.purification.transform), 2) == 4.20
    assert round(count(model.messages), 2) == 12.58
    assert round(count(model.refiner), 2) == 1.09
    assert round(count(model), 1) == 43.4


def test_with_a_resnet101_trunk_it_has_the_papers_86_million() -> None:
    transformers = pytest.importorskip("transformers")
    if not transformers.is_torch_available():
        pytest.skip(f"transformers {transformers.__version__} does not work with torch {torch.__version__}")
    with torch.device("meta"):
        trunk = transformers.ResNetModel(transformers.ResNetConfig(depths=[3, 4, 23, 3]))
        model = OPRL(trunk, 2048, 80)
    assert round(count(trunk), 1) == 42.5
    assert round(count(model)) == 86


def test_it_learns_64_images_by_heart() -> None:
    images, target = planted(64, LABELS)
    assert target.sum(0).min() >= 10
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, CHANNELS, 4, stride=4), nn.ReLU())
    model = OPRL(backbone, CHANNELS, LABELS, encoder_heads=4, encoder_width=32, hidden_dim=6)

    def score() -> float:
        with torch.no_grad():
            return multilabel_scores(model.eval()(images).logits, target, inputs="logits")["mAP"]

    assert score() < 0.7
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(200):
        optimizer.zero_grad()
        model.objective(model(images), target).backward()
        optimizer.step()
    assert score() > 0.99
