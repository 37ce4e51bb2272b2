"""Draw what was measured: time and memory against the number of labels and the order, or of active features.

    python -m benchmarks.run --case 'labels-*' 'order-*' --providers naive,vectorized,eager,compile,triton,bce \
        --output benchmarks/results/cpu.jsonl
    python -m benchmarks.plot benchmarks/results/cpu.jsonl --output docs/_static/benchmarks.png
    python -m benchmarks.contrast --output benchmarks/results/contrast-cpu.jsonl
    python -m benchmarks.plot benchmarks/results/contrast-cpu.jsonl --figure contrast --output docs/_static/contrast.png

Drawn are medians, of the latest record where a provider was measured more than once on a case and device. A case that a
provider was not run on is missing: it has no point, and no line crosses the gap.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.report import in_units

Record = Mapping[str, Any]


class Style(NamedTuple):
    """How a provider is named and drawn; the colours are Okabe and Ito's, told apart by the colour-blind."""

    label: str
    colour: str
    marker: str


class Axis(NamedTuple):
    """What a column of panels has below it: the cases that belong to it, and where each of them stands."""

    title: str
    label: str
    belongs: Callable[[Record], bool]
    place: Callable[[Record], float]
    logarithmic: bool


class Picture(NamedTuple):
    """A figure's providers and columns, what its cases are called, and what ends a line early."""

    styles: Mapping[str, Style]
    axes: tuple[Axis, ...]
    cases: str
    gap: str


DEPENDENCY = Picture(
    {
        "naive": Style("literal loops (value only)", "#D55E00", "s"),
        "vectorized": Style("vectorised enumeration", "#E69F00", "D"),
        "eager": Style("closed form", "#0072B2", "o"),
        "compile": Style("closed form, torch.compile", "#56B4E9", "^"),
        "triton": Style("closed form, Triton", "#009E73", "v"),
        "bce": Style("BCE alone", "#4D4D4D", "x"),
    },
    (
        Axis(
            "32 instances, orders 2 to 4",
            "number of labels C",
            lambda r: r["case"].startswith("labels-"),
            lambda r: r["labels"],
            logarithmic=True,
        ),
        Axis(
            "1 instance, 80 labels",
            "order n: labels in a sequence",
            lambda r: r["case"].startswith("order-") and r["labels"] == 80,
            lambda r: r["orders"][0],
            logarithmic=False,
        ),
    ),
    "labels-… or order-…",
    "the sequences are too many to go over",
)

CONTRAST = Picture(
    {
        "materialised": Style("one matrix of similarities", "#E69F00", "D"),
        "pytorch-metric-learning": Style("pytorch-metric-learning", "#D55E00", "s"),
        "ours": Style("streamed (ours)", "#0072B2", "o"),
    },
    (
        Axis(
            "without a bank",
            "number of active features A",
            lambda r: re.fullmatch(r"contrast-\d+", r["case"]) is not None,
            lambda r: r["rows"],
            logarithmic=True,
        ),
        Axis(
            "with a bank of 65,536 keys",
            "number of active features A",
            lambda r: re.fullmatch(r"contrast-\d+-bank", r["case"]) is not None,
            lambda r: r["rows"],
            logarithmic=True,
        ),
    ),
    "contrast-…",
    "the memory allowed did not suffice",
)

PICTURES = {"dependency": DEPENDENCY, "contrast": CONTRAST}


def main(arguments: list[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="files of JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write")
    parser.add_argument("--figure", choices=list(PICTURES), default="dependency", help="what to draw")
    parser.add_argument("--device", help="whose records to draw, by (a part of) its name; default: that with most")
    asked = parser.parse_args(arguments)
    picture = PICTURES[asked.figure]
    records = [json.loads(line) for path in asked.records for line in path.read_text().splitlines()]
    try:
        chosen = of_device([record for record in records if record.get("schema") == 1], asked.device, picture)
    except LookupError as missing:
        parser.error(str(missing))
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    draw(chosen, picture).savefig(asked.output, dpi=200)


def of_device(records: Iterable[Record], name: str | None, picture: Picture = DEPENDENCY) -> list[Record]:
    """Return the records of the device whose name contains ``name``, or of that with most."""
    by_device: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        if any(axis.belongs(record) for axis in picture.axes) and record["provider"] in picture.styles:
            by_device[record["device"]].append(record)
    found = [of_one for device, of_one in by_device.items() if name is None or name.lower() in device.lower()]
    if not found:
        known = ", ".join(by_device) or "none"
        raise LookupError(f"no record of schema 1 of a case {picture.cases} for this device; there are: {known}")
    return max(found, key=len)


def draw(records: list[Record], picture: Picture = DEPENDENCY) -> Figure:
    """Return the figure: a row for time and, where it was measured, one for memory."""
    latest = {(r["case"], r["provider"], r["metric"]): r for r in records}
    rows = ["time", "memory"] if any(metric == "memory" for _, _, metric in latest) else ["time"]
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 0.9 + 2.9 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(rows), len(picture.axes), sharex="col", sharey="row", squeeze=False)
        for quantity, row in zip(rows, panels, strict=True):
            for axis, panel in zip(picture.axes, row, strict=True):
                _draw_panel(panel, axis, picture.styles, quantity, [r for r in latest.values() if axis.belongs(r)])
            row[0].set_ylabel("time, value and gradient" if quantity == "time" else "peak memory beyond the inputs")
        for axis, top, bottom in zip(picture.axes, panels[0], panels[-1], strict=True):
            top.set_title(axis.title, loc="left", fontsize=10.5)
            bottom.set_xlabel(axis.label)
        handles = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
        shown = [handles[style.label] for style in picture.styles.values() if style.label in handles]
        figure.legend(handles=shown, loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel(_caption(records, picture), fontsize=8, color="#555555")
        figure.draw_without_rendering()
    return figure


def _draw_panel(panel: Axes, axis: Axis, styles: Mapping[str, Style], quantity: str, records: list[Record]) -> None:
    """Draw a line for each provider, broken where it has no record of a case that others have one of."""
    places = sorted({axis.place(record) for record in records})
    panel.set_yscale("log")
    if axis.logarithmic:
        panel.set_xscale("log")
    for provider, style in styles.items():
        metric = "memory" if quantity == "memory" else "forward" if provider == "naive" else "both"
        medians = {axis.place(r): r["p50"] for r in records if (r["provider"], r["metric"]) == (provider, metric)}
        if medians:
            values = [medians.get(place, math.nan) for place in places]
            panel.plot(places, values, color=style.colour, marker=style.marker, label=style.label, markersize=5)
    unit = "B" if quantity == "memory" else "s"
    panel.yaxis.set_major_locator(LogLocator(numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(places, [f"{place:,}" for place in places])
    panel.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    panel.set_axisbelow(True)


def _tick(value: float, unit: str) -> str:
    number, unit = in_units(value * (1 + 1e-9), unit).split()
    return f"{float(number):g} {unit}"


def _caption(records: list[Record], picture: Picture) -> str:
    last = records[-1]
    parts = [last["device"]]
    if last["cuda"] is None:
        parts.append(f"{last['threads']} threads")
    parts += [f"PyTorch {last['torch']}", f"mlcorr {last['mlcorr']}"]
    if last["triton"] and any(r["provider"] == "triton" for r in records):
        parts.append(f"Triton {last['triton']}")
    return ", ".join(parts) + f". A line ends where {picture.gap}."


if __name__ == "__main__":
    main()
