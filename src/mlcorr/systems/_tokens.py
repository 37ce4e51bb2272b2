"""What a backbone returns, as tokens: a feature map is a row of tokens too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlcorr._checks import LAZY, check_boolean, check_floating
from mlcorr._precision import check_plain
from mlcorr.layers.group_wise_linear import GroupWiseLinear
from mlcorr.layers.spatial_purified_attention import check_valid


def check_places(valid: object, images: object) -> None:
    """Raise where ``valid`` can be no (B, N) of ``images``: before a backbone runs, whose statistics would change."""
    if valid is None:
        return
    mask = check_boolean("valid", valid)
    rows = rows_of(images)
    # Not `len(mask)`, of which an exporter makes a constant.
    if mask.dim() != 2 or (rows is not None and rows != mask.shape[0]):
        expected = "(B, N)" if rows is None else f"(B, N) with B = {rows}"
        raise ValueError(f"valid: expected the shape {expected}, got {tuple(mask.shape)}")


def rows_of(images: object) -> int | None:
    """Return B, where it can be told before the backbone runs."""
    if not isinstance(images, Tensor) or isinstance(images, LAZY) or images.is_nested:
        return None
    return images.shape[0] if images.dim() else None


def tokens_of(
    features: object, in_channels: int, valid: Tensor | None = None, *, classifier: nn.Module
) -> tuple[Tensor, tuple[int, int] | None]:
    """Return tokens (B, N, D) of a map (B, D, H, W) or of tokens, and (H, W), which is None where there is no map.

    They have to be of the dtype and device of the model, whose ``classifier`` tells them. Places outside ``valid``,
    boolean (B, N), become 0.
    """
    if isinstance(features, Tensor):
        check_floating("backbone", features, min_dim=0)
    if not isinstance(features, Tensor) or features.dim() not in (3, 4):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"backbone: expected a map (B, D, H, W) or tokens (B, N, D) from it, got {found}")
    is_map = features.dim() == 4
    channels = features.shape[1] if is_map else features.shape[2]
    if channels != in_channels:
        raise ValueError(f"in_channels: expected the backbone's number of channels, {channels}, got {in_channels}")
    check_plain("backbone", features, classifier, GroupWiseLinear)
    tokens = features.flatten(2).transpose(1, 2) if is_map else features
    if tokens.shape[1] == 0:
        raise ValueError(f"backbone: expected at least one place from it, got {tuple(features.shape)}")
    if valid is not None:
        check_valid(valid, tokens)
        tokens = torch.where(valid.unsqueeze(-1), tokens, 0.0)  # a NaN in the padding would spread
    return tokens, (features.shape[2], features.shape[3]) if is_map else None


def attention_padding(valid: Tensor | None) -> Tensor | None:
    """Return which places (B, N) attention leaves out, None for none of them."""
    # Attention over nothing is 0/0 in some kernels: an image without a valid place attends to all.
    # PyTorch's attention cannot take a mask of no images.
    return None if valid is None or valid.shape[0] == 0 else ~valid & valid.any(dim=-1, keepdim=True)
