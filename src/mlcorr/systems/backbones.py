"""Backbones of the transformers and timm libraries, made to yield what the systems take.

A system's backbone is any module from images to a feature map (B, D, H, W) or to tokens (B, N, D). Models of these two
libraries return more than that, or in another order; the adapters here put it right. They go by what a model has
(duck typing) and import neither library. A model that is built but not yet trained works as well as a trained one.

Where the model is a plain vision transformer, the adapter also gives it in parts, as
:class:`mlcorr.systems.vit.VisionTransformer` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TypeGuard, cast

from torch import Tensor, nn

from mlcorr._checks import check_floating, check_module, check_tensor
from mlcorr._loading import WholeState
from mlcorr.systems.vit import Parts, timm_parts, transformers_parts

_ONE_TOKEN = ("cls_token", "class_token", "class_embedding", "distillation_token", "dist_token")
_MANY_TOKENS = ("register_tokens", "reg_token")


def from_transformers(model: nn.Module) -> TransformersBackbone:
    """Make a backbone of a vision model of the transformers library, version 4 or 5.

    A convolutional model (ResNet, ConvNeXt, …) yields its last map, a transformer its last tokens without class,
    distillation and register tokens. Position encodings are interpolated to the images' size where the model offers
    that. A model with a classification head is used without it. A plain vision transformer (ViT, DeiT, DINOv2, SigLIP)
    is also given in parts.

    Args:
        model: A vision model, as ``AutoModel`` returns it.

    Returns:
        A module with ``out_channels``, from images (B, 3, H, W) to (B, D, H', W') or (B, N, D).

    Raises:
        TypeError: ``model`` is no module, or has no configuration that tells its number of channels.
        ValueError: At the first call, what the model returns is not understood.

    Note:
        Parameters behind the last map, such as a pooler's, get no gradient. Build the model without them where that
        is possible (``ViTModel(config, add_pooling_layer=False)``), or tell DistributedDataParallel of them.

    Reference:
        Wolf et al., "Transformers: State-of-the-art natural language processing", EMNLP 2020 (demonstrations).

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from mlcorr.systems.backbones import from_transformers
        >>> class Tiny(torch.nn.Module):  # stands for transformers.ViTModel(ViTConfig(...))
        ...     config = SimpleNamespace(hidden_size=8)
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 8))
        ...         self.patches = torch.nn.Conv2d(3, 8, 16, 16)
        ...     def forward(self, pixel_values):
        ...         tokens = self.patches(pixel_values).flatten(2).mT
        ...         tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        ...         return SimpleNamespace(last_hidden_state=tokens)
        >>> backbone = from_transformers(Tiny())
        >>> backbone.out_channels, backbone(torch.zeros(2, 3, 32, 48)).shape
        (8, torch.Size([2, 6, 8]))
    """
    return TransformersBackbone(model)


def from_timm(model: nn.Module) -> TimmBackbone:
    """Make a backbone of a vision model of the timm library.

    ``forward_features`` is called; its prefix tokens (class, distillation, register) are dropped, and a map with the
    channels last, as of Swin, is turned. A plain vision transformer is also given in parts; built with
    ``dynamic_img_size=True`` it takes images of any size.

    Args:
        model: A vision model, as ``timm.create_model`` returns it; its head is not used, so that ``num_classes=0``
            saves parameters without a gradient.

    Returns:
        A module with ``out_channels``, from images (B, 3, H, W) to (B, D, H', W') or (B, N, D).

    Raises:
        TypeError: ``model`` is no module, or has no ``forward_features`` and ``num_features``.
        ValueError: At the first call, what the model returns is not understood.

    Reference:
        Wightman, "PyTorch image models", 2019, https://github.com/huggingface/pytorch-image-models.

    Example:
        >>> import torch
        >>> from mlcorr.systems.backbones import from_timm
        >>> class Tiny(torch.nn.Module):  # stands for timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
        ...     num_features, output_fmt = 8, "NHWC"
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.patches = torch.nn.Conv2d(3, 8, 16, 16)
        ...     def forward_features(self, x):
        ...         return self.patches(x).permute(0, 2, 3, 1)
        >>> backbone = from_timm(Tiny())
        >>> backbone.out_channels, backbone(torch.zeros(2, 3, 32, 48)).shape
        (8, torch.Size([2, 8, 2, 3]))
    """
    return TimmBackbone(model)


class _InParts(WholeState):
    """A wrapped model that may be a plain vision transformer, and then has the parts of one."""

    model: nn.Module
    _parts: Parts | str

    @property
    def patch_dim(self) -> int:
        return _need(self._parts, self.model).patch_dim

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The blocks, in order."""
        return cast(Iterable[nn.Module], self.model.get_submodule(_need(self._parts, self.model).blocks))

    @property
    def norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.model.get_submodule(_need(self._parts, self.model).norm)


