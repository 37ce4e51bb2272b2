"""Vision transformers in parts: put together they are the model, and what is no plain one says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlcorr.grouping import LabelGroups
from mlcorr.systems.backbones import from_timm, from_transformers
from mlcorr.systems.ml_vpt import MLVPT
from tests.systems.ml_vpt_cases import GROUPS, TimmLike, images, make_model
from tests.systems.test_backbones import MODELS, transformers_model


@pytest.mark.parametrize("name", ["vit", "vit with a head", "deit", "dinov2", "dinov2 with registers", "siglip"])
def test_without_prompts_the_parts_are_the_whole_of_transformers_models(name: str) -> None:
    model, prefix = transformers_model(name)
    backbone = from_transformers(model)
    assert (backbone.prefix_tokens, backbone.patch_dim) == (prefix, 3 * 8 * 8)
    for size in ((32, 32), (48, 32)):
        x = torch.randn(2, 3, *size)
        tokens = backbone.embed(x)
        for block in backbone.blocks:
            output = block(tokens, None)
            tokens = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(backbone.norm(tokens)[:, prefix:], backbone(x), rtol=0, atol=0)
    groups = LabelGroups(torch.tensor([0, 1]), torch.tensor([1, 0]), None, num_groups=2)
    output = MLVPT(backbone, groups)(torch.randn(2, 3, 48, 32))
    assert output.logits.isfinite().all()


def test_without_prompts_the_parts_are_the_whole_of_timms_models() -> None:
    model = TimmLike().eval()
    backbone = from_timm(model)
    assert (backbone.prefix_tokens, backbone.patch_dim) == (1, 3 * 8 * 8)
    for size in ((16, 16), (24, 40)):
        x = torch.randn(2, 3, *size)
        tokens = backbone.embed(x)
        for block in backbone.blocks:
            tokens = block(tokens)
        assert torch.equal(backbone.norm(tokens), model.forward_features(x))


def test_timms_models_of_before_patches_were_dropped_are_understood() -> None:
    model = TimmLike().eval()
    x = torch.randn(2, 3, 16, 16)
    expected = from_timm(model).embed(x)  # in evaluation patch_drop changes nothing
    del model.patch_drop
    assert torch.equal(from_timm(model).embed(x), expected)


def test_layers_that_return_tuples_and_insist_on_a_mask_are_understood() -> None:
    class Layer(nn.Module):  # as of older versions
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, output_attentions: bool = False):
            assert attention_mask is None
            assert not output_attentions
            return (self.inner(hidden_states),)

    plain, wrapped = make_model(), make_model()
    vit = wrapped.backbone
    vit.model.blocks = nn.Sequential(*(Layer(block) for block in vit.model.blocks))
    torch.manual_seed(1)
    wrapped = MLVPT(vit, GROUPS, bottleneck=2).requires_grad_(False)
    wrapped.load_trainable_state_dict(plain.trainable_state_dict())
    assert torch.equal(wrapped(images()).logits, plain(images()).logits)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_backbones_that_are_no_plain_vision_transformer_say_why(name: str) -> None:
    reasons = {
        "resnet": "has no embeddings with patches",
        "convnext": "has no embeddings with patches",
        "clip": "pre_layrnorm",
        "swin": "(relative positions|more than tokens)",  # versions 5 and 4
    }
    backbone = from_transformers(transformers_model(name)[0])
    if name not in reasons:
        assert MLVPT(backbone, GROUPS).prompts.prompts.shape == (2, 18, 16)
        return
    with pytest.raises(TypeError, match=rf"^model: expected a plain vision transformer, got .*{reasons[name]}"):
        MLVPT(backbone, GROUPS)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("OwlViTVision", {}, "pre_layernorm"),
        ("XCLIPVision", {}, "pre_layernorm"),
        ("Yolos", {"image_size": [32, 32], "use_mid_position_embeddings": True}, "more than embeddings"),
        ("Yolos", {"image_size": [32, 32], "use_mid_position_embeddings": False}, "detection_tokens"),
        ("Beit", {"use_relative_position_bias": True}, "relative positions"),
    ],
)
def test_transformers_that_do_more_are_refused(name: str, options: dict[str, object], reason: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options})
    backbone = from_transformers(getattr(transformers, f"{name}Model")(config))
    with pytest.raises(TypeError, match=rf"plain vision transformer, got .*{reason}"):
        MLVPT(backbone, GROUPS)


def test_timms_models_that_are_no_plain_vision_transformer_say_why() -> None:
    model = TimmLike()
    model.rope = nn.Identity()
    with pytest.raises(TypeError, match=r"^model: .*plain vision transformer, got TimmLike, whose blocks take rotary"):
        MLVPT(from_timm(model), GROUPS)
    model = TimmLike()
    del model.patch_embed
    with pytest.raises(TypeError, match=r"^model: .*got TimmLike, which lacks one of patch_embed"):
        MLVPT(from_timm(model), GROUPS)

    class Relative(nn.Module):
        def forward(self, x: Tensor, relative_position_bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
            return x

    model = TimmLike()
    model.blocks.append(Relative())
    with pytest.raises(TypeError, match=r"whose layers take positions too \(relative_position_bias\)"):
        MLVPT(from_timm(model), GROUPS)

    class Conditioned(nn.Module):
        def forward(self, x: Tensor, attention_mask: Tensor | None, scale: Tensor) -> Tensor:  # noqa: ARG002
            return scale * x

    model = TimmLike()
    model.blocks.append(Conditioned())
    with pytest.raises(TypeError, match=r"got TimmLike, whose layers need more than tokens \(scale\)$"):
        MLVPT(from_timm(model), GROUPS)
    model = TimmLike()
    model._pos_embed = lambda x: (x, x)
    with pytest.raises(ValueError, match=r"^model: expected the embedding of TimmLike to return tokens .*got tuple"):
        MLVPT(from_timm(model), GROUPS)(images())
