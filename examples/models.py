"""The networks of the demo: a large teacher and a small student, for images of any size or for plain features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TOKENS, DROPOUT = 8, 0.2  # of the backbone for features


class ConvNet(nn.Module):
    """Convolutions that halve the image, then the mean and the maximum over places, then one linear layer."""

    def __init__(self, in_channels: int, channels: Sequence[int], num_labels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, width in enumerate(channels):
            blocks.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=False))
            if index < len(channels) - 1:  # before normalising: the same features for a quarter of the work
                blocks.append(nn.MaxPool2d(2, ceil_mode=True))
            blocks += [nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        self.features = nn.Sequential(*blocks).to(memory_format=torch.channels_last)  # half the time on CPUs
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * in_channels, num_labels))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, labels) of images (N, channels, height, width)."""
        maps = self.features(images)
        return self.classifier(torch.cat([maps.mean((-2, -1)), maps.amax((-2, -1))], dim=-1))


def perceptron(in_features: int, hidden: Sequence[int], num_labels: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Return a multi-layer perceptron from features (N, in_features) to logits (N, labels)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, num_labels))


def make_teacher(inputs: Tensor, num_labels: int) -> nn.Module:
    """Return an untrained teacher for inputs of this kind."""
    if inputs.ndim == 4:
        return ConvNet(inputs.shape[1], (32, 64, 128), num_labels, dropout=0.3)
    return perceptron(inputs.shape[1], (512, 512), num_labels, dropout=0.5)


def make_student(inputs: Tensor, num_labels: int) -> nn.Module:
    """Return an untrained student for inputs of this kind."""
    if inputs.ndim == 4:
        return ConvNet(inputs.shape[1], (8, 16, 24), num_labels)
    return perceptron(inputs.shape[1], (16,), num_labels)


class FeatureTokens(nn.Module):
    """A perceptron from features (N, in_features) to ``places`` tokens (N, places, channels), as of a tiny image."""

    def __init__(self, in_features: int, places: int, channels: int, *, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.places = places
        self.layers = perceptron(in_features, (2 * channels,), places * channels, dropout=dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the tokens."""
        return self.norm(self.layers(features).unflatten(-1, (self.places, -1)))


def make_backbone(inputs: Tensor, *, most_places: int = 10, width: int = 128) -> tuple[nn.Module, int]:
    """Return an untrained backbone for inputs of this kind, and the number of channels that it yields.

    Convolutions halve an image until the map has no more than ``most_places`` places a side. Features become tokens.
    """
    if inputs.ndim == 2:
        return FeatureTokens(inputs.shape[1], TOKENS, width), width
    side, halvings = max(inputs.shape[-2:]), 0
    while side > most_places:
        side, halvings = -(-side // 2), halvings + 1
    widths = [max(width >> step, 16) for step in range(halvings, -1, -1)]
    return ConvNet(inputs.shape[1], widths, num_labels=1).features, widths[-1]


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers in ``model``."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
