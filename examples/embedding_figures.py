"""Pictures of label features in a plane, by stage of training or by kind, and of prototypes beside co-occurrence."""

from __future__ import annotations

from collections.abc import Callable
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
from torch import Tensor, nn

from examples.data import Dataset, Split
from mlcorr.grouping import LabelCooccurrence
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.sadcl import SADCL

POINTS = 1500  # label features in a picture, at most
NAMED = 20  # labels whose names fit beside a picture
Method = Literal["pca", "tsne"]
Embed = Callable[[nn.Module, Tensor], Tensor]  # from a system and inputs to label features (N, labels, d)


def label_features(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the label features of a SADCL."""
    return model(inputs, embed=False).label_features


@torch.no_grad()
def active_features(
    model: nn.Module, split: Split, *, most: int = POINTS, embed: Embed = label_features
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (A, d) of the labels that are there, of the first samples, and which labels they are."""
    model.eval()
    features, labels, found = [], [], 0
    for images, targets in zip(split.inputs.split(250), split.targets.split(250), strict=True):
        active = targets == 1
        features.append(embed(model, images)[active].cpu())
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
    """Draw the features of the labels that evaluation samples show, with the first weights and with the last."""
    stages = (("before training", untrained), ("after training", trained))
    draw_planes({stage: active_features(model, data.evaluation) for stage, model in stages}, data, path, method=method)


def draw_kinds(model: LatentContext, data: Dataset, path: Path, *, method: Method = "tsne") -> None:
    """Draw each kind of features that a latent context has of the labels that evaluation samples show."""

    def of(kind: str) -> tuple[np.ndarray, np.ndarray]:
        return active_features(model, data.evaluation, embed=lambda model, inputs: getattr(model(inputs), kind))

    kinds = ("class_features", "context_features", "fused_features")
    kinds = kinds if model.context is not None else (kinds[0], kinds[2])
    draw_planes({kind.replace("_", " "): of(kind) for kind in kinds}, data, path, method=method)


def draw_planes(panels: dict[str, tuple[np.ndarray, np.ndarray]], data: Dataset, path: Path, *, method: Method) -> None:
    """Draw features and which labels they are of, a panel each."""
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 5 * len(panels), 5.2), layout="constrained")
    colours = colours_of(len(data.label_names))
    for panel, (name, (features, labels)) in zip(axes, panels.items(), strict=True):
        places = flatten(features, method)
        for label in np.unique(labels):
            own = places[labels == label]
            panel.scatter(*own.T, s=9, color=colours[label], linewidths=0, label=data.label_names[label])
        alike = 100 * nearest_is_alike(features, labels)
        panel.set_title(f"{name}: {alike:.0f} % have a nearest neighbour of their label", fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
    if len(data.label_names) <= NAMED:
        handles, names = axes[-1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", markerscale=3, frameon=False)
    text = {"pca": "principal components", "tsne": "t-SNE"}[method]
    figure.suptitle(f"Features of the labels that are there, in samples not trained on, coloured by label ({text})")
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
