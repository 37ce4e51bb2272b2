"""The systems that `examples.train` can train: for each, its options, how it is built and what it draws."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from examples.attention_figures import draw_attention, draw_context
from examples.data import Dataset
from examples.embedding_figures import draw_features, draw_kinds, draw_prototypes
from examples.gate_figures import draw_gates, draw_label_groups
from examples.models import make_backbone
from examples.partial_losses import EPOCH_DEPENDENT, LOSSES
from examples.vision_transformers import Frozen, frozen_transformer
from mlcorr import AsymmetricLoss, BinaryCrossEntropyLoss
from mlcorr.grouping import LabelCooccurrence, SpectralLabelGrouping
from mlcorr.systems.latent_context import LatentContext, recommended_beta
from mlcorr.systems.ml_vpt import MLVPT
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL

Options = dict[str, Any]  # those of the system, and the run's "seed"
RECOMMENDED = "recommended"


def make_small(data: Dataset, _options: Options) -> tuple[nn.Module, int]:
    """Return a small untrained backbone for the data and the number of its channels."""
    return make_backbone(data.train.inputs)


@dataclass(frozen=True)
class System:
    """An entry of the table.

    Attributes:
        title: what the report calls it.
        add_options: adds the system's own options to the command line.
        build: returns an untrained system for the data, with ``forward(inputs)`` that returns logits first and
            ``objective(output, targets)``.
        draw: writes pictures of a trained system, and of the same with its first weights, into a folder, and returns
            the names of those that it left out, since they need images and the data have features.
        make_loss: returns the loss of the linear head that the system is compared with.
        before_epoch: prepares the system for an epoch, from options, system, data, the number of epochs done and that
            of all epochs; the same in a resumed run.
        not_averaged: beginnings of names of buffers that the average of weights copies.
        make_backbone: returns the backbone of the linear head, with its first weights, and the number of its channels.
        takes_targets: whether ``forward(inputs, targets)`` takes the targets too, in training.
        takes_features: whether its backbone takes features, not only images.
    """

    title: str
    add_options: Callable[[argparse.ArgumentParser], None]
    build: Callable[[Dataset, Options], nn.Module]
    draw: Callable[[nn.Module, nn.Module, Dataset, Path], tuple[str, ...]]
    make_loss: Callable[[], nn.Module]
    before_epoch: Callable[[Options, nn.Module, Dataset, int, int], None] | None = None
    not_averaged: tuple[str, ...] = ()
    make_backbone: Callable[[Dataset, Options], tuple[nn.Module, int]] = make_small
    takes_targets: bool = False
    takes_features: bool = True


class LinearOutput(NamedTuple):
    """What :class:`LinearHead` returns."""

    logits: Tensor


class LinearHead(nn.Module):
    """The baseline of every system: the same backbone, the mean over places, one linear layer, a loss.

    Attributes:
        epoch: the number of epochs done, for a loss that depends on it.
    """

    def __init__(self, backbone: nn.Module, in_channels: int, num_labels: int, loss: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(in_channels, num_labels)
        self.loss = loss
        self.epoch: int = 0

    def forward(self, images: Tensor) -> LinearOutput:
        """Return the logits (N, labels) of images."""
        features = self.backbone(images)  # a map (N, channels, H, W) or tokens (N, places, channels)
        mean = features.flatten(2).mean(-1) if features.dim() == 4 else features.mean(1)
        return LinearOutput(self.classifier(mean))

    def objective(self, output: LinearOutput, targets: Tensor) -> Tensor:
        """Return the loss."""
        if isinstance(self.loss, EPOCH_DEPENDENT):
            return self.loss(output.logits, targets, self.epoch)
        return self.loss(output.logits, targets)


def build_linear_head(data: Dataset, options: Options, *, system: System, loss: str | None) -> LinearHead:
    """Return the untrained baseline of a system, with the loss of this name or with the system's own."""
    make_loss = system.make_loss if loss is None else LOSSES[loss]
    return LinearHead(*system.make_backbone(data, options), len(data.label_names), make_loss())


def tell_epoch(model: LinearHead, _data: Dataset, epoch: int, _epochs: int) -> None:
    """Let the loss of a linear head know how many epochs are done."""
    model.epoch = epoch


