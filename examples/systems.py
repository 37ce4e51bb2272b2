"""The systems that `examples.train` can train: for each, its options, how it is built and what it draws."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from examples.attention_figures import draw_attention
from examples.data import Dataset
from examples.models import make_backbone
from mlcorr import AsymmetricLoss
from mlcorr.grouping import LabelCooccurrence
from mlcorr.systems.oprl import OPRL

Options = dict[str, Any]


@dataclass(frozen=True)
class System:
    """An entry of the table.

    Attributes:
        title: what the report calls it.
        add_options: adds the system's own options to the command line.
        build: returns an untrained system for the data, with ``forward(images)`` that returns logits first and
            ``objective(output, targets)``.
        draw: writes pictures of a trained system into a folder.
    """

    title: str
    add_options: Callable[[argparse.ArgumentParser], None]
    build: Callable[[Dataset, Options], nn.Module]
    draw: Callable[[nn.Module, Dataset, Path], None]


class LinearOutput(NamedTuple):
    """What :class:`LinearHead` returns."""

    logits: Tensor


class LinearHead(nn.Module):
    """The baseline of every system: the same backbone, the mean over places, one linear layer, the same loss."""

    def __init__(self, backbone: nn.Module, in_channels: int, num_labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(in_channels, num_labels)
        self.loss = AsymmetricLoss(gamma_neg=4.0, gamma_pos=0.0, clip=0.05, reduction="batchmean")

    def forward(self, images: Tensor) -> LinearOutput:
        """Return the logits (N, labels) of images."""
        return LinearOutput(self.classifier(self.backbone(images).flatten(2).mean(-1)))

    def objective(self, output: LinearOutput, targets: Tensor) -> Tensor:
        """Return the asymmetric loss."""
        return self.loss(output.logits, targets)


def build_linear_head(data: Dataset) -> LinearHead:
    """Return the untrained baseline."""
    return LinearHead(*make_backbone(data.train.inputs), len(data.label_names))


# ------------------------------------------------------------------------------------------------------ OPRL

THREE = 3  # graph layers
SCHEDULES = {
    "both": ("cooccurrence", "average", "cooccurrence"),
    "cooccurrence": ("cooccurrence",) * THREE,
    "average": ("average",) * THREE,
    "none": (),
}
PATHS = {
    "both": ("representation", "category"),
    "representation": ("representation",),
    "category": ("category",),
    "none": (),
}


def add_oprl_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be switched off in OPRL."""
    parser.add_argument("--no-encoder", action="store_true", help="no transformer encoder on the map")
    parser.add_argument("--no-sas", action="store_true", help="no auxiliary loss on the best-scored places")
    parser.add_argument("--no-purification", action="store_true", help="attention over all places (tau = 0)")
    parser.add_argument("--messages", choices=SCHEDULES, default="both", help="graph layers (default: %(default)s)")
    parser.add_argument("--paths", choices=PATHS, default="both", help="of the refinement (default: %(default)s)")


def build_oprl(data: Dataset, options: Options) -> OPRL:
    """Return an untrained OPRL with the labels' co-occurrence in the training samples."""
    counts = LabelCooccurrence(len(data.label_names))
    counts.update(data.train.targets.cpu())
    backbone, channels = make_backbone(data.train.inputs)
    return OPRL(
        backbone,
        channels,
        len(data.label_names),
        encoder_layers=0 if options["no_encoder"] else 1,
        encoder_width=2 * channels,
        tau=0.0 if options["no_purification"] else 0.5,
        cooccurrence=counts.conditional().float(),
        schedule=SCHEDULES[options["messages"]],
        hidden_dim=channels // 4,
        paths=PATHS[options["paths"]],
        aux_weight=0.0 if options["no_sas"] else 1.0,
    )


def draw_oprl(model: nn.Module, data: Dataset, folder: Path) -> None:
    """Draw where the labels of some test images look, before and after purification."""
    draw_attention(model, data, folder / "attention.png")


SYSTEMS = {"oprl": System("OPRL", add_oprl_options, build_oprl, draw_oprl)}
