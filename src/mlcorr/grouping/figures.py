"""Pictures of a grouping: the affinity ordered by group, the graph of labels, the spectrum. Needs matplotlib.

Drawn is M⁺, whichever the relation: in the co-occurrence groups it is bright, in the dis-occurrence groups dark.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from torch import Tensor

from mlcorr._checks import check_choice, check_integer
from mlcorr.grouping.affinity import affinity
from mlcorr.grouping.label_groups import RELATIONS, LabelGroups, Relation
from mlcorr.grouping.spectral import SpectralLabelGrouping

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; more groups than colours begin again.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C7A00", "#4D4D4D")
_TITLES = {"co": "co-occurrence", "dis": "dis-occurrence"}
_NAMED = 120  # labels up to which names can be read
_INCH = 0.115  # a label's share of an axis


def draw_groups(grouping: SpectralLabelGrouping, *, most: int = _NAMED) -> Figure:
    """Return a figure of a fitted grouping: for each relation the affinity, the graph and the spectrum.

    Args:
        grouping: A fitted ``SpectralLabelGrouping`` with its counts.
        most: Of more labels than this, those with the largest affinity in all are drawn.

    Raises:
        RuntimeError: The grouping was not fitted.
        ImportError: There is no matplotlib; ``pip install mlcorr[plot]``.

    Example:
        >>> import torch
        >>> from mlcorr import SpectralLabelGrouping
        >>> from mlcorr.grouping.figures import draw_groups
        >>> grouping = SpectralLabelGrouping(8, num_groups=2)
        >>> grouping.update(torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) < 0.3)
        >>> groups = grouping.fit()
        >>> figure = draw_groups(grouping)  # figure.savefig("groups.png")
        >>> len(figure.axes)
        6
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_integer("most", most, minimum=1)
    groups = grouping.assignments
    m, shown = _strongest(grouping, most)
    side = max(_INCH * len(shown), 3.0) + 1.2
    figure = Figure(figsize=(2 * side + 4.5, 2 * side + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3, width_ratios=(side, side, 4.0), squeeze=False)
    for relation, row in zip(RELATIONS, panels, strict=True):
        part = _part(groups, shown)
        draw_affinity(row[0], m, part, relation)
        draw_graph(row[1], m, part, relation)
        draw_spectrum(row[2], grouping.eigenvalues(relation), groups.num_groups)
        cut = groups.ncut_co if relation == "co" else groups.ncut_dis
        row[0].set_title(f"{_TITLES[relation]} groups, normalised cut {cut:.4f}", loc="left")
    return figure


def draw_affinity(axes: Axes, affinity: Tensor, groups: LabelGroups, relation: Relation = "co") -> None:
    """Draw the matrix (C, C), its labels ordered by group, with a line around each group."""
    order, assigned = _by_group(groups, relation)
    size = len(order)
    axes.imshow(affinity[order][:, order].numpy(), cmap="magma", vmin=0, interpolation="nearest")
    ends = [0, *(i for i in range(1, size) if assigned[i] != assigned[i - 1]), size]
    for first, last in itertools.pairwise(ends):
        colour = _COLOURS[assigned[first] % len(_COLOURS)]
        corners = [first - 0.5, last - 0.5]
        square = ([0, 1, 1, 0, 0], [0, 0, 1, 1, 0])
        axes.plot([corners[x] for x in square[0]], [corners[y] for y in square[1]], color=colour, linewidth=2)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    if size > _NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    names = _names(groups, order)
    axes.set_xticks(range(size), names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(size), names, fontsize=7, parse_math=False)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, group in zip(ticks, assigned, strict=True):
            tick.set_color(_COLOURS[group % len(_COLOURS)])
    axes.tick_params(length=0)


def draw_graph(
    axes: Axes, affinity: Tensor, groups: LabelGroups, relation: Relation = "co", *, edges: int | None = None
) -> None:
    """Draw the labels on a circle, group by group, and the strongest pairs as lines.

    Args:
        axes: Where to draw.
        affinity: (C, C), dense.
        groups: The groups of the C labels.
        relation: Whose groups colour the labels.
        edges: How many pairs; None is twice as many as labels.
    """
    order, assigned = _by_group(groups, relation)
    size = len(order)
    breaks = sum(1 for i in range(size) if assigned[i] != assigned[i - 1])
    step = 2 * math.pi / (size + 1.5 * max(breaks, 1))
    angles: list[float] = []
    for i in range(size):
        angles.append(angles[-1] + step * (2.5 if assigned[i] != assigned[i - 1] else 1) if i else 0.0)
    x, y = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
    ordered = affinity[order][:, order].triu(1)
    best = ordered.flatten().topk(min(2 * size if edges is None else edges, size * size))
    largest = float(best.values[0]) if len(best.values) else 0.0
    for weight, place in reversed(list(zip(best.values.tolist(), best.indices.tolist(), strict=True))):
        if weight <= 0:
            continue
        i, j = divmod(place, size)
        same = assigned[i] == assigned[j]
        colour = _COLOURS[assigned[i] % len(_COLOURS)] if same else "#B0B0B0"
        strength = weight / largest
        axes.plot([x[i], x[j]], [y[i], y[j]], color=colour, linewidth=0.4 + 1.8 * strength, alpha=0.25 + 0.6 * strength)
    axes.scatter(x, y, s=26, c=[_COLOURS[group % len(_COLOURS)] for group in assigned], zorder=3)
    if size <= _NAMED:
        for name, angle, group in zip(_names(groups, order), angles, assigned, strict=True):
            left = math.cos(angle) < 0
            axes.text(
                1.04 * math.cos(angle),
                1.04 * math.sin(angle),
                name,
                rotation=math.degrees(angle) + (180 if left else 0),
                rotation_mode="anchor",
                horizontalalignment="right" if left else "left",
                verticalalignment="center",
                fontsize=7,
                color=_COLOURS[group % len(_COLOURS)],
                parse_math=False,
            )
    axes.set_aspect("equal")
    axes.set_xlim(-1.4, 1.4)
    axes.set_ylim(-1.4, 1.4)
    axes.set_axis_off()
    axes.set_title("strongest pairs; grey between groups", loc="left")


def draw_spectrum(axes: Axes, eigenvalues: Tensor, num_groups: int) -> None:
    """Draw the smallest eigenvalues of the normalised Laplacian, those of the embedding filled."""
    values = eigenvalues.tolist()
    places = range(1, len(values) + 1)
    axes.axvline(num_groups + 0.5, color="#B0B0B0", linewidth=1, linestyle="--")
    axes.plot(places, values, color="#B0B0B0", linewidth=1)
    fill = [_COLOURS[0] if place <= num_groups else "white" for place in places]
    axes.scatter(places, values, s=26, c=fill, edgecolors=_COLOURS[0], zorder=3)
    axes.set_xticks([1, *range(5, len(values) + 1, 5)])
    axes.set_xlabel("number of the eigenvalue")
    axes.set_ylabel("eigenvalue of the normalised Laplacian")
    axes.set_title(f"spectrum, {num_groups} groups", loc="left")


def _strongest(grouping: SpectralLabelGrouping, most: int) -> tuple[Tensor, Tensor]:
    """M⁺ of the labels with the largest affinity in all, dense, and which these are."""
    counts = grouping.counts.counts()
    m = affinity(counts.together.cpu(), counts.known.cpu(), grouping.tau)
    total = m.sum(1).to_dense() if m.is_sparse else m.sum(1)
    shown = (-total).sort(stable=True).indices[:most].sort().values
    part = m.index_select(0, shown).index_select(1, shown)
    return part.to_dense() if part.is_sparse else part, shown


def _part(groups: LabelGroups, shown: Tensor) -> LabelGroups:
    labels = shown.tolist()
    names = tuple(groups.names[i] if groups.names else str(i) for i in labels)
    return LabelGroups(groups.co[shown], groups.dis[shown], names, groups.num_groups)


def _by_group(groups: LabelGroups, relation: Relation) -> tuple[Tensor, list[int]]:
    """The labels, group by group, and the group of each of them."""
    check_choice("relation", relation, RELATIONS)
    assigned = groups.co if relation == "co" else groups.dis
    order = assigned.sort(stable=True).indices
    return order, assigned[order].tolist()


def _names(groups: LabelGroups, order: Tensor) -> list[str]:
    return [groups.names[i] if groups.names else str(i) for i in order.tolist()]
