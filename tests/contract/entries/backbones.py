"""Adapters of other libraries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from mlcorr.systems import backbones
from tests.contract.entries.entry import (
    Entry,
)
from tests.contract.entries.systems import FOREIGN, PICTURES
from tests.systems.ml_vpt_cases import TimmLike


def transformers_model() -> nn.Module:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def odd_models() -> list[Any]:
    plain, odd = nn.Linear(2, 2), []
    for config in (None, 3, SimpleNamespace(), *(SimpleNamespace(hidden_size=x) for x in ("8", 8.0, True, -1, [], {}))):
        model = nn.Linear(2, 2)
        model.config = config
        odd.append(model)
    for channels in (None, 8, "8", 0, True, []):
        model = nn.Linear(2, 2)
        model.num_features, model.forward_features = channels, nn.Identity()
        odd.append(model)
    return [plain, *odd]


BACKBONES = [
    *(
        Entry(
            name=name,
            call=lambda _, name=name, **given: getattr(backbones, name)(**given),
            good=lambda good=good: {"model": [good()] * 12 + odd_models()},
            required=("model",),
            share=1,
        )
        for name, good in (
            ("from_transformers", transformers_model),
            ("TransformersBackbone", transformers_model),
            ("from_timm", lambda: TimmLike(depth=1)),
            ("TimmBackbone", lambda: TimmLike(depth=1)),
        )
    ),
    *(
        Entry(
            name=name,
            what=method,
            make=make,
            call=lambda thing, method=method, **given: getattr(thing, method)(**given),
            good=lambda: {"images": PICTURES},
            required=("images",),
            shapes={"images": "B 3 H W"},
            foreign=FOREIGN,
            share=2,
        )
        for name, make in (
            ("TransformersBackbone", lambda: backbones.from_transformers(transformers_model())),
            ("TimmBackbone", lambda: backbones.from_timm(TimmLike(depth=1))),
        )
        for method in ("forward", "embed")
    ),
]
