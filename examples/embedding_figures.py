"""Pictures of a trained SADCL: label features before and after training, prototypes beside label co-occurrence."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import nn

from examples.data import Dataset, Split
from mlcorr.grouping import LabelCooccurrence
from mlcorr.systems.sadcl import SADCL

POINTS = 1500  # label features in a picture, at most
NAMED = 20  # labels whose names fit beside a picture
Method = Literal["pca", "tsne"]


@torch.no_grad()
def active_features(model: SADCL, split: Split, *, most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (A, d) of the labels that are there, of the first images, and which labels they are."""
    model.eval()
    features, labels, found = [], [], 0
    for images, targets in zip(split.inputs.split(250), split.targets.split(250), strict=True):
        active = targets == 1
        features.append(model(images, embed=False).label_features[active].cpu())
        labels.append(active.nonzero()[:, 1].cpu())
        found += len(labels[-1])
        if found >= most:
            break
    return torch.cat(features)[:most].float().numpy(), torch.cat(labels)[:most].numpy()


def nearest_is_alike(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of features whose nearest other one, by cosine, is of the same label."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return float((labels[similarity.argmax(1)] == labels).mean())


def flatten(features: np.ndarray, method: Method) -> np.ndarray:
    """Return features (A, d) as places (A, 2) in the plane; the same each time."""
    if method == "tsne" and len(features) > 3:
        perplexity = min(30.0, (len(features) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=0).fit_transform(features)
    return PCA(2, random_state=0).fit_transform(features)


def colours_of(num_labels: int) -> np.ndarray:
    """Return a colour for each label."""
    if num_labels <= 10:
        return np.array(plt.get_cmap("tab10").colors[:num_labels])
    return plt.get_cmap("turbo")(np.linspace(0, 1, num_labels))[:, :3]


def draw_features(
    untrained: nn.Module, trained: nn.Module, data: Dataset, path: Path, *, method: Method = "tsne"
) -> None:
    """Draw the features of the labels that evaluation images show, with the first weights and with the last."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    colours = colours_of(len(data.label_names))
    for panel, (stage, model) in zip(axes, (("before", untrained), ("after", trained)), strict=True):
        features, labels = active_features(model, data.evaluation)
        places = flatten(features, method)
        for label in np.unique(labels):
            own = places[labels == label]
            panel.scatter(*own.T, s=9, color=colours[label], linewidths=0, label=data.label_names[label])
        alike = 100 * nearest_is_alike(features, labels)
        panel.set_title(f"{stage} training: {alike:.0f} % have a nearest neighbour of their label", fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
    if len(data.label_names) <= NAMED:
        handles, names = axes[1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", markerscale=3, frameon=False)
    name = {"pca": "principal components", "tsne": "t-SNE"}[method]
    figure.suptitle(f"Features of the labels that are there, in images not trained on, coloured by label ({name})")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def order_by_company(conditional: np.ndarray) -> np.ndarray:
    """Return labels in an order in which those that come together stand together (Fiedler's vector)."""
    tie = (conditional + conditional.T) / 2
    np.fill_diagonal(tie, 0)
    scale = 1 / np.sqrt(tie.sum(1).clip(1e-12))
    _, vectors = np.linalg.eigh(np.eye(len(tie)) - scale[:, None] * tie * scale)
    return np.argsort(vectors[:, min(1, len(tie) - 1)] * scale, kind="stable")


@torch.no_grad()
def prototype_similarity(model: SADCL) -> np.ndarray:
    """Return the cosines (L, L) of the projected prototypes, which the contrast compares with label features."""
    projected = nn.functional.normalize(model.projector(model.prototypes).float(), dim=-1)
    return (projected @ projected.T).cpu().numpy()


def draw_prototypes(model: nn.Module, data: Dataset, path: Path) -> None:
    """Draw the similarity of prototypes beside the labels' co-occurrence in training, in one order of labels."""
    counts = LabelCooccurrence(len(data.label_names))
    counts.update(data.train.targets.cpu())
    conditional = counts.conditional().double().numpy()
    order = order_by_company(conditional)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    panels = (
        (prototype_similarity(model), "cosine of projected prototypes", "RdBu_r", -1),
        (conditional, "probability of a label (column) given another (row)", "viridis", 0),
    )
    for panel, (matrix, title, colours, least) in zip(axes, panels, strict=True):
        draw_matrix(panel, matrix[order][:, order], [data.label_names[label] for label in order], colours, least)
        panel.set_title(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_matrix(axes: Axes, matrix: np.ndarray, names: list[str], colours: str, least: float) -> None:
    """Draw a matrix whose entries are at most 1."""
    image = axes.imshow(matrix, cmap=colours, vmin=least, vmax=1, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, shrink=0.85)
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
