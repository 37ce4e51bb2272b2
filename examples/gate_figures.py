"""Pictures of a trained ML-VPT: how much each label listens to each expert of its groups, and the groups."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from torch import Tensor

from examples.data import Dataset
from mlcorr.grouping import SpectralLabelGrouping
from mlcorr.grouping.figures import draw_groups
from mlcorr.systems.ml_vpt import MLVPT

NAMED = 100  # labels whose names fit beside a picture
NUMBERS = 40  # labels up to which every weight is written out
RELATIONS = ("co-occurrence", "dis-occurrence")


@torch.no_grad()
def mean_gates(model: MLVPT, data: Dataset) -> Tensor:
    """Return the mean weights (2, L, E) over the evaluation images that show a label, or over all if none does."""
    model.eval()
    sums = torch.zeros(2, model.num_labels, model.experts, dtype=torch.float64)
    shown, counts = torch.zeros_like(sums), torch.zeros(model.num_labels, 1, dtype=torch.float64)
    for images, targets in zip(data.evaluation.inputs.split(250), data.evaluation.targets.split(250), strict=True):
        gates = model(images).gates.double().cpu()
        present = (targets.cpu() == 1).double()
        sums += gates.sum(0)
        shown += torch.einsum("bl,brle->rle", present, gates)
        counts += present.sum(0).unsqueeze(-1)
    return torch.where(counts > 0, shown / counts.clamp(min=1), sums / len(data.evaluation))


def draw_gates(model: MLVPT, data: Dataset, path: Path) -> None:
    """Draw the mean weights of both relations, labels ordered by group with a line between groups."""
    weights = mean_gates(model, data)
    labels, experts = weights.shape[1:]
    side = min(max(0.24 * labels, 2.5), 16)
    figure, axes = plt.subplots(1, 2, figsize=(2 * max(0.75 * experts, 2.2) + 2.2, side + 1.4), layout="constrained")
    for panel, relation, own, groups in zip(axes, RELATIONS, weights, (model.co_groups, model.dis_groups), strict=True):
        groups = groups.cpu()
        order = groups.argsort(stable=True)
        image = panel.imshow(own[order].numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for row in (groups[order].diff().nonzero().flatten() + 0.5).tolist():
            panel.axhline(row, color="white", linewidth=2)
        if labels <= NUMBERS:
            for row, label in enumerate(order.tolist()):
                for expert, weight in enumerate(own[label].tolist()):
                    colour = "black" if weight > 0.6 else "white"
                    panel.text(expert, row, f"{weight:.2f}", ha="center", va="center", fontsize=7, color=colour)
        names = [data.label_names[label] for label in order.tolist()] if labels <= NAMED else []
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.set_xticks(range(experts), [str(expert + 1) for expert in range(experts)])
        panel.set_xlabel("expert")
        panel.set_title(f"{relation} groups", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle("Mean weight of each expert in images that show the label", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_label_groups(grouping: SpectralLabelGrouping, path: Path) -> None:
    """Draw the labels' affinity, their graph and the spectrum, for both relations."""
    draw_groups(grouping).savefig(path, dpi=110)
