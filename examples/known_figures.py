"""The picture of `examples.known_fractions`: mAP against the share of known labels, a panel a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from examples.figures import COLOURS, STYLE

MARKERS = "osD^vPX"
ORDER = (0, 3, 5, 4, 6, 2, 1)  # of the colours: neighbours that are far apart


def draw_known_fractions(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the mean over seeds of every method's mAP, of the averaged weights, and a band of ± standard deviation.

    Args:
        results: what `examples.known_fractions` wrote, one of each data set.
        path: of the picture.
    """
    methods = list(dict.fromkeys(method for each in results for method in each["summary"]))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(results), figsize=(1 + 4.2 * len(results), 4), layout="constrained", squeeze=False
        )
        for axes, each in zip(grid[0], results, strict=True):
            for place, method in enumerate(methods):
                points = each["summary"].get(method, {})
                shares = sorted(points, key=float)
                mean = [100 * points[share]["mAP"]["mean"] for share in shares]
                spread = [100 * (points[share]["mAP"]["sd"] or 0) for share in shares]
                style = {"color": COLOURS[ORDER[place % len(ORDER)]], "label": method}
                x = [100 * float(share) for share in shares]
                axes.plot(x, mean, marker=MARKERS[place % len(MARKERS)], ms=4, **style)
                low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
            seeds = {point["mAP"]["seeds"] for points in each["summary"].values() for point in points.values()}
            number = "–".join(str(count) for count in sorted({min(seeds), max(seeds)}))
            axes.set(
                title=f"{each['data']}: {number} seed{'' if seeds == {1} else 's'}, {each['settings']['evaluate_on']}",
                xlabel="known training labels, %",
                xlim=(0, 104),
            )
        grid[0, 0].set_ylabel("mAP, % (mean ± standard deviation)")
        grid[0, 0].legend(loc="lower right")
        figure.savefig(path, dpi=150)
        plt.close(figure)
