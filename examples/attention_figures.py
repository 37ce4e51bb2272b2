"""Pictures of attention: where each predicted label of an image looks, by the maps that a system has of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

from examples.data import Dataset
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.oprl import OPRL

# From images to probabilities (N, labels) and maps (N, labels, H, W) of attention, one or several.
Look = Callable[[Tensor], tuple[Tensor, ...]]

IMAGES, LABELS = 5, 3  # at most, in a picture
RIGHT, WRONG = "#009E73", "#D55E00"  # Okabe and Ito's: told apart by every eye


@contextmanager
def without_purification(model: OPRL) -> Iterator[None]:
    """Let every place take part in the attention, as with tau = 0."""
    tau = model.purification.tau
    model.purification.tau = 0.0
    try:
        yield
    finally:
        model.purification.tau = tau


@torch.no_grad()
def attention_maps(model: OPRL, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities (N, labels), and attention (N, labels, H, W) before and after purification."""
    model.eval()
    height, width = model.backbone(images).shape[-2:]
    output = model(images)
    with without_purification(model):
        plain = model(images)
    before, after = (each.attention.unflatten(-1, (height, width)) for each in (plain, output))
    return output.logits.sigmoid(), before, after


@torch.no_grad()
def class_and_context_maps(model: LatentContext, images: Tensor) -> tuple[Tensor, ...]:
    """Return probabilities (N, labels), class-aware attention (N, labels, H, W), and context attention if any."""
    model.eval()
    size = model.backbone(images).shape[-2:]
    output = model(images)
    maps = [each.unflatten(-1, size) for each in (output.attention, output.context_attention) if each is not None]
    return output.logits.sigmoid(), *maps


def choose(probabilities: Tensor, count: int) -> list[int]:
    """Return the first images for which at least two labels are predicted, then any others, ``count`` in all."""
    several = (probabilities > 0.5).sum(-1) >= 2
    order = torch.cat([several.nonzero().flatten(), (~several).nonzero().flatten()])
    return sorted(order[:count].tolist())


def predicted(probabilities: Tensor) -> list[int]:
    """Return the labels predicted for an image, the most probable first; the best one where there is none."""
    ranked = probabilities.argsort(descending=True, stable=True)[:LABELS].tolist()
    return [label for label in ranked if probabilities[label] > 0.5] or ranked[:1]


def displayable(images: Tensor, data: Dataset) -> np.ndarray:
    """Return images (N, H, W, 3) in [0, 1]: every channel's range in the training images is its full scale."""
    low = data.train.inputs.amin((0, 2, 3), keepdim=True)
    high = data.train.inputs.amax((0, 2, 3), keepdim=True)
    shown = ((images - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    shown = shown if shown.shape[1] == 3 else shown[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).cpu().numpy()


def overlay(axes: Axes, image: np.ndarray, attention: np.ndarray, most: float) -> None:
    """Draw the image in pale grey and the attention on it in red; dropped places, of attention 0, are nearly black."""
    height, width = image.shape[:2]
    axes.imshow(0.4 + 0.6 * image.mean(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    weight = np.clip(attention / most, 0, 1)
    dropped = attention == 0
    colours = np.zeros((*attention.shape, 4))
    colours[..., 0] = 0.75
    colours[..., 3] = 0.85 * np.sqrt(weight)  # small weights are many, and would not be seen
    colours[dropped] = (0.05, 0.05, 0.15, 0.7)
    axes.imshow(colours, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")


def draw_attention(model: nn.Module, data: Dataset, path: Path) -> None:
    """Draw some evaluation images and, for each label predicted, its attention before and after purification.

    Both maps of a label have one scale, from 0 to its largest weight.
    """
    title = "attention of each predicted label, before and after purification"
    look = partial(attention_maps, model)
    draw_maps(look, ("before", "after"), data, path, title=title, note="; dark: dropped places", one_scale=True)


def draw_context(model: LatentContext, data: Dataset, path: Path) -> None:
    """Draw some evaluation images and, for each label predicted, its class-aware and its context attention.

    Each map has its own scale, from 0 to its largest weight.
    """
    title = "where each predicted label looks itself"
    names: tuple[str, ...] = ("class",)
    if model.context is not None:
        title, names = f"{title}, and where the context that it reads comes from", ("class", "context")
    draw_maps(partial(class_and_context_maps, model), names, data, path, title=title)


def draw_maps(
    look: Look,
    names: tuple[str, ...],
    data: Dataset,
    path: Path,
    *,
    title: str,
    note: str = "",
    one_scale: bool = False,
) -> None:
    """Draw some evaluation images and, for each label predicted, its maps; each on its own scale, or on the last's."""
    candidates = data.evaluation.inputs[:200]
    probabilities = look(candidates)[0]
    rows = choose(probabilities, IMAGES)
    images, truth = candidates[rows], data.evaluation.targets[rows].cpu()
    probabilities, *all_maps = (each.cpu() for each in look(images))
    shown = displayable(images, data)
    columns = 1 + len(names) * max(len(predicted(row)) for row in probabilities)
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(1.75 * columns, 1.95 * len(rows)), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for row, line in enumerate(grid):
        line[0].imshow(shown[row], interpolation="nearest")
        present = [name for name, target in zip(data.label_names, truth[row], strict=True) if target == 1]
        line[0].set_title(", ".join(present) or "nothing", fontsize=9, color="black")
        for place, label in enumerate(predicted(probabilities[row])):
            colour = RIGHT if truth[row, label] == 1 else WRONG
            text = f"{data.label_names[label]} {probabilities[row, label]:.2f}"
            for axes, maps, name in zip(line[1 + len(names) * place :], all_maps, names, strict=False):
                most = float((all_maps[-1] if one_scale else maps)[row, label].max())
                overlay(axes, shown[row], maps[row, label].numpy(), most)
                axes.set_title(f"{text}, {name}", fontsize=9, color=colour)
    figure.suptitle(
        f"True labels over each image; {title}\n"
        f"(green: the label is there, orange: it is not; red: the weight of a place{note})",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
