"""Many runs side by side, each in one thread: what the programs that compare settings share."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.distill import one_thread
from examples.report import mean_and_error, percent
from examples.train import Settings, load_data, parse_arguments, start
from examples.training import SCORES

Scores = dict[str, dict[str, float]]  # "raw" and "ema", the averaged weights → score → value
Key = TypeVar("Key", bound=Hashable)


def settings_from(arguments: Sequence[str], seed: int, base: Settings) -> Settings:
    """Return the settings of a run: those in common, and what its own command line changes."""
    options, system_options = parse_arguments(["--system", base.system, *arguments])
    changes = {name: getattr(options, name) for name in ("learning_rate", "known", "loss")}
    changes = {name: value for name, value in changes.items() if value is not None}
    return replace(base, seed=seed, linear_head=options.linear_head, system_options=system_options, **changes)


def train_once(settings: Settings) -> tuple[Scores, float]:
    """Train in one thread and return the last epoch's scores, and the seconds that it took."""
    began = time.perf_counter()
    with one_thread():
        training = start(settings, load_data(settings))
        for _ in range(settings.epochs):
            training.train_epoch()
        return training.evaluate(), time.perf_counter() - began


def train_all(jobs: Mapping[Key, Settings], *, workers: int) -> Iterator[tuple[Key, Scores, float]]:
    """Train every job and yield what it is called, its scores and its seconds; ``workers`` changes only how fast."""
    if workers == 1:
        yield from ((key, *train_once(settings)) for key, settings in jobs.items())
        return
    with ProcessPoolExecutor(min(workers, max(len(jobs), 1)), get_context("spawn")) as pool:
        try:
            futures = {pool.submit(train_once, settings): key for key, settings in jobs.items()}
            for future in as_completed(futures):
                yield futures[future], *future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def progress_bar(console: Console) -> Progress:
    """Return a bar for many runs."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def plain_console() -> Console:
    """Return a console that is wide enough for a table where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def summarise(runs: Mapping[str, Mapping[int, Scores]], whole: str) -> dict[str, dict[str, Any]]:
    """Return for every row its scores of the averaged weights, and the difference to row ``whole``, seed by seed.

    Args:
        runs: from row to seed to scores; a difference is of the seeds that both rows have, None if there are none.
        whole: the row that the others are compared with.
    """
    summary = {}
    for row, own in runs.items():
        scores: dict[str, Any] = {name: mean_and_error([run["ema"][name] for run in own.values()]) for name in SCORES}
        both = [seed for seed in own if seed in runs.get(whole, {})]
        gains = [own[seed]["ema"]["mAP"] - runs[whole][seed]["ema"]["mAP"] for seed in both]
        summary[row] = scores | {f"mAP - {whole}": mean_and_error(gains) if gains else None}
    return summary


def table_of(summary: Mapping[str, dict[str, Any]], whole: str, *, title: str, plain: bool) -> Table:
    """Return the summary as a table, in percent."""
    table = Table(title=title, box=box.ASCII if plain else box.ROUNDED, title_justify="left")
    table.add_column("setting", no_wrap=True)
    for name in (*SCORES, f"mAP - {whole}"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, values in summary.items():
        gain = "" if row == whole else percent(values[f"mAP - {whole}"], "se", sign=True)
        table.add_row(row, *(percent(values[name], "sd") for name in SCORES), gain)
    return table
