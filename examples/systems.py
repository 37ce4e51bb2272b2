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
from examples.gate_figures import draw_gates, draw_label_groups
from examples.models import make_backbone
from examples.vision_transformers import Frozen, frozen_transformer
from mlcorr import AsymmetricLoss, BinaryCrossEntropyLoss
from mlcorr.grouping import LabelCooccurrence, SpectralLabelGrouping
from mlcorr.systems.ml_vpt import MLVPT
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL

Options = dict[str, Any]  # those of the system, and the run's "seed"


def make_convolutions(data: Dataset, _options: Options) -> tuple[nn.Module, int]:
    """Return an untrained convolutional backbone and the number of its channels."""
    return make_backbone(data.train.inputs)


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
        make_backbone: returns the backbone of the linear head, with its first weights, and the number of its channels.
    """

    title: str
    add_options: Callable[[argparse.ArgumentParser], None]
    build: Callable[[Dataset, Options], nn.Module]
    draw: Callable[[nn.Module, nn.Module, Dataset, Path], None]
    make_loss: Callable[[], nn.Module]
    before_epoch: Callable[[Options, nn.Module, Dataset, int, int], None] | None = None
    not_averaged: tuple[str, ...] = ()
    make_backbone: Callable[[Dataset, Options], tuple[nn.Module, int]] = make_convolutions


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
        features = self.backbone(images)  # a map (N, channels, H, W) or tokens (N, places, channels)
        mean = features.flatten(2).mean(-1) if features.dim() == 4 else features.mean(1)
        return LinearOutput(self.classifier(mean))

    def objective(self, output: LinearOutput, targets: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(output.logits, targets)


def build_linear_head(data: Dataset, system: System, options: Options) -> LinearHead:
    """Return the untrained baseline of a system."""
    return LinearHead(*system.make_backbone(data, options), len(data.label_names), system.make_loss())


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


# ---------------------------------------------------------------------------------------------------- ML-VPT


def add_mlvpt_options(parser: argparse.ArgumentParser) -> None:
    """Add where the frozen transformer comes from, and what can be varied in ML-VPT."""
    parser.add_argument("--weights", metavar="DIR", help="a ViTModel that transformers has saved (default: random)")
    text = "epochs in which a small transformer first learns single digits (default: 0, random weights)"
    parser.add_argument("--pretrain-epochs", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--groups", type=int, metavar="T", help="of each relation (default: by the number of labels)")
    parser.add_argument("--experts", type=int, default=3, metavar="E", help="a group (default: %(default)s)")
    outputs = ("norm", "pre_norm")
    parser.add_argument("--prompt-output", choices=outputs, default="norm", help="default: %(default)s")
    parser.add_argument("--no-gate-loss", action="store_true", help="two terms in the loss, as the paper says")
    parser.add_argument("--recompute", action="store_true", help="less memory: blocks are computed twice")


def group_labels(data: Dataset, num_groups: int | None) -> SpectralLabelGrouping:
    """Return the labels of the training samples in groups: five of each relation, fewer of few labels."""
    num_labels = len(data.label_names)
    wanted = min(5, max(1, num_labels // 3)) if num_groups is None else min(num_groups, num_labels)
    grouping = SpectralLabelGrouping(num_labels, wanted, names=data.label_names)
    grouping.update(data.train.targets.cpu())
    grouping.fit()
    return grouping


def make_frozen(data: Dataset, options: Options) -> tuple[nn.Module, int]:
    """Return the frozen transformer and its width."""
    chosen = {name: options[name] for name in ("weights", "pretrain_epochs", "seed")}
    backbone = frozen_transformer(data, **chosen)
    return Frozen(backbone), backbone.out_channels


def build_mlvpt(data: Dataset, options: Options) -> MLVPT:
    """Return an untrained ML-VPT in a frozen transformer."""
    return MLVPT(
        make_frozen(data, options)[0].backbone,
        group_labels(data, options["groups"]).assignments,
        experts=options["experts"],
        prompt_output=options["prompt_output"],
        gate_loss_weight=0.0 if options["no_gate_loss"] else 1.0,
        checkpoint_blocks=options["recompute"],
    )


def draw_mlvpt(model: nn.Module, _untrained: nn.Module, data: Dataset, folder: Path) -> None:
    """Draw the gates' weights by label and expert, and the groups of labels."""
    draw_gates(model, data, folder / "gates.png")
    draw_label_groups(group_labels(data, model.num_groups), folder / "groups.png")


def make_mlvpt_loss() -> nn.Module:
    """Return the asymmetric loss as ML-VPT has it; its factor of 1000 would not change what AdamW does."""
    return AsymmetricLoss(gamma_neg=2.0, gamma_pos=0.0, clip=0.0, reduction="mean")


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
    "mlvpt": System(
        "ML-VPT",
        add_mlvpt_options,
        build_mlvpt,
        draw_mlvpt,
        make_mlvpt_loss,
        make_backbone=make_frozen,
    ),
}
