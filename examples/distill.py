"""Distil a small student from a large teacher, with and without label dependencies: ``python -m examples.distill``."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import mlcorr
from examples.data import NUM_SCENES, Dataset, digit_scenes, load_npz
from examples.figures import draw_dependencies, draw_learning_curves
from examples.models import count_parameters, make_student, make_teacher
from examples.report import group_runs, print_report, summarise, verdict
from examples.students import STUDENTS, Run, Task, default_workers, run_students
from examples.training import Recipe, predict, score, train
from mlcorr import BinaryCrossEntropyLoss


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result."""

    data: str | None = None
    evaluate_on: str = "test"
    num_scenes: tuple[int, int, int] = NUM_SCENES
    seed: int = 0  # of the data and the teacher
    seeds: int = 5  # students a row
    updates: int = 900  # of the weights, where epochs are not given
    epochs: int | None = None
    batch_size: int = 64
    teacher_learning_rate: float = 2e-3
    student_learning_rate: float = 5e-3


QUICK = {"num_scenes": (1000, 400, 400), "seeds": 2, "updates": 150}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m examples.distill", description=__doc__)
    parser.add_argument("--data", metavar="FILE.npz", help="arrays labels, and features or images (default: digits)")
    parser.add_argument("--seeds", type=int, help="students a row, trained from different seeds (default: 5)")
    parser.add_argument("--epochs", type=int, help="of teacher and students (default: about 900 updates)")
    parser.add_argument("--seed", type=int, help="of the data and the teacher (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: less data, 2 seeds, fewer updates")
    parser.add_argument("--evaluate-on", choices=("test", "validation"), help="validation: to choose by the scores")
    parser.add_argument("--output", type=Path, default=Path("runs/distill"), help="folder (default: %(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="processes to train students in (default: one a core)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    return options


def make_settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the options ask for."""
    names = ("data", "seeds", "epochs", "seed", "evaluate_on")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Settings(**{**(QUICK if options.quick else {}), **given})


def load_data(settings: Settings) -> Dataset:
    """Return the data to learn from and to be judged by."""
    if settings.data is not None:
        data = load_npz(settings.data, seed=settings.seed, evaluate_on=settings.evaluate_on)
        if len(data.label_names) < 4:
            raise ValueError(f"{settings.data}: labels: expected at least 4 for sequences of 4 labels")
        return data
    return digit_scenes(seed=settings.seed, evaluate_on=settings.evaluate_on, num_scenes=settings.num_scenes)


@dataclass(frozen=True)
class Outcome:
    """The trained teacher's logits and scores after every epoch, and every student's run."""

    teacher_curve: list[dict[str, float]]
    teacher_train_logits: Tensor
    teacher_logits: Tensor
    runs: list[Run]


def train_everybody(data: Dataset, settings: Settings, *, epochs: int, workers: int, console: Console) -> Outcome:
    """Train the teacher with BCE, let it judge the training samples once, and train all students on that."""
    torch.manual_seed(settings.seed)
    teacher = make_teacher(data.train.inputs, len(data.label_names)).to(data.train.targets.device)
    bce = BinaryCrossEntropyLoss()
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("teacher, epochs", total=epochs)

        def advance(scores: dict[str, float]) -> None:
            progress.update(bar, advance=1, description=f"teacher, epochs (mAP {100 * scores['mAP']:.1f})")

        curve = train(
            teacher,
            lambda logits, _, target: bce(logits, target),
            data.train,
            data.evaluation,
            recipe=Recipe(epochs, settings.batch_size, settings.teacher_learning_rate),
            seed=settings.seed,
            on_epoch=advance,
        )
        train_logits = predict(teacher, data.train.inputs)

        task = Task(data, train_logits, Recipe(epochs, settings.batch_size, settings.student_learning_rate))
        seeds = range(settings.seed, settings.seed + settings.seeds)
        bar = progress.add_task("students", total=len(STUDENTS) * len(seeds))
        runs = []
        for run in run_students(STUDENTS, seeds, task, workers=workers):
            runs.append(run)
            progress.update(bar, advance=1, description=f"students (latest mAP {100 * run.curve[-1]['mAP']:.1f})")
    order = [student.name for student in STUDENTS]
    runs.sort(key=lambda run: (order.index(run.student), run.seed))
    return Outcome(curve, train_logits, predict(teacher, data.evaluation.inputs), runs)


def describe(data: Dataset, settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> dict[str, Any]:
    """Return all that ``results.json`` holds, but for the time it took."""
    return {
        "settings": asdict(settings),
        "versions": versions(),
        "data": {
            "name": data.name,
            "label_names": data.label_names,
            "train": len(data.train),
            settings.evaluate_on: len(data.evaluation),
        },
        "parameters": parameters(data),
        "teacher": {
            "scores": outcome.teacher_curve[-1],
            "scores on its training samples": score(outcome.teacher_train_logits, data.train.targets),
            "curve": outcome.teacher_curve,
        },
        "runs": {
            student: {
                str(run.seed): {"scores": run.curve[-1], "curve": run.curve, "gradient norms": run.gradient_norms}
                for run in own
            }
            for student, own in group_runs(outcome.runs).items()
        },
        "summary": summary,
        "verdict": verdict(summary),
    }


def parameters(data: Dataset) -> dict[str, int]:
    """Return how many parameters teacher and student have on this data."""
    shape = data.train.inputs, len(data.label_names)
    return {"teacher": count_parameters(make_teacher(*shape)), "student": count_parameters(make_student(*shape))}


def versions() -> dict[str, str]:
    """Return what the numbers were made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "mlcorr": mlcorr.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: networks this small gain little from more, and the result no longer depends on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    started = time.perf_counter()
    options = parse_arguments(arguments)
    settings = make_settings(options)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)

    try:
        data = load_data(settings)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    epochs = settings.epochs or math.ceil(settings.updates / max(1, len(data.train) // settings.batch_size))
    settings = replace(settings, epochs=epochs)
    positives = float(data.train.targets.clamp(min=0).sum(1).mean())
    sizes = parameters(data)
    console.print(
        f"{data.name}: {len(data.train)} samples to train on, {len(data.evaluation)} for {settings.evaluate_on}, "
        f"{len(data.label_names)} labels, {positives:.2f} positive a sample\n"
        f"teacher {sizes['teacher']:,} parameters, students {sizes['student']:,}; {epochs} epochs",
        highlight=False,
        soft_wrap=True,
    )

    with one_thread():
        outcome = train_everybody(
            data.to(options.device),
            settings,
            epochs=epochs,
            workers=options.workers or default_workers(options.device),
            console=console,
        )

    targets, teacher = data.evaluation.targets.numpy(), outcome.teacher_logits.cpu().numpy()
    summary = summarise(outcome.runs, targets, teacher)
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    draw_learning_curves(
        outcome.runs, outcome.teacher_curve, folder / "learning_curves.png", split=settings.evaluate_on
    )
    draw_dependencies(outcome.runs, teacher, targets, data.evaluation.inputs.numpy(), data.label_names, folder)

    seconds = round(time.perf_counter() - started, 1)
    results = describe(data, settings, outcome, summary) | {"seconds": seconds}
    text = json.dumps(results, indent=1, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    title = f"{data.name}, {settings.evaluate_on}: mean ± sd of {settings.seeds} seeds, differences ± standard error, %"
    print_report(console, summary, outcome.teacher_curve[-1], title=title)
    console.print(
        f"results.json and pictures are in {folder}, made in {seconds:.0f} s", highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
