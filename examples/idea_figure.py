"""Draw the idea of the library in one picture: ``python -m examples.idea_figure --output docs/_static/idea.png``.

A scene of handwritten digits and its labels; which labels keep company in 4000 scenes; what a teacher and a student
think of the scene, label by label; and how their probabilities of any two labels differ, which is what a dependency
loss compares. Both networks are trained here, in half a minute. The scene is, of the test scenes with three labels that
the teacher gets right, the one on which the two disagree most by :func:`mlcorr.functional.multi_order_dependency_loss`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from examples.data import GROUPS, Dataset, digit_scenes
from examples.figures import STYLE
from examples.models import make_student, make_teacher
from mlcorr import BinaryCrossEntropyLoss, LabelCooccurrence
from mlcorr.functional import multi_order_dependency_loss

TEACHER, STUDENT, INK = "#0072B2", "#D55E00", "#333333"  # Okabe and Ito's: told apart by every eye
ORDER = [label for group in GROUPS for label in group]  # labels of a group side by side


class Idea(NamedTuple):
    """An image, its labels (C,), P(column | row) (C, C) of so many scenes, and two networks' probabilities (C,)."""

    image: np.ndarray
    labels: np.ndarray
    company: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    scenes: int


def make_idea(*, scenes: int = 4000, epochs: int = 8, seed: int = 0) -> Idea:
    """Train a teacher and a student, and choose a scene."""
    data = digit_scenes(seed=seed, num_scenes=(scenes, 0, min(scenes, 500)))
    counts = LabelCooccurrence(num_labels=10)
    counts.update(data.train.targets)
    torch.manual_seed(seed)
    teacher, student = (
        probabilities(make(data.train.inputs, 10), data, epochs=number)
        for make, number in ((make_teacher, epochs), (make_student, max(epochs // 4, 1)))
    )
    labels = data.evaluation.targets
    wrong = ((teacher > 0.5) != (labels > 0.5)).sum(1) + 10 * (labels.sum(1) != 3)
    apart = multi_order_dependency_loss(
        student, teacher, orders=[2], level="instance", inputs="probabilities", reduction="none"
    )
    chosen = torch.where(wrong == wrong.min(), apart, -1.0).argmax()
    parts = (data.evaluation.inputs[chosen, 0], labels[chosen], counts.conditional(), teacher[chosen], student[chosen])
    return Idea(*(part.numpy() for part in parts), scenes)


def probabilities(model: nn.Module, data: Dataset, *, epochs: int, batch_size: int = 64) -> Tensor:
    """Train ``model`` with BCE, and return its probabilities on the evaluation scenes."""
    optimizer, criterion = torch.optim.AdamW(model.parameters(), lr=3e-3), BinaryCrossEntropyLoss()
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train)).split(batch_size):
            loss = criterion(model(data.train.inputs[rows]), data.train.targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return model.eval()(data.evaluation.inputs).sigmoid()


def draw(idea: Idea, path: Path) -> None:
    """Draw the four panels on a light card, with letters that can be read at the width of a phone."""
    style = {**STYLE, "font.size": 13, "text.color": INK, "axes.labelcolor": INK}
    with plt.rc_context({**style, "xtick.color": INK, "ytick.color": INK}):
        figure, ((scene, company), (single, pairs)) = plt.subplots(2, 2, figsize=(7.6, 8.1), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        draw_scene(scene, idea)
        draw_company(company, idea)
        draw_single(single, idea)
        draw_pairs(pairs, idea)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def draw_scene(axes: Axes, idea: Idea) -> None:
    """Draw the image and name its labels."""
    axes.imshow(idea.image, cmap="gray", interpolation="nearest")
    axes.axis("off")
    *names, last = [str(label) for label in np.flatnonzero(idea.labels)]
    title(axes, "An image has many labels", f"this one {', '.join(names)} and {last}")


def draw_company(axes: Axes, idea: Idea) -> None:
    """Draw P(column | row), with a frame around each group of the data."""
    heat_map(axes, idea.company, vmax=1.0)
    start = 0
    for group in GROUPS:
        axes.add_patch(Rectangle((start - 0.5, start - 0.5), len(group), len(group), fill=False, ec=STUDENT, lw=2))
        start += len(group)
    title(axes, "Labels keep company", f"P(column | row), in {idea.scenes} scenes")


def draw_single(axes: Axes, idea: Idea) -> None:
    """Draw both networks' probability of each label."""
    places = np.arange(len(ORDER))
    axes.vlines(places, idea.student[ORDER], idea.teacher[ORDER], color="#BBBBBB", lw=3, zorder=1)
    axes.scatter(places, idea.teacher[ORDER], color=TEACHER, marker="o", s=60, label="teacher", zorder=2)
    axes.scatter(places, idea.student[ORDER], color=STUDENT, marker="D", s=48, label="student", zorder=2)
    axes.set_xticks(places, [str(label) for label in ORDER])
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_ylim(-0.05, 1.05)
    axes.set_box_aspect(1)
    axes.legend(loc="upper right", handletextpad=0.1, borderaxespad=0.1, fontsize=13)
    title(axes, "Label by label", "what most losses compare")


def draw_pairs(axes: Axes, idea: Idea) -> None:
    """Draw squared differences of probabilities: the teacher's above the diagonal, the student's below."""
    above, below = ((p[:, None] - p) ** 2 for p in (idea.teacher, idea.student))
    position = np.argsort(ORDER)
    heat_map(axes, np.where(position[:, None] < position, above, below), vmax=1.0)
    axes.plot([-0.5, len(ORDER) - 0.5], [-0.5, len(ORDER) - 0.5], color=INK, lw=1.5)
    box = {"boxstyle": "round", "fc": "white", "ec": "none", "alpha": 0.85}
    axes.text(6.9, 3.6, "teacher", color=TEACHER, ha="center", va="center", fontsize=13, bbox=box)
    axes.text(2.1, 7.5, "student", color=STUDENT, ha="center", va="center", fontsize=13, bbox=box)
    title(axes, "Pair by pair", "what a dependency loss compares too")


def heat_map(axes: Axes, values: np.ndarray, *, vmax: float) -> None:
    """Draw a matrix over labels in the order of their groups; its diagonal says nothing and is left out."""
    shown = np.where(np.eye(len(values), dtype=bool), np.nan, values)[np.ix_(ORDER, ORDER)]
    axes.imshow(shown, cmap="YlGnBu", vmin=0, vmax=vmax)
    names = [str(label) for label in ORDER]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def title(axes: Axes, text: str, below: str, *, pad: float = 26) -> None:
    """Write a heading and a line below it."""
    axes.set_title(text, fontsize=14.5, fontweight="bold", loc="left", pad=pad)
    axes.annotate(below, (0, 1), (0, pad - 17), "axes fraction", textcoords="offset points", fontsize=11.5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(prog="python -m examples.idea_figure", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/_static/idea.png"), help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=4000, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of the teacher (default: %(default)s)")
    options = parser.parse_args(arguments)
    draw(make_idea(scenes=options.scenes, epochs=options.epochs), options.output)
    print(f"{options.output} written")


if __name__ == "__main__":
    main()
