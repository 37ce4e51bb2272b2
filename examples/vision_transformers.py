"""Frozen vision transformers: one from a folder, or a small one that first learns to tell single digits apart."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from examples.augment import Augmentation
from examples.data import SCAN, Dataset, paint_scene, split_scans
from mlcorr.systems.backbones import TransformersBackbone, from_transformers

WIDTH, DEPTH, HEADS = 64, 4, 4
PLACES = 10  # patches a side of the small transformer, at most
SCENES, BATCH_SIZE, LEARNING_RATE = 2, 32, 2e-3  # of pre-training; scenes for each scene that is trained on later
COPIES = 12  # scans of its digit that such a scene shows


class Frozen(nn.Module):
    """A backbone whose parameters do not learn, in evaluation mode always."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Leave the backbone in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return what the backbone returns."""
        return self.backbone(images)


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters and none of them learns."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def fingerprint_of(module: nn.Module) -> str:
    """Return what tells a module's parameters and buffers from others."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_transformer(folder: str, channels: int) -> TransformersBackbone:
    """Return the vision transformer that the transformers library has saved in a folder; nothing is downloaded."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    from transformers import AutoConfig, ViTModel

    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind != "vit":
        raise ValueError(f"{folder}: expected a model of type 'vit', found {kind!r}")
    try:
        model, loading = ViTModel.from_pretrained(
            folder, local_files_only=True, add_pooling_layer=False, output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(f"{folder}: its weights do not fit its configuration: {error}") from error
    if loading["missing_keys"]:
        raise ValueError(f"{folder}: lacks weights, {sorted(loading['missing_keys'])[0]} among them")
    if model.config.num_channels != channels:
        raise ValueError(f"{folder}: takes images of {model.config.num_channels} channels, the data have {channels}")
    return from_transformers(model)


def make_transformer(inputs: Tensor) -> TransformersBackbone:
    """Return a small untrained vision transformer for images of this size."""
    from transformers import ViTConfig, ViTModel

    side = max(inputs.shape[-2:])
    patch = max(-(-side // PLACES), 1)
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        image_size=side // patch * patch,
        patch_size=patch,
        num_channels=inputs.shape[1],
        initializer_range=WIDTH**-0.5,  # the library's own 0.02 suits a width of 768
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return from_transformers(ViTModel(config, add_pooling_layer=False))


def single_digits(seed: int, number: int, canvas: int) -> tuple[Tensor, Tensor]:
    """Return scenes (N, 1, canvas, canvas) that show several scans of one digit each, and which digit.

    The scans are those of the training split for this seed: none that is tested on has been seen.
    """
    images, digits = load_digits(return_X_y=True)
    scans = (images / 16).reshape(-1, SCAN, SCAN).astype(np.float32)
    train = split_scans(digits, np.random.default_rng((seed, 3)))["train"]
    rng = np.random.default_rng((seed, 7))
    shown, scenes = rng.integers(10, size=number), []
    for digit in shown:
        own = train[digits[train] == digit]
        part = rng.permutation(np.arange(len(own)) % COPIES)  # of each part the scene shows one scan
        scenes.append(paint_scene(np.ones(COPIES), scans[own], part, rng, canvas))
    return torch.from_numpy(np.stack(scenes)).unsqueeze(1), torch.from_numpy(shown)


def pretrain(backbone: nn.Module, images: Tensor, digits: Tensor, *, epochs: int, seed: int) -> float:
    """Teach a backbone to tell which digit a scene shows, and return the accuracy of the last epoch.

    As of many a published vision transformer, its task had one label an image.
    """
    draws = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(backbone.out_channels, 10)
    learned = [*backbone.parameters(), *classifier.parameters()]
    size = min(BATCH_SIZE, len(images))
    batches = len(images) // size
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max(epochs * batches, 2), pct_start=0.2
    )
    augmentation, right = Augmentation(0.1, 0.0), 0
    backbone.train()
    for _ in range(epochs):
        right = 0
        order = torch.randperm(len(images), generator=draws)[: batches * size]
        for rows in order.split(size):
            logits = classifier(backbone(augmentation(images[rows], draws)).mean(1))
            loss = F.cross_entropy(logits, digits[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(-1) == digits[rows]).sum())
    return right / (batches * size)


@lru_cache(maxsize=4)
def _pretrained(shape: tuple[int, ...], scenes: int, epochs: int, seed: int) -> dict[str, Tensor]:
    """Return the weights of a small transformer after so many epochs; the same on the same machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = make_transformer(torch.empty(shape))
        if epochs:
            images, digits = single_digits(seed, scenes, shape[-1])
            pretrain(backbone, images, digits, epochs=epochs, seed=seed)
        return backbone.state_dict()


def frozen_transformer(data: Dataset, *, weights: str | None, pretrain_epochs: int, seed: int) -> TransformersBackbone:
    """Return the frozen backbone that the options ask for; the random state of the caller stays as it was.

    Raises:
        ValueError: Single digits were asked for beside images that are no digits, or two beginnings at once.
        OSError: The folder holds no model.
    """
    inputs = data.train.inputs
    if pretrain_epochs < 0:
        raise ValueError(f"--pretrain-epochs: expected at least 0, got {pretrain_epochs}")
    if weights is not None and pretrain_epochs:
        raise ValueError("--weights, --pretrain-epochs: expected one of the two")
    if pretrain_epochs and data.name != "digit scenes":
        raise ValueError("--pretrain-epochs: expected 0, since single digits are of use for scenes of digits only")
    if weights is not None:
        with torch.random.fork_rng(devices=[]):
            return load_transformer(weights, inputs.shape[1])
    shape = (1, *inputs.shape[1:])
    state = _pretrained(shape, SCENES * len(inputs), pretrain_epochs, seed)
    with torch.random.fork_rng(devices=[]):
        backbone = make_transformer(torch.empty(shape))
    backbone.load_state_dict(state)
    return backbone