class TransformersBackbone(_InParts):
    """What :func:`from_transformers` returns.

    Attributes:
        model: The wrapped model.
        out_channels: D, the number of channels.
        prefix_tokens: Number of leading tokens that are no place in the image.
        patch_dim: Of a vision transformer, the numbers in a patch of the image.

    Raises:
        TypeError: ``patch_dim``, ``embed``, ``blocks`` or ``norm`` of what is no plain vision transformer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_module("model", model)
        config = getattr(model, "config", None)
        channels = getattr(config, "hidden_sizes", None) or getattr(config, "hidden_size", None)
        if isinstance(channels, (list, tuple)) and channels:
            channels = channels[-1]
        if not _is_count(channels):
            raise TypeError(
                "model: expected a vision model of the transformers library, with config.hidden_size or "
                f"config.hidden_sizes, got {type(model).__name__}; of a model of images and text, pass the vision part"
            )
        self.model = _without_head(model)
        self.out_channels = channels
        self.prefix_tokens = _count_tokens(self.model, channels)
        offered = inspect.signature(self.model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in offered else {}
        self._parts = transformers_parts(self.model)
        self._embedding_options: dict[str, bool] = {}
        if isinstance(self._parts, Parts):
            offered = inspect.signature(self.model.get_submodule(self._parts.embedding).forward).parameters
            self._embedding_options = {name: value for name, value in self._options.items() if name in offered}

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B, D, H, W) or the tokens (B, N, D) of images (B, 3, height, width)."""
        check_floating("images", _check_images(images))
        output = self.model(images, **self._options)
        features = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
        name = type(self.model).__name__
        if not isinstance(features, Tensor):
            raise ValueError(f"model: expected {name} to return last_hidden_state, got {type(output).__name__}")
        return _checked(features, name, self.out_channels, self.prefix_tokens)

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (B, prefix + N, D) of images, positions added, as the first layer takes them."""
        embedding = self.model.get_submodule(_need(self._parts, self.model).embedding)
        dtype = next(embedding.parameters()).dtype
        return _tokens(
            embedding(_check_images(images).to(dtype), **self._embedding_options), self.model, self.out_channels
        )


class TimmBackbone(_InParts):
    """What :func:`from_timm` returns.

    Attributes:
        model: The wrapped model.
        out_channels: D, the number of channels.
        prefix_tokens: Number of leading tokens that are no place in the image.
        patch_dim: Of a vision transformer, the numbers in a patch of the image.

    Raises:
        TypeError: ``patch_dim``, ``embed``, ``blocks`` or ``norm`` of what is no plain vision transformer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_module("model", model)
        channels = getattr(model, "num_features", None)
        if not callable(getattr(model, "forward_features", None)) or not _is_count(channels):
            raise TypeError(
                "model: expected a vision model of the timm library, with forward_features and num_features, "
                f"got {type(model).__name__}"
            )
        self.model = model
        self.out_channels = channels
        prefix = getattr(model, "num_prefix_tokens", None)
        self.prefix_tokens = prefix if isinstance(prefix, int) else _count_tokens(model, channels)
        layout = getattr(model, "output_fmt", None)  # a string, or an enumeration of strings
        self._channels_last = str(getattr(layout, "value", layout)).upper() == "NHWC"
        self._parts = timm_parts(model)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B, D, H, W) or the tokens (B, N, D) of images (B, 3, height, width)."""
        check_floating("images", _check_images(images))
        features = self.model.forward_features(images)  # type: ignore[operator]
        name = type(self.model).__name__
        if not isinstance(features, Tensor):
            raise ValueError(f"model: expected {name} to return a tensor, got {type(features).__name__}")
        if features.dim() == 4 and self._channels_last:
            features = features.permute(0, 3, 1, 2)
        return _checked(features, name, self.out_channels, self.prefix_tokens)

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (B, prefix + N, D) of images, positions added, as the first block takes them.

        Positions are interpolated to the images' size where the model was built with ``dynamic_img_size=True``.
        """
        patches = self.model.get_submodule(_need(self._parts, self.model).embedding)
        dtype = next(patches.parameters()).dtype
        embedded = self.model._pos_embed(patches(_check_images(images).to(dtype)))  # type: ignore[operator]
        tokens = _tokens(embedded, self.model, self.out_channels)
        for name in ("patch_drop", "norm_pre"):
            if hasattr(self.model, name):
                tokens = getattr(self.model, name)(tokens)
        return tokens


