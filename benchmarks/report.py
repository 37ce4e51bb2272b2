"""What a run prints: a table for each case, and the ratios that the library is held to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = ("forward", "backward", "both", "memory")

# (case, provider, what it is divided by, metric)
RATIOS = (
    *((f"order-{n}-1x80", "naive", "eager", "forward") for n in (2, 3, 4)),
    *((f"order-{n}-1x80", "vectorized", "eager", "forward") for n in (2, 3, 4)),
    *(
        (case, f"objective{suffix}", f"bce{beside}", "both")
        for case in ("coco-32x80", "256x1000", "openimages-1024x9605")
        for suffix, beside in (("", ""), ("-compile", "-compile"), ("-triton", ""))
    ),
    *(
        (case, provider, "products", "both")
        for case in ("256x1000", "openimages-1024x9605")
        for provider in ("batch", "batch-triton")
    ),
    ("256x1000", "asymmetric", "asymmetric-timm", "both"),
    ("delta-0.25-order-4-1x80", "enumeration-vectorized", "enumeration", "both"),
)


def console_of_run() -> Console:
    """Return where a run prints: as wide as the terminal, and wide enough for every table in a file."""
    return Console() if Console().is_terminal else Console(width=120)


def print_case(console: Console, case: str, records: Iterable[Mapping[str, Any]], notes: Mapping[str, str]) -> None:
    """Print one case: medians with half the distance from p20 to p80, and why other providers have no number."""
    cells: dict[str, dict[str, str]] = {}
    for record in records:
        spread = (record["p80"] - record["p20"]) / (2 * record["p50"]) if record["p50"] else 0.0
        shown = in_units(record["p50"], record["unit"])
        if record["unit"] == "s":
            shown += f" ± {spread:.0%}"
        cells.setdefault(record["provider"], {})[record["metric"]] = shown
    if cells:
        table = Table("provider", title=case, title_justify="left")
        for metric in METRICS:
            table.add_column(metric, justify="right", no_wrap=True)
        for provider, by_metric in cells.items():
            table.add_row(provider, *(by_metric.get(metric, "") for metric in METRICS))
        console.print(table)
    providers: dict[str, list[str]] = {}
    for provider, note in notes.items():
        providers.setdefault(note, []).append(provider)
    for note, names in providers.items():
        console.print(f"{case}: {', '.join(names)} {note}", markup=False, highlight=False, soft_wrap=True)


def print_ratios(console: Console, records: Iterable[Mapping[str, Any]]) -> None:
    """Print those of ``RATIOS`` whose two parts were measured."""
    medians = {(r["case"], r["provider"], r["metric"]): r["p50"] for r in records}
    table = Table("case", "ratio", "metric", title="ratios within this run", title_justify="left")
    table.add_column("value", justify="right")
    for case, above, below, metric in RATIOS:
        if (case, above, metric) in medians and (case, below, metric) in medians:
            value = medians[case, above, metric] / medians[case, below, metric]
            table.add_row(case, f"{above} / {below}", metric, f"{value:,.1f}")
    if table.rows:
        console.print(table)


def in_units(value: float, unit: str) -> str:
    """Return a number of seconds or bytes for a reader: ``in_units(0.0123, "s")`` is "12.3 ms"."""
    prefixes = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: ""} if unit == "B" else {1.0: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n"}
    factor = next((factor for factor in prefixes if value >= factor), min(prefixes))
    scaled = value / factor
    digits = 0 if scaled >= 99.95 or (unit == "B" and factor == 1) else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f} {prefixes[factor]}{unit}"
