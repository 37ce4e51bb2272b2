"""What each part of a system adds: ``python -m examples.ablations`` leaves parts out and prints a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.distill import versions
from examples.report import mean_and_error
from examples.students import default_workers
from examples.systems import SYSTEMS
from examples.train import QUICK, Settings, load_data, parse_arguments, start
from examples.training import SCORES

NUM_SCENES, CANVAS, EPOCHS = (1000, 500, 1000), 32, 15  # little, so that the whole table takes minutes
PRETRAINED = ("--pretrain-epochs", "20")
ROWS: dict[str, dict[str, tuple[str, ...]]] = {  # of each system, one of them the whole by its title
    "oprl": {
        "linear head": ("--linear-head",),
        "OPRL": (),
        "no encoder": ("--no-encoder",),
        "no auxiliary supervision": ("--no-sas",),
        "no purification": ("--no-purification",),
        "messages: none": ("--messages", "none"),
        "messages: co-occurrence": ("--messages", "cooccurrence"),
        "messages: average": ("--messages", "average"),
        "refinement: none": ("--paths", "none"),
        "refinement: representation": ("--paths", "representation"),
        "refinement: category": ("--paths", "category"),
    },
    "sadcl": {
        "linear head": ("--linear-head",),
        "SADCL": (),
        "no encoder": ("--no-encoder",),
        "no contrast": ("--no-s2s", "--no-p2s"),
        "no S2S": ("--no-s2s",),
        "no P2S": ("--no-p2s",),
        "memory: none": ("--bank", "none"),
        "memory: global": ("--bank", "global"),
        "no stage one": ("--stage-one", "0"),
    },
    "mlvpt": {
        "linear probe": ("--linear-head", *PRETRAINED),
        "linear probe, rate 2e-2": ("--linear-head", *PRETRAINED, "--learning-rate", "2e-2"),
        "linear probe, rate 1e-1": ("--linear-head", *PRETRAINED, "--learning-rate", "1e-1"),
        "ML-VPT": PRETRAINED,
        "ML-VPT, rate 1e-2": (*PRETRAINED, "--learning-rate", "1e-2"),
        "random backbone: linear probe, rate 2e-2": ("--linear-head", "--learning-rate", "2e-2"),
        "random backbone: ML-VPT, rate 1e-2": ("--learning-rate", "1e-2"),
    },
}

Runs = dict[str, list[dict[str, dict[str, float]]]]  # row → for every seed: "raw" and "ema" → score → value


def settings_of(row: str, seed: int, base: Settings) -> Settings:
    """Return the settings of a row of the table."""
    options, system_options = parse_arguments(["--system", base.system, *ROWS[base.system][row]])
    rate = options.learning_rate or base.learning_rate
    return replace(base, seed=seed, linear_head=options.linear_head, learning_rate=rate, system_options=system_options)


def train_row(settings: Settings) -> dict[str, dict[str, float]]:
    """Train with one thread and return the last epoch's scores, of the raw and of the averaged weights."""
    torch.set_num_threads(1)
    training = start(settings, load_data(settings))
    for _ in range(settings.epochs):
        training.train_epoch()
    return training.evaluate()


def train_rows(
    rows: Sequence[str], seeds: Sequence[int], base: Settings, *, workers: int
) -> Iterator[tuple[str, int, dict[str, dict[str, float]]]]:
    """Train every row with every seed, and yield row, seed and scores as they come."""
    jobs = list(product(rows, seeds))
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        try:
            futures = {pool.submit(train_row, settings_of(row, seed, base)): (row, seed) for row, seed in jobs}
            for future in as_completed(futures):
                yield *futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def summarise(runs: Runs, whole: str) -> dict[str, dict[str, Any]]:
    """Return for every row its scores of the averaged weights, and the difference to row ``whole``, seed by seed."""
    summary = {}
    for row, own in runs.items():
        scores: dict[str, Any] = {name: mean_and_error([run["ema"][name] for run in own]) for name in SCORES}
        gains = [run["ema"]["mAP"] - other["ema"]["mAP"] for run, other in zip(own, runs[whole], strict=True)]
        summary[row] = scores | {f"mAP - {whole}": mean_and_error(gains)}
    return summary


def table_of(summary: dict[str, dict[str, Any]], whole: str, *, title: str, plain: bool) -> Table:
    """Return the summary as a table, in percent."""

    def percent(value: dict[str, float | None], spread: str, sign: str = "") -> str:
        text = f"{100 * value['mean']:{sign}.2f}"
        return text if value[spread] is None else f"{text} ± {100 * value[spread]:.2f}"

    table = Table(title=title, box=box.ASCII if plain else box.ROUNDED, title_justify="left")
    table.add_column("setting", no_wrap=True)
    for name in (*SCORES, f"mAP - {whole}"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, values in summary.items():
        gain = "" if row == whole else percent(values[f"mAP - {whole}"], "se", "+")
        table.add_row(row, *(percent(values[name], "sd") for name in SCORES), gain)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all rows and print the table."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m examples.ablations", description=__doc__)
    parser.add_argument("--system", choices=ROWS, default="oprl", help="default: %(default)s")
    parser.add_argument("--data", metavar="FILE.npz", help="arrays images and labels (default: scenes of digits)")
    parser.add_argument("--seeds", type=int, default=3, help="runs a row (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, 2 epochs")
    parser.add_argument("--workers", type=int, default=default_workers(torch.device("cpu")), help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    rows, whole = ROWS[options.system], SYSTEMS[options.system].title
    base = Settings(options.system, data=options.data, num_scenes=NUM_SCENES, canvas=CANVAS, epochs=options.epochs)
    base = replace(base, **QUICK) if options.quick else base
    try:
        data = load_data(base)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    runs: Runs = {row: [{}] * options.seeds for row in rows}
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(rows) * options.seeds)
        for row, seed, scores in train_rows(list(rows), range(options.seeds), base, workers=options.workers):
            runs[row][seed] = scores
            progress.update(bar, advance=1, description=f"{row} (mAP {100 * scores['ema']['mAP']:.1f})")

    summary, seconds = summarise(runs, whole), round(time.perf_counter() - started, 1)
    title = f"{data.name}: averaged weights, mean ± sd of {options.seeds} seeds, paired difference ± standard error, %"
    console.print(table_of(summary, whole, title=title, plain=not console.is_terminal))
    options.output.mkdir(parents=True, exist_ok=True)
    results = {"settings": asdict(base), "versions": versions(), "runs": runs, "summary": summary, "seconds": seconds}
    text = json.dumps(results, indent=1, allow_nan=False)
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    console.print(f"results.json is in {options.output}, made in {seconds:.0f} s", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
