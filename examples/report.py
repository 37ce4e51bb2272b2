"""What the runs say: means, paired differences, distances between dependencies, tables, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from examples.students import BCE, MLD, Run
from examples.training import SCORES

TERMS = {"mld": "10 MLD", "instance": "instance", "batch": "batch"}


def pair_dependencies(probabilities: np.ndarray) -> np.ndarray:
    """Return the squared differences (..., C, C) of all pairs of (..., C): near 0, two labels come or stay together."""
    return (probabilities[..., :, None] - probabilities[..., None, :]) ** 2


def dependency_distance(first: np.ndarray, second: np.ndarray, *, chunk: int = 256) -> float:
    """Return the mean |difference| of two sets' pair dependencies, over samples and pairs, unknowns (NaN) left out."""
    above_diagonal = np.triu(np.ones((first.shape[1],) * 2, dtype=bool), 1)
    total, count = 0.0, 0
    for start in range(0, len(first), chunk):
        rows = slice(start, start + chunk)
        gaps = np.abs(pair_dependencies(first[rows]) - pair_dependencies(second[rows]))
        gaps = gaps[:, above_diagonal]
        total, count = total + float(np.nansum(gaps)), count + int(np.isfinite(gaps).sum())
    return total / count if count else math.nan


def truth_as_probabilities(targets: np.ndarray) -> np.ndarray:
    """Return the targets with NaN for unknown ones."""
    return np.where(targets < 0, np.nan, targets)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, sample standard deviation and standard error over seeds; one seed knows only its mean."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    error = None if deviation is None else deviation / math.sqrt(len(values))
    return {"mean": float(np.mean(values)), "sd": deviation, "se": error, "seeds": len(values)}


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of every student, in the order given, each sorted by seed."""
    order = list(dict.fromkeys(run.student for run in runs))
    ordered = sorted(runs, key=lambda run: (order.index(run.student), run.seed))
    return {student: list(group) for student, group in groupby(ordered, key=lambda run: run.student)}


def summarise(runs: Sequence[Run], targets: np.ndarray, teacher: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return for every student its scores, what it gains on BCE and on MLD seed by seed, and how its terms weigh.

    Args:
        runs: all runs, every student with the same seeds.
        targets: of the evaluation samples.
        teacher: the teacher's logits on the evaluation samples.
    """
    by_student = group_runs(runs)
    truth, taught = truth_as_probabilities(targets), sigmoid(teacher)
    summary: dict[str, dict[str, Any]] = {}
    for student, own in by_student.items():
        row: dict[str, Any] = {name: mean_and_error([run.curve[-1][name] for run in own]) for name in SCORES}
        for baseline in (BCE.name, MLD.name):
            pairs = list(zip(own, by_student[baseline], strict=True))
            row[f"minus {baseline}"] = {
                name: mean_and_error([run.curve[-1][name] - base.curve[-1][name] for run, base in pairs])
                for name in SCORES
            }
        learnt = [sigmoid(run.logits) for run in own]
        row["dependency distance"] = {
            "to the teacher": mean_and_error([dependency_distance(each, taught) for each in learnt]),
            "to the truth": mean_and_error([dependency_distance(each, truth) for each in learnt]),
        }
        row["gradient norm / BCE"] = {
            stage: {
                term: mean_and_error(
                    [run.gradient_norms[stage][term] / run.gradient_norms[stage]["base"] for run in own]
                )
                for term in TERMS
                if term in own[0].gradient_norms[stage]
            }
            for stage in ("untrained", "trained")
        }
        summary[student] = row
    return summary


def percent(value: dict[str, float | None], spread: str, *, sign: bool = False) -> str:
    """Return the mean and its spread, "sd" or "se", as text in percent."""
    mean = f"{100 * value['mean']:{'+' if sign else ''}.2f}"
    return mean if value[spread] is None else f"{mean} ± {100 * value[spread]:.2f}"


def score_table(summary: dict[str, dict[str, Any]], teacher: dict[str, float], *, title: str, plain: bool) -> Table:
    """Return the scores as a table: mean ± standard deviation, paired differences ± standard error, in percent."""
    table = Table(title=title, box=box.ASCII if plain else box.ROUNDED, title_justify="left")
    table.add_column("student", no_wrap=True)
    for column in (*SCORES, "mAP - BCE", "OF1 - BCE", "CF1 - BCE", "mAP - MLD"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("teacher", *(f"{100 * teacher[name]:.2f}" for name in SCORES), *[""] * 4, end_section=True)
    for student, row in summary.items():
        gains = ["" if student == BCE.name else percent(row["minus BCE"][name], "se", sign=True) for name in SCORES]
        gains.append("" if student in (BCE.name, MLD.name) else percent(row["minus MLD"]["mAP"], "se", sign=True))
        table.add_row(student, *(percent(row[name], "sd") for name in SCORES), *gains)
    return table


def dependency_table(summary: dict[str, dict[str, Any]], *, plain: bool) -> Table:
    """Return how each term pulls on the logits beside BCE, and how far the pair dependencies end from teacher's."""
    table = Table(
        title="gradient norm of each term (BCE = 1, untrained > trained); distance of pair dependencies, %",
        box=box.ASCII if plain else box.ROUNDED,
        title_justify="left",
    )
    table.add_column("student", no_wrap=True)
    for column in (*TERMS.values(), "to the teacher", "to the truth"):
        table.add_column(column, justify="right", no_wrap=True)
    for student, row in summary.items():
        stages = row["gradient norm / BCE"]
        norms = [
            " > ".join(f"{stages[stage][term]['mean']:.2g}" for stage in stages) if term in stages["trained"] else ""
            for term in TERMS
        ]
        distances = [percent(distance, "sd") for distance in row["dependency distance"].values()]
        table.add_row(student, *norms, *distances)
    return table


def verdict(summary: dict[str, dict[str, Any]], *, measure: str = "mAP") -> str:
    """Say in words which MDKD students beat MLD by more than two standard errors of the paired difference."""
    gains = {name: row["minus MLD"][measure] for name, row in summary.items() if name not in (BCE.name, MLD.name)}
    if any(gain["se"] is None for gain in gains.values()):
        return "One seed shows no noise: whether MDKD beats MLD cannot be said. Take --seeds 2 or more."
    lines = {name: f"{name} by {percent(gain, 'se', sign=True)}" for name, gain in gains.items()}
    better = [lines[name] for name, gain in gains.items() if gain["mean"] > 2 * gain["se"]]
    worse = [lines[name] for name, gain in gains.items() if gain["mean"] < -2 * gain["se"]]
    points = f"{measure} points, paired by seed, ± standard error"
    text = (
        f"Better than MLD by more than two standard errors: {'; '.join(better)} ({points})."
        if better
        else f"No MDKD student beats MLD by more than two standard errors: {'; '.join(lines.values())} ({points})."
    )
    if worse:
        text += f" Worse than MLD by as much: {'; '.join(worse)}."
    seeds = summary[MLD.name][measure]["seeds"]
    if seeds < 5:
        text += f" {seeds} seeds are too few to trust a standard error."
    return text


def print_report(console: Console, summary: dict[str, Any], teacher: dict[str, float], *, title: str) -> None:
    """Print both tables and the verdict; plain characters where the output is no terminal."""
    plain = not console.is_terminal
    console.print(score_table(summary, teacher, title=title, plain=plain))
    console.print(dependency_table(summary, plain=plain))
    console.print(verdict(summary), highlight=False, soft_wrap=True)