def _need(parts: Parts | str, model: nn.Module) -> Parts:
    if isinstance(parts, str):
        raise TypeError(f"model: expected a plain vision transformer, got {type(model).__name__}, {parts}")
    return parts


def _tokens(embedded: object, model: nn.Module, channels: int) -> Tensor:
    if not isinstance(embedded, Tensor) or embedded.dim() != 3 or embedded.shape[2] != channels:
        found = tuple(embedded.shape) if isinstance(embedded, Tensor) else type(embedded).__name__
        name = type(model).__name__
        raise ValueError(f"model: expected the embedding of {name} to return tokens (B, N, {channels}), got {found}")
    return embedded


def _check_images(images: object) -> Tensor:
    """Return ``images`` if they are real numbers (B, channels, height, width); the rest is the model's business."""
    found = check_tensor("images", images)
    if found.is_complex():
        raise TypeError(f"images: expected a tensor of real numbers, got {found.dtype}")
    if found.dim() != 4:
        raise ValueError(f"images: expected the shape (B, 3, height, width), got {tuple(found.shape)}")
    return found


def _is_count(channels: object) -> TypeGuard[int]:
    return isinstance(channels, int) and not isinstance(channels, bool) and channels > 0


def _without_head(model: nn.Module) -> nn.Module:
    """Return the part of a model with a head that takes the images."""
    base = getattr(model, "base_model", model)
    if not isinstance(base, nn.Module) or "pixel_values" not in inspect.signature(base.forward).parameters:
        return model  # some models call an inner part so, which takes tokens
    return base


def _count_tokens(model: nn.Module, channels: int) -> int:
    """Return how many learned tokens the model puts before those of the image, by its parameters' names."""
    count = 0
    for path, parameter in model.named_parameters():
        name = path.rpartition(".")[2]
        if name in _ONE_TOKEN:
            count += 1
        elif name in _MANY_TOKENS:
            count += parameter.numel() // channels
    return count


def _checked(features: Tensor, name: str, channels: int, prefix: int) -> Tensor:
    """Return the features, of tokens without the first ``prefix`` ones, if they have the shape that was announced."""
    if features.dim() not in (3, 4):
        raise ValueError(
            f"model: expected {name} to return a map (B, D, H, W) or tokens (B, N, D), got {tuple(features.shape)}"
        )
    found = features.shape[1] if features.dim() == 4 else features.shape[2]
    if found != channels:
        raise ValueError(
            f"model: expected {name} to return {channels} channels, as it says, got {tuple(features.shape)}"
        )
    if features.dim() == 4:
        return features
    if features.shape[1] <= prefix:
        raise ValueError(
            f"model: expected {name} to return more than its {prefix} prefix tokens, got {tuple(features.shape)}"
        )
    return features[:, prefix:]
