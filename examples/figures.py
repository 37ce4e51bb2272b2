"""Pictures of the demo: pair dependencies as heat maps beside the truth, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from examples.report import group_runs, pair_dependencies, sigmoid, truth_as_probabilities
from examples.students import BCE, Run

# Okabe and Ito's colours: told apart by every eye.
COLOURS = ("#999999", "#000000", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00")
MOST_LABELS = 14  # in a heat map: the most frequent ones
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False}


def draw_learning_curves(runs: Sequence[Run], teacher: Sequence[dict[str, float]], path: Path, *, split: str) -> None:
    """Draw mAP after every epoch, its difference to BCE seed by seed, and that difference at the end."""
    curves = {
        student: 100 * np.array([[scores["mAP"] for scores in run.curve] for run in own])
        for student, own in group_runs(runs).items()
    }
    gains = {student: values - curves[BCE.name] for student, values in curves.items() if student != BCE.name}
    colours = dict(zip(curves, COLOURS, strict=True))
    epochs = np.arange(1, len(teacher) + 1)
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(13, 4), layout="constrained", gridspec_kw={"width_ratios": (4, 4, 3)}
        )
        left.plot(epochs, [100 * scores["mAP"] for scores in teacher], color="#CC79A7", ls="--", label="teacher")
        for student, values in curves.items():
            left.plot(epochs, values.mean(0), color=colours[student], label=student)
        for row, (student, gain) in enumerate(gains.items()):
            mean, error = gain.mean(0), gain.std(0, ddof=min(1, len(gain) - 1)) / np.sqrt(len(gain))
            middle.plot(epochs, mean, color=colours[student])
            right.plot(gain[:, -1], np.full(len(gain), row), ".", color=colours[student], alpha=0.35)
            right.errorbar(mean[-1], row, xerr=error[-1], fmt="o", color=colours[student], capsize=3)
        middle.axhline(0, color=colours[BCE.name], lw=1)
        right.axvline(0, color=colours[BCE.name], lw=1)
        right.set_yticks(range(len(gains)), list(gains))
        right.invert_yaxis()
        left.set(title=f"mAP on {split}, mean over seeds", xlabel="epoch", ylabel="mAP, %")
        middle.set(title="Gain on BCE, mean over seeds", xlabel="epoch", ylabel="mAP points")
        right.set(title="Gain on BCE, last epoch (± SE)", xlabel="mAP points")
        left.legend(loc="best")
        for axes in (left, middle):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_dependencies(
    runs: Sequence[Run],
    teacher: np.ndarray,
    targets: np.ndarray,
    inputs: np.ndarray,
    label_names: Sequence[str],
    folder: Path,
) -> None:
    """Draw the pair dependencies of one sample and the mean over all: the truth's, the teacher's, the students'.

    The sample is the first with at least three labels (else the first), seen by the students of the first seed.
    """
    truth = truth_as_probabilities(targets)
    labels = order_labels(truth)
    names = [label_names[label] for label in labels]
    models = {"truth": [truth], "teacher": [sigmoid(teacher)]}
    models |= {student: [sigmoid(run.logits) for run in own] for student, own in group_runs(runs).items()}

    busy = np.flatnonzero((truth == 1).sum(1) >= 3)
    sample = int(busy[0]) if len(busy) else 0
    present = ", ".join(label_names[label] for label in np.flatnonzero(truth[sample] == 1))
    _heat_maps(
        {name: pair_dependencies(seeds[0][sample, labels]) for name, seeds in models.items()},
        names,
        folder / "dependencies_one_sample.png",
        title=f"Pair dependencies of one sample, labels {present}: squared difference of two probabilities",
        image=inputs[sample] if inputs.ndim == 4 and inputs.shape[1] in (1, 3) else None,
    )
    _heat_maps(
        {
            name: np.mean([_mean_dependencies(probabilities[:, labels]) for probabilities in seeds], axis=0)
            for name, seeds in models.items()
        },
        names,
        folder / "dependencies_mean.png",
        title="Pair dependencies, mean over all samples and seeds",
    )


def order_labels(truth: np.ndarray) -> np.ndarray:
    """Return the most frequent labels as a chain: after each label the nearest of the rest, so that groups show."""
    rest = list(np.argsort(-np.nansum(truth, axis=0), kind="stable")[:MOST_LABELS])
    distance = _mean_dependencies(truth)
    chain = [rest.pop(0)]
    while rest:
        chain.append(rest.pop(int(np.argmin(distance[chain[-1], rest]))))
    return np.array(chain)


def _mean_dependencies(probabilities: np.ndarray) -> np.ndarray:
    """Return the mean over samples, (C, C); 0 for a pair that is never known."""
    known = np.isfinite(probabilities).astype(float)
    value = np.where(known > 0, probabilities, 0.0)
    square = (value**2).T @ known
    return (square + square.T - 2 * value.T @ value) / np.maximum(known.T @ known, 1)


def _heat_maps(
    maps: dict[str, np.ndarray],
    names: Sequence[str],
    path: Path,
    *,
    title: str,
    image: np.ndarray | None = None,
) -> None:
    """Draw the maps in a row, and below it how each student's differs from the teacher's."""
    figure, grid = plt.subplots(2, len(maps), figsize=(1.75 * len(maps) + 0.6, 4.1), layout="constrained")
    highest = max(float(np.nanmax(each)) for each in maps.values())
    gaps = {name: each - maps["teacher"] for name, each in maps.items()}
    widest = max(float(np.nanmax(np.abs(gap))) for name, gap in gaps.items() if name != "truth") or 1.0
    for column, name in enumerate(maps):
        above, below = grid[:, column]
        value = _heat_map(above, maps[name], cmap="YlGnBu", low=0, high=highest)
        above.set_title(name.replace(" labels", "\nlabels"))
        lowest = above if name in ("truth", "teacher") else below
        if lowest is below:
            gap = _heat_map(below, gaps[name], cmap="RdBu_r", low=-widest, high=widest)
        else:
            below.axis("off")
        lowest.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=7)
    for first in (grid[0, 0], grid[1, 2]):
        first.set_yticks(range(len(names)), names, fontsize=7)
    if image is not None:
        low, high = image.min(), image.max()
        grid[1, 0].imshow(((image - low) / max(high - low, 1e-6)).transpose(1, 2, 0), cmap="gray")
        grid[1, 0].set_title("the sample", y=-0.2)
    figure.colorbar(value, ax=grid[0], shrink=0.8, label="dependency")
    figure.colorbar(gap, ax=grid[1], shrink=0.8, label="minus the teacher's")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _heat_map(axes: Axes, values: np.ndarray, *, cmap: str, low: float, high: float) -> AxesImage:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    without_diagonal = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    return axes.imshow(without_diagonal, cmap=cmap, vmin=low, vmax=high)