def has_images(data: Dataset) -> bool:
    """Return whether the samples are images, not features."""
    return data.train.inputs.ndim == 4


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


def draw_oprl(model: nn.Module, _untrained: nn.Module, data: Dataset, folder: Path) -> tuple[str, ...]:
    """Draw where the labels of some test images look, before and after purification."""
    if not has_images(data):
        return ("attention.png",)
    draw_attention(model, data, folder / "attention.png")
    return ()


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


def draw_sadcl(model: nn.Module, untrained: nn.Module, data: Dataset, folder: Path) -> tuple[str, ...]:
    """Draw label features before and after training, and prototypes beside co-occurrence."""
    draw_features(untrained, model, data, folder / "features.png")
    draw_prototypes(model, data, folder / "prototypes.png")
    return ()


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


def draw_mlvpt(model: nn.Module, _untrained: nn.Module, data: Dataset, folder: Path) -> tuple[str, ...]:
    """Draw the gates' weights by label and expert, and the groups of labels."""
    draw_gates(model, data, folder / "gates.png")
    draw_label_groups(group_labels(data, model.num_groups), folder / "groups.png")
    return ()


def make_mlvpt_loss() -> nn.Module:
    """Return the asymmetric loss as ML-VPT has it; its factor of 1000 would not change what AdamW does."""
    return AsymmetricLoss(gamma_neg=2.0, gamma_pos=0.0, clip=0.0, reduction="mean")


# -------------------------------------------------------------------------------------------- latent context


def weight_of_partial(text: str) -> float | str:
    """Return a number, or the word that lets the share of missing labels decide."""
    return text if text == RECOMMENDED else float(text)


def add_latent_context_options(parser: argparse.ArgumentParser) -> None:
    """Add what the supplement of the paper varies, and what our design does."""
    parser.add_argument("--depth", type=int, default=3, help="layers of the label transformer (default: %(default)s)")
    parser.add_argument("--units", type=int, default=16, help="of latent context (default: %(default)s)")
    text = "share of the known labels that are hidden, to be inferred (default: %(default)s)"
    parser.add_argument("--mask-ratio", type=share, default=0.1, metavar="SHARE", help=text)
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the full-label loss (default: %(default)s)")
    text = f"weight of the partial-label loss (default: %(default)s), or {RECOMMENDED} for the share of missing labels"
    parser.add_argument("--beta", type=weight_of_partial, default=0.1, help=text)
    fusions = ("gate", "sum", "concat", "none")
    parser.add_argument("--fusion", choices=fusions, default="gate", help="of context (default: %(default)s)")
    modes = ("state", "feature")
    text = "what the partial-label branch is shown (default: %(default)s)"
    parser.add_argument("--partial-mode", choices=modes, default="state", help=text)
    parser.add_argument("--separate-encoder", action="store_true", help="a label transformer for each branch")


def build_latent_context(data: Dataset, options: Options) -> LatentContext:
    """Return an untrained latent context, as wide as the backbone."""
    backbone, channels = make_backbone(data.train.inputs)
    beta = options["beta"]
    if beta == RECOMMENDED:
        beta = recommended_beta(float((data.train.targets < 0).double().mean()))
    return LatentContext(
        backbone,
        channels,
        len(data.label_names),
        dim=channels,
        units=options["units"],
        depth=options["depth"],
        heads=math.gcd(channels, 8),
        width=2 * channels,
        mask_ratio=options["mask_ratio"],
        alpha=options["alpha"],
        beta=beta,
        fusion=options["fusion"],
        partial_mode=options["partial_mode"],
        share_encoder=not options["separate_encoder"],
    )


def draw_latent_context(model: nn.Module, _untrained: nn.Module, data: Dataset, folder: Path) -> tuple[str, ...]:
    """Draw the features of labels by kind, and where the labels of some test images and their context look."""
    draw_kinds(model, data, folder / "features.png")
    if not has_images(data):
        return ("attention.png",)
    draw_context(model, data, folder / "attention.png")
    return ()


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
        takes_features=False,
    ),
    "latent_context": System(
        "latent context",
        add_latent_context_options,
        build_latent_context,
        draw_latent_context,
        LOSSES["asymmetric"],  # that of the system itself
        takes_targets=True,
    ),
}
