"""How the grouping of labels grows with their number: time and peak memory, from a hundred labels to a million.

    python -m benchmarks.grouping --output benchmarks/results/grouping-cpu.jsonl --figure docs/_static/grouping.png

Targets come in sparse batches from planted groups: 10 positives a label, 5 in a row, one in ten of them astray. Each
number of labels has a process of its own, whose peak of memory is that of everything: Python, PyTorch, targets, counts,
affinity, solvers. Times are those of counting, of the affinity (counts to M⁺), and of either relation's groups; ``all``
is everything from the first row to the groups, the drawing of the targets included, but not the import of libraries.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import quantiles
from benchmarks.planted import planted_groups, planted_targets
from benchmarks.report import console_of_run, in_units
from benchmarks.run import SCHEMA, describe
from mlcorr.grouping import SpectralLabelGrouping, spectral

SIZES = (100, 1000, 10_000, 100_000, 1_000_000)
GROUPS, POSITIVES, LABELS_PER_ROW, NOISE = 5, 10, 5, 0.1
_WARM = 20
PHASES = {
    "counting": ("counting, streamed", "#E69F00", "D"),
    "affinity": ("affinity from the counts", "#56B4E9", "^"),
    "co": ("co-occurrence groups", "#0072B2", "o"),
    "dis": ("dis-occurrence groups", "#009E73", "v"),
    "all": ("everything", "#4D4D4D", "x"),
}


def measure(num_labels: int, positives: int = POSITIVES) -> dict[str, float]:
    """Return seconds of each phase, the peak of memory in bytes, and how many labels are where they were planted."""
    if num_labels > _WARM:
        measure(_WARM)  # what is imported at the first call is no part of it
    start = time.perf_counter()
    hidden = planted_groups(num_labels, GROUPS)
    grouping = SpectralLabelGrouping(num_labels, GROUPS)
    rows, counting = num_labels * positives // LABELS_PER_ROW, 0.0
    for targets in planted_targets(hidden, rows, labels_per_row=LABELS_PER_ROW, noise=NOISE):
        before = time.perf_counter()
        grouping.update(targets)
        counting += time.perf_counter() - before
    seconds: dict[str, float] = {"counting": counting}
    original = spectral.partition

    def timed(operator: Any, *args: Any, **kwargs: Any) -> Any:
        before = time.perf_counter()
        result = original(operator, *args, **kwargs)
        seconds[operator.relation] = time.perf_counter() - before
        return result

    before = time.perf_counter()
    spectral.partition = timed
    try:
        groups = grouping.fit()
    finally:
        spectral.partition = original
    now = time.perf_counter()
    seconds["affinity"] = now - before - seconds["co"] - seconds["dis"]
    seconds["all"] = now - start
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return seconds | {
        "memory": float(peak),
        "agreement": agreement(groups.co, hidden),
        "ncut_co": groups.ncut_co,
        "ncut_dis": groups.ncut_dis,
    }


def agreement(found: Tensor, hidden: Tensor) -> float:
    """Return the share of labels in groups that are their hidden group's own."""
    table = torch.zeros(int(found.max()) + 1, int(hidden.max()) + 1, dtype=torch.int64)
    table.index_put_((found, hidden), torch.ones_like(found), accumulate=True)
    return float(table.amax(1).sum()) / len(found)


def in_own_process(num_labels: int) -> dict[str, float]:
    """Return what ``measure`` gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grouping", "--measure", str(num_labels)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if run.returncode:
        raise RuntimeError(run.stderr)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def records_of(num_labels: int, runs: list[dict[str, float]]) -> list[dict[str, object]]:
    """Return a record for each phase, and one for memory."""
    machine = describe(torch.device("cpu"))
    rows = num_labels * POSITIVES // LABELS_PER_ROW
    fit = {key: runs[-1][key] for key in ("agreement", "ncut_co", "ncut_dis")}
    return [
        {
            "schema": SCHEMA, **machine, "case": f"grouping-{num_labels}", "rows": rows, "labels": num_labels,
            "orders": [], "delta": None, "provider": "all" if phase == "memory" else phase, "quantity": "grouping",
            "metric": "memory" if phase == "memory" else "forward", "unit": "B" if phase == "memory" else "s",
            "p20": p20, "p50": p50, "p80": p80, **fit,
        }
        for phase in (*PHASES, "memory")
        for p20, p50, p80 in [quantiles([run[phase] for run in runs])]
    ]  # fmt: skip


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against the number of labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(9, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for phase, (label, colour, marker) in PHASES.items():
        for axes, metric in ((left, "forward"), (right, "memory")):
            chosen = {r["labels"]: r["p50"] for r in records if (r["provider"], r["metric"]) == (phase, metric)}
            if chosen:
                name = label if metric == "forward" else None
                axes.plot(
                    sorted(chosen),
                    [chosen[c] for c in sorted(chosen)],
                    color=colour,
                    marker=marker,
                    label=name,
                    markersize=5,
                )
    for axes, unit, title in ((left, "s", "time"), (right, "B", "peak memory of the process")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set_xlabel("number of labels C")
        axes.grid(color="#E5E5E5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: in_units(value * (1 + 1e-9), unit)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    last = records[-1]
    text = f"{last['device']}, {last['threads']} threads, PyTorch {last['torch']}, mlcorr {last['mlcorr']}. "
    text += f"{POSITIVES} positives a label, {GROUPS} groups, both relations."
    figure.supxlabel(text, fontsize=8, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def main(arguments: list[str] | None = None) -> None:
    """Measure every size, print a table, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=list(SIZES), help="numbers of labels")
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes for each number up to 10,000; above it is one"
    )
    parser.add_argument("--output", type=Path, help="append the measurements as JSON lines")
    parser.add_argument("--figure", type=Path, help="the picture to write")
    parser.add_argument("--measure", type=int, metavar="C", help="measure one number in this process, and print JSON")
    asked = parser.parse_args(arguments)
    if asked.measure:
        print(json.dumps(measure(asked.measure)))
        return
    console, everything = console_of_run(), []
    for num_labels in asked.labels:
        runs = [in_own_process(num_labels) for _ in range(asked.repeats if num_labels <= 10_000 else 1)]
        records = records_of(num_labels, runs)
        everything += records
        shown = [f"{r['provider']} {in_units(r['p50'], r['unit'])}" for r in records]
        fit = runs[-1]
        console.print(f"{num_labels:>9,} labels: {', '.join(shown)}", highlight=False, soft_wrap=True)
        console.print(f"{'':>18}{fit['agreement']:.5f} of the labels in their planted groups", highlight=False)
        if asked.output:
            asked.output.parent.mkdir(parents=True, exist_ok=True)
            with asked.output.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
    if asked.figure:
        if asked.output:  # what was measured before too
            everything = [json.loads(line) for line in asked.output.read_text().splitlines()]
        draw(everything, asked.figure)


if __name__ == "__main__":
    main()
