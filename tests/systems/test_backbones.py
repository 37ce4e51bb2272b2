"""Backbones: models of transformers, built from small configurations, and stand-ins with what timm's models have.

timm needs torchvision, which is no dependency of this project; hence the stand-ins, each with the attributes and the
layout of one family of timm's models.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mlcorr.systems.backbones import from_timm, from_transformers

# ------------------------------------------------------------------------------------------------ transformers

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
CONV = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# Name → (model, configuration, its arguments, leading tokens; None for a map).
MODELS = {
    "resnet": ("ResNetModel", "ResNetConfig", {**CONV, "embedding_size": 8, "layer_type": "basic"}, None),
    "convnext": ("ConvNextModel", "ConvNextConfig", {**CONV, "num_stages": 2}, None),
    "vit": ("ViTModel", "ViTConfig", VIT, 1),
    "vit with a head": ("ViTForImageClassification", "ViTConfig", VIT, 1),
    "deit": ("DeiTModel", "DeiTConfig", VIT, 2),
    "dinov2": ("Dinov2Model", "Dinov2Config", VIT, 1),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VIT, 5),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", VIT, 1),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VIT, 0),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4},
        0,
    ),
}


def transformers_model(name: str) -> tuple[nn.Module, int | None]:
    transformers = pytest.importorskip("transformers")
    if not transformers.is_torch_available():
        pytest.skip(f"transformers {transformers.__version__} does not work with torch {torch.__version__}")
    model, config, arguments, prefix = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**arguments)).eval(), prefix


@pytest.mark.parametrize("name", MODELS)
def test_transformers_model_yields_places_and_nothing_else(name: str) -> None:
    model, prefix = transformers_model(name)
    backbone = from_transformers(model)
    assert backbone.out_channels == 16
    for height, width in ((32, 32), (48, 32)):
        features = backbone(torch.randn(2, 3, height, width))
        places = (height // 8, width // 8)
        assert features.shape == ((2, 16, *places) if prefix is None else (2, places[0] * places[1], 16))


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_the_model_without_the_leading_ones(name: str) -> None:
    model, prefix = transformers_model(name)
    images = torch.randn(2, 3, 32, 32)
    trunk = model.vit if name == "vit with a head" else model
    expected = trunk(images).last_hidden_state
    if prefix is not None:
        expected = expected[:, prefix:]
    torch.testing.assert_close(from_transformers(model)(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit", "dinov2 with registers", "swin"])
def test_transformers_backbone_compiles_exports_and_trains(name: str) -> None:
    model, _ = transformers_model(name)
    backbone, images = from_transformers(model), torch.randn(2, 3, 32, 32)
    backbone(images).sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in backbone.parameters())
    with torch.no_grad():
        expected = backbone(images)
        compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(torch.export.export(backbone, (images,)).module()(images), expected)


class Fake(nn.Module):
    """A model with the attributes given, whose output a function of the images makes."""

    def __init__(self, returns, **attributes) -> None:
        super().__init__()
        self.returns = returns
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, pixel_values: Tensor):
        return self.returns(pixel_values)

    forward_features = forward


def tokens(images: Tensor, count: int = 5, channels: int = 4) -> Tensor:
    return torch.arange(float(count)).view(1, count, 1).expand(len(images), count, channels)


def test_a_model_that_returns_a_tuple_is_understood() -> None:
    model = Fake(lambda x: (tokens(x), "more"), config=SimpleNamespace(hidden_size=4))
    assert torch.equal(from_transformers(model)(torch.zeros(2, 3, 8, 8)), tokens(torch.zeros(2)))


def test_an_inner_part_that_takes_tokens_is_not_the_model() -> None:
    model = Fake(lambda x: (tokens(x),), config=SimpleNamespace(hidden_size=4), base_model=nn.Linear(4, 4))
    backbone = from_transformers(model)
    assert backbone.model is model
    assert torch.equal(backbone(torch.zeros(2, 3, 8, 8)), tokens(torch.zeros(2)))


def test_what_is_no_vision_model_of_transformers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got dict"):
        from_transformers({})
    with pytest.raises(TypeError, match=r"^model: .*config\.hidden_size.*Linear.*the vision part"):
        from_transformers(nn.Linear(2, 2))
    config = SimpleNamespace(hidden_size=4)
    images = torch.zeros(1, 3, 8, 8)
    for returns, message in (
        (lambda _: SimpleNamespace(logits=torch.zeros(1, 2)), r"^model: .*last_hidden_state, got SimpleNamespace"),
        (lambda _: (torch.zeros(1, 2),), r"^model: .*\(B, N, D\), got \(1, 2\)"),
        (lambda x: (tokens(x, channels=6),), r"^model: .*4 channels, as it says, got \(1, 5, 6\)"),
        (lambda _: (torch.zeros(1, 8, 2, 4),), r"^model: .*4 channels, as it says, got \(1, 8, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            from_transformers(Fake(returns, config=config))(images)
    only_class = Fake(lambda x: (tokens(x, count=1),), config=config, cls_token=nn.Parameter(torch.zeros(1, 1, 4)))
    with pytest.raises(ValueError, match=r"^model: .*more than its 1 prefix tokens, got \(1, 1, 4\)"):
        from_transformers(only_class)(images)


# -------------------------------------------------------------------------------------------------------- timm


class Format(str, enum.Enum):  # as in timm.layers
    NCHW = "NCHW"
    NHWC = "NHWC"


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_timm_vit_loses_its_prefix_tokens(prefix: int) -> None:
    backbone = from_timm(Fake(lambda x: tokens(x, 9), num_features=4, num_prefix_tokens=prefix))
    assert backbone(torch.zeros(2, 3, 8, 8))[0, :, 0].tolist() == list(range(prefix, 9))


def test_timm_vit_without_a_count_of_prefix_tokens_is_counted() -> None:
    model = Fake(
        lambda x: tokens(x, 9),
        num_features=4,
        cls_token=nn.Parameter(torch.zeros(1, 1, 4)),
        reg_token=nn.Parameter(torch.zeros(1, 3, 4)),
        mask_token=nn.Parameter(torch.zeros(1, 1, 4)),
    )
    assert from_timm(model)(torch.zeros(2, 3, 8, 8)).shape == (2, 5, 4)


@pytest.mark.parametrize("layout", ["NHWC", Format.NHWC])
def test_timm_swin_has_its_channels_put_first(layout: str) -> None:
    returned = torch.randn(2, 4, 5, 4)
    backbone = from_timm(Fake(lambda _: returned, num_features=4, output_fmt=layout))
    assert torch.equal(backbone(torch.zeros(2, 3, 8, 8)), returned.permute(0, 3, 1, 2))


@pytest.mark.parametrize("attributes", [{}, {"output_fmt": Format.NCHW}])
def test_timm_convolutions_pass_through(attributes: dict[str, str]) -> None:
    returned = torch.randn(2, 4, 5, 4)
    backbone = from_timm(Fake(lambda _: returned, num_features=4, num_prefix_tokens=1, **attributes))
    assert backbone(torch.zeros(2, 3, 8, 8)) is returned
    assert backbone.out_channels == 4


def test_what_is_no_vision_model_of_timm_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got str"):
        from_timm("resnet50")
    with pytest.raises(TypeError, match=r"^model: .*forward_features and num_features, got Linear"):
        from_timm(nn.Linear(2, 2))
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^model: expected Fake to return a tensor, got list"):
        from_timm(Fake(lambda x: [x], num_features=4))(images)
    with pytest.raises(ValueError, match=r"^model: .*4 channels"):  # channels last, but it does not say so
        from_timm(Fake(lambda _: torch.zeros(1, 5, 5, 4), num_features=4))(images)
