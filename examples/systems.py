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
from examples.embedding_figures import draw_features, draw_prototypes
from examples.models import make_backbone
from mlcorr import AsymmetricLoss, BinaryCrossEntropyLoss
from mlcorr.grouping import LabelCooccurrence
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL

Options = dict[str, Any]


@dataclass(frozen=True)
class System:
    """An entry of the table.

    Attributes:
        title: what the report calls it.
        add_options: adds the system's own options to the command line.
        build: returns an untrained system for the data, with ``forward(images)`` that returns logits first and
            ``objective(output, targets)``.
        draw: writes pictures of a trained system, and of the same with its first weights, into a folder.
        make_loss: returns the loss of the linear head that the system is compared with.
        before_epoch: prepares the system for an epoch, from options, system, data, the number of epochs done and that
            of all epochs; the same in a resumed run.
        not_averaged: beginnings of names of buffers that the average of weights copies.
    """

    title: str
    add_options: Callable[[argparse.ArgumentParser], None]
    build: Callable[[Dataset, Options], nn.Module]
    draw: Callable[[nn.Module, nn.Module, Dataset, Path], None]
    make_loss: Callable[[], nn.Module]
    before_epoch: Callable[[Options, nn.Module, Dataset, int, int], None] | None = None
    not_averaged: tuple[str, ...] = ()


class LinearOutput(NamedTuple):
    """What :class:`LinearHead` returns."""

    logits: Tensor


class LinearHead(nn.Module):
    """The baseline of every system: the same backbone, the mean over places, one linear layer, the same loss."""

    def __init__(self, backbone: nn.Module, in_channels: int, num_labels: int, loss: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(in_channels, num_labels)
        self.loss = loss

    def forward(self, images: Tensor) -> LinearOutput:
        """Return the logits (N, labels) of images."""
        return LinearOutput(self.classifier(self.backbone(images).flatten(2).mean(-1)))

    def objective(self, output: LinearOutput, targets: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(output.logits, targets)


def build_linear_head(data: Dataset, system: System) -> LinearHead:
    """Return the untrained baseline of a system."""
    return LinearHead(*make_backbone(data.train.inputs), len(data.label_names), system.make_loss())


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


def draw_oprl(model: nn.Module, _untrained: nn.Module, data: Dataset, folder: Path) -> None:
    """Draw where the labels of some test images look, before and after purification."""
    draw_attention(model, data, folder / "attention.png")


def make_oprl_loss() -> nn.Module:
    """Return the asymmetric loss as OPRL has it."""
    return AsymmetricLoss(gamma_neg=4.0, gamma_pos=0.0, clip=0.05, reduction="batchmean")


# ----------------------------------------------------------------------------------------------------- SADCL


def share(text: str) -> float:
    """Return a number in [0, 1] from the command line."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return number


def add_sadcl_options(parser: argparse.ArgumentParser) -> None:
    """Add the stages of SADCL and what can be switched off."""
    text = "share of the epochs without contrast, before the prototypes are made (default: %(default)s)"
    parser.add_argument("--stage-one", type=share, default=0.5, metavar="SHARE", help=text)
    parser.add_argument("--no-s2s", action="store_true", help="no contrast between label features")
    parser.add_argument("--no-p2s", action="store_true", help="no contrast between prototypes and label features")
    banks = ("per_label", "global", "none")
    parser.add_argument("--bank", choices=banks, default="per_label", help="memory (default: %(default)s)")
    parser.add_argument("--no-encoder", action="store_true", help="no transformer encoder on the map")


def build_sadcl(data: Dataset, options: Options) -> SADCL:
    """Return an untrained SADCL; both memories hold 32 features a label."""
    backbone, channels = make_backbone(data.train.inputs)
    num_labels, bank = len(data.label_names), options["bank"]
    return SADCL(
        backbone,
        channels,
        num_labels,
        proj_dim=channels // 2,
        proj_width=channels,
        encoder_layers=0 if options["no_encoder"] else 1,
        width=2 * channels,
        sample_weight=0.0 if options["no_s2s"] else 100.0,
        prototype_weight=0.0 if options["no_p2s"] else 50.0,
        bank=None if bank == "none" else bank,
        bank_size=32 * num_labels if bank == "global" else 32,
    )


def start_sadcl_epoch(options: Options, model: nn.Module, data: Dataset, epoch: int, epochs: int) -> None:
    """Train without contrast first, then make the prototypes from the training images, then train with everything."""
    first = round(options["stage_one"] * epochs)
    model.contrast = epoch >= first
    if epoch == first > 0:
        train = data.train
        model.initialize_prototypes(zip(train.inputs.split(250), train.targets.split(250), strict=True))


def draw_sadcl(model: nn.Module, untrained: nn.Module, data: Dataset, folder: Path) -> None:
    """Draw label features before and after training, and prototypes beside co-occurrence."""
    draw_features(untrained, model, data, folder / "features.png")
    draw_prototypes(model, data, folder / "prototypes.png")


def make_sadcl_loss() -> nn.Module:
    """Return binary cross-entropy, the mean over known labels."""
    return BinaryCrossEntropyLoss(reduction="mean")


SYSTEMS = {
    "oprl": System("OPRL", add_oprl_options, build_oprl, draw_oprl, make_oprl_loss),
    "sadcl": System(
        "SADCL",
        add_sadcl_options,
        build_sadcl,
        draw_sadcl,
        make_sadcl_loss,
        before_epoch=start_sadcl_epoch,
        not_averaged=("contrastive_loss.",),
    ),
}
