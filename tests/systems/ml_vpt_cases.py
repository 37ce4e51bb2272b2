"""Small vision transformers, label groups and an ML-VPT, as its tests use them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlcorr.grouping import LabelGroups
from mlcorr.systems.backbones import from_timm, from_transformers
from mlcorr.systems.ml_vpt import MLVPT

WIDTH, LABELS = 16, 7
CO, DIS = (0, 0, 2, 2, 2, 1, 2), (2, 0, 1, 1, 0, 0, 0)  # of unequal size, one with a single label
GROUPS = LabelGroups(torch.tensor(CO), torch.tensor(DIS), tuple("abcdefg"), num_groups=3)
VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Dropout(0.3), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:  # noqa: ARG002
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)  # as timm with dynamic_img_size=True


class TimmLike(nn.Module):
    """Has the attributes of timm's VisionTransformer with a class token, for images of any size."""

    num_prefix_tokens, num_features = 1, WIDTH

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.patch_embed, self.pos_drop, self.patch_drop = PatchEmbed(), nn.Dropout(0.2), nn.Identity()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.norm_pre = nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def _pos_embed(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        grid = self.pos_embed[:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        wide = grid.to(torch.promote_types(grid.dtype, torch.float32))  # as timm does: there is no other on a CPU
        grid = nn.functional.interpolate(wide, size=(height, width), mode="bicubic", antialias=True).to(grid.dtype)
        places = torch.cat([self.pos_embed[:, :1], grid.flatten(2).mT], dim=1)
        return self.pos_drop(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1) + places)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return self.norm(self.blocks(x))


def make_vit(kind: str = "timm", **config) -> nn.Module:
    """Return a transformer in parts, the same each time; "timm" needs no other library."""
    if kind == "timm":
        torch.manual_seed(0)
        return from_timm(TimmLike())
    transformers = pytest.importorskip("transformers")
    if not transformers.is_torch_available():
        pytest.skip(f"transformers {transformers.__version__} does not work with torch {torch.__version__}")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**{**VIT, "hidden_dropout_prob": 0.3, "initializer_range": 0.3, **config})
    return from_transformers(transformers.ViTModel(config, add_pooling_layer=False))


def make_model(kind: str = "timm", groups: LabelGroups = GROUPS, **options) -> MLVPT:
    vit = make_vit(kind)
    torch.manual_seed(1)
    model = MLVPT(vit, groups, **{"bottleneck": 2, **options})
    for part in (model.prompts, model.adapters, model.co, model.dis):
        for parameter in part.parameters():  # large enough for all to matter
            nn.init.normal_(parameter, std=0.5)
    return model


def images(batch: int = 3, height: int = 16, width: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2)).to(dtype)


def targets(batch: int = 3, labels: int = LABELS) -> Tensor:
    return torch.randint(-1, 2, (batch, labels), generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if not name.startswith("backbone.")}


def reference_weights(model: MLVPT) -> dict[str, Tensor]:
    """Return the parameters under the names of the reference."""
    found = {"prompts": model.prompts.prompts}
    found |= {name: getattr(model.adapters, name) for name in ("down", "down_bias", "up", "up_bias")}
    for relation in ("co", "dis"):
        part = getattr(model, relation)
        found[f"{relation}.gate"] = part.gate
        found[f"{relation}.weight"], found[f"{relation}.bias"] = part.classifier.weight, part.classifier.bias
    return found
