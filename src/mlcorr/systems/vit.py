"""A plain vision transformer in parts: patches to tokens, blocks one after the other, a last norm.

Systems that put tokens of their own between the blocks need a backbone in these parts. The two backbones of
:mod:`mlcorr.systems.backbones` have them where the wrapped model is such a transformer. This module tells which is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor, nn

from mlcorr._checks import check_integer

__all__ = ["VisionTransformer"]

_BLOCKS = ("layers", "encoder.layer", "encoder.layers")
_NORMS = ("layernorm", "post_layernorm")
_PROTOCOL = ("embed", "blocks", "norm", "out_channels", "prefix_tokens", "patch_dim")
_AFTER = ("pooler", "head", "dropout")  # what a model may have behind the last norm, or does nothing in evaluation
_ELSEWHERE = ("position", "rope")  # in a block's arguments: it counts on the number and order of tokens


class VisionTransformer(Protocol):
    """What a system takes that puts tokens between the blocks of a vision transformer; a :class:`torch.nn.Module`.

    Running it whole is ``norm(block_n(… block_1(embed(images))))``. Blocks must not mind how many tokens there are, nor
    where they stand: positions are added in ``embed`` and nowhere else.

    Attributes:
        out_channels: D, the width of a token.
        prefix_tokens: Number of tokens before those of the patches, such as one class token.
        patch_dim: Numbers in a patch of the image: 768 for 16 × 16 pixels of three colours.
        blocks: Modules, each called with the tokens (B, N, D) and no more; a tuple returned has them first.
        norm: A module, the last norm; it treats tokens one by one.
    """

    @property
    def out_channels(self) -> int: ...  # noqa: D102
    @property
    def prefix_tokens(self) -> int: ...  # noqa: D102
    @property
    def patch_dim(self) -> int: ...  # noqa: D102
    @property
    def blocks(self) -> Iterable[nn.Module]: ...  # noqa: D102
    @property
    def norm(self) -> nn.Module: ...  # noqa: D102

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (B, prefix + N, D) of images, the prefix first and positions added."""


@dataclass(frozen=True)
class Parts:
    """Where a model has its parts, as dotted names of submodules, and its :attr:`VisionTransformer.patch_dim`."""

    embedding: str
    blocks: str
    norm: str
    patch_dim: int


def transformers_parts(model: nn.Module) -> Parts | str:
    """Return where a model of the transformers library, version 4 or 5, has its parts, or why it has none."""
    inner = _find(model, "vision_model")  # where version 4 has the parts of some
    at = "" if inner is None else "vision_model."
    embedding = _find(model, f"{at}embeddings")
    blocks = next((at + name for name in _BLOCKS if _find(model, at + name) is not None), None)
    norm = next((at + name for name in _NORMS if _find(model, at + name) is not None), None)
    patches = _patch_dim(embedding)
    if blocks is None or norm is None or patches is None:
        return "which has no embeddings with patches, layers and last layer norm"
    root = blocks.removeprefix(at).partition(".")[0]
    further = _further(model if inner is None else inner, {"embeddings", root, norm.removeprefix(at), *_AFTER})
    if further is None and "." in blocks.removeprefix(at):
        further = _further(model.get_submodule(at + root), {blocks.rpartition(".")[2]})
    if further is not None:
        return f"which does more than embeddings, layers and last norm ({further})"
    for name, _ in model.named_modules():
        if "relative_position" in name:
            return f"whose layers take relative positions ({name})"
    for name, _ in embedding.named_parameters() if embedding is not None else ():
        if "detection" in name:
            return f"which has tokens of other kinds ({name})"
    return _why_not_plain(_find(model, blocks)) or Parts(f"{at}embeddings", blocks, norm, patches)


def timm_parts(model: nn.Module) -> Parts | str:
    """Return where a model of the timm library has its parts, or why it has none."""
    blocks, norm, patches = (
        _find(model, "blocks"),
        _find(model, "norm"),
        _patch_dim(getattr(model, "patch_embed", None)),
    )
    if blocks is None or norm is None or patches is None or not callable(getattr(model, "_pos_embed", None)):
        return "which lacks one of patch_embed, _pos_embed, blocks and norm"
    if any(getattr(model, name, None) is not None for name in ("rope", "rel_pos_bias")):
        return "whose blocks take rotary or relative positions"
    return _why_not_plain(blocks) or Parts("patch_embed", "blocks", "norm", patches)


def check_vit(name: str, value: object) -> VisionTransformer:
    """Return ``value`` if it is a module with the parts of a vision transformer."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {type(value).__name__}")
    lacking = [part for part in _PROTOCOL if getattr(value, part, None) is None]
    if lacking:
        raise TypeError(
            f"{name}: expected a vision transformer in parts, as mlcorr.systems.backbones.from_transformers and "
            f"from_timm make, got {type(value).__name__} without {', '.join(lacking)}"
        )
    for part, minimum in (("out_channels", 1), ("prefix_tokens", 0), ("patch_dim", 1)):
        check_integer(f"{name}.{part}", getattr(value, part), minimum=minimum)
    return cast(VisionTransformer, value)


def needless_arguments(block: nn.Module) -> tuple[None, ...]:
    """Return what a block of any version must be called with besides the tokens: None for a mask it insists on."""
    return (None,) * max(len(_required(block)) - 1, 0)


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule, None where there is none."""
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def _further(module: nn.Module, expected: set[str]) -> str | None:
    """Return what a module has of its own besides the expected parts: it will do something with it."""
    names = [name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
    return next((name for name in names if name not in expected), None)


def _patch_dim(embedding: object) -> int | None:
    """Return how many numbers the first convolution of an embedding takes at a place."""
    if not isinstance(embedding, nn.Module):
        return None
    convolutions = [each for each in embedding.modules() if isinstance(each, nn.Conv2d)]
    return convolutions[0].weight[0].numel() if convolutions else None


def _required(block: nn.Module) -> list[str]:
    """Return the names of the arguments without which a block cannot be called."""
    parameters = inspect.signature(block.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]


def _why_not_plain(blocks: nn.Module | None) -> str | None:
    """Return what a block needs that tokens between the blocks would disturb."""
    for block in blocks.children() if blocks is not None else ():
        offered = inspect.signature(block.forward).parameters
        for name in offered:
            if any(word in name for word in _ELSEWHERE):
                return f"whose layers take positions too ({name})"
        needed = [name for name in _required(block)[1:] if name != "attention_mask"]
        if needed:
            return f"whose layers need more than tokens ({', '.join(needed)})"
    return None
