"""Train a whole system: ``python -m examples.train --system oprl``, ``sadcl``, ``mlvpt`` or ``latent_context``."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from examples.augment import Augmentation, unchanged
from examples.checkpoint import load_checkpoint, save_checkpoint
from examples.data import Dataset, digit_scenes, keep_known, load_npz
from examples.distill import versions
from examples.fit import REPORT, Recipe, Training
from examples.models import count_parameters
from examples.partial_losses import EPOCH_DEPENDENT, LOSSES
from examples.systems import SYSTEMS, build_linear_head, has_images, tell_epoch
from examples.training import SCORES

CHECKPOINT, LOG, RESULTS = "checkpoint.pt", "log.jsonl", "results.json"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result. A run can only be resumed with the settings it began with."""

    system: str
    system_options: dict[str, Any] = field(default_factory=dict)
    linear_head: bool = False
    loss: str | None = None
    data: str | None = None
    evaluate_on: str = "test"
    known: float = 1.0
    num_scenes: tuple[int, int, int] = (2000, 600, 600)
    canvas: int = 40
    seed: int = 0
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.2
    shift: float = 0.1
    erase: float = 0.25
    amp: bool = False


QUICK = {"num_scenes": (192, 64, 64), "canvas": 32, "epochs": 2, "batch_size": 32}


def fraction(text: str) -> float:
    """Return a number in (0, 1] from the command line."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1], got {text}")
    return number


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the command line's options, and apart from them those of the system alone."""
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--system", choices=SYSTEMS, required=True, help="what to train; decides the last group here")
    parser = argparse.ArgumentParser(prog="python -m examples.train", description=__doc__, parents=[choice])
    parser.add_argument("--linear-head", action="store_true", help="instead a linear layer on the same backbone")
    text = "of the linear head, for labels that may be unknown (default: the system's own)"
    parser.add_argument("--loss", choices=LOSSES, help=text)
    text = "arrays images, or features, and labels (default: scenes of digits)"
    parser.add_argument("--data", metavar="FILE.npz", help=text)
    text = "share of the training labels that are known; the others, by chance, are unknown (default: 1)"
    parser.add_argument("--known", type=fraction, metavar="F", help=text)
    parser.add_argument("--evaluate-on", choices=("test", "validation"), help="validation: to choose by the scores")
    parser.add_argument("--canvas", type=int, help="pixels a side of the digit scenes (default: 40)")
    parser.add_argument("--epochs", type=int, help="default: 12")
    parser.add_argument("--batch-size", type=int, help="default: 64")
    parser.add_argument("--learning-rate", type=float, help="the highest of the cycle (default: 2e-3)")
    parser.add_argument("--shift", type=float, help="augmentation: share of the side (default: 0.1)")
    parser.add_argument("--erase", type=float, help="augmentation: side of the square erased (default: 0.25)")
    parser.add_argument("--seed", type=int, help="of data, first weights and order (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, 2 epochs")
    parser.add_argument("--amp", action="store_true", default=None, help="bfloat16 where autocast thinks it safe")
    parser.add_argument("--compile", action="store_true", help="compile the forward pass; needs a C++ compiler")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder (default: runs/SYSTEM)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--stop-after", type=int, metavar="EPOCH", help="end early, to be resumed")
    known, _ = choice.parse_known_args(arguments)
    own = parser.add_argument_group(SYSTEMS[known.system].title)
    SYSTEMS[known.system].add_options(own)
    options = parser.parse_args(arguments)
    for name in ("epochs", "batch_size", "stop_after"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    if options.loss is not None and not options.linear_head:
        parser.error("--loss: expected with --linear-head alone; a system has its own objective")
    names = [action.dest for action in own._group_actions]
    return options, {name: getattr(options, name) for name in names}


def make_settings(options: argparse.Namespace, system_options: dict[str, Any]) -> Settings:
    """Return the settings that the options ask for."""
    names = [name for name in Settings.__dataclass_fields__ if getattr(options, name, None) is not None]
    given = {name: getattr(options, name) for name in names}
    return Settings(system_options=system_options, **{**(QUICK if options.quick else {}), **given})


def load_data(settings: Settings) -> Dataset:
    """Return the samples to learn from, of which some labels may be unknown, and those to be judged by."""
    if settings.data is None:
        data = digit_scenes(
            seed=settings.seed,
            evaluate_on=settings.evaluate_on,
            num_scenes=settings.num_scenes,
            canvas=settings.canvas,
        )
    else:
        data = load_npz(settings.data, seed=settings.seed, evaluate_on=settings.evaluate_on)
    system = SYSTEMS[settings.system]
    if not system.takes_features and not has_images(data):
        raise ValueError(
            f"{settings.data}: features: {system.title} learns from an array 'images' (samples, height, width, …)"
        )
    return keep_known(data, settings.known, seed=settings.seed)


def build(settings: Settings, data: Dataset) -> nn.Module:
    """Return the model with its first weights, which the seed decides, where ``data`` lies."""
    torch.manual_seed(settings.seed)
    system = SYSTEMS[settings.system]
    make = system.build
    if settings.linear_head:
        make = partial(build_linear_head, system=system, loss=settings.loss)
    model = make(data, options={**settings.system_options, "seed": settings.seed})
    return model.to(data.train.targets.device)


def start(settings: Settings, data: Dataset, *, compiled: bool = False) -> Training:
    """Return an untrained system, ready to train on ``data``, which lies on the device to train on."""
    system, model = SYSTEMS[settings.system], build(settings, data)
    if settings.linear_head:
        hooks = {"before_epoch": tell_epoch} if isinstance(model.loss, EPOCH_DEPENDENT) else {}
    else:
        prepare = partial(system.before_epoch, settings.system_options) if system.before_epoch else None
        hooks = {
            "before_epoch": prepare,
            "not_averaged": system.not_averaged,
            "takes_targets": system.takes_targets,
        }
    # A mirrored digit is another sign; a mirrored photograph is a photograph.
    images = Augmentation(settings.shift, settings.erase, mirror=settings.data is not None)
    recipe = Recipe(
        settings.epochs,
        settings.batch_size,
        settings.learning_rate,
        settings.weight_decay,
        settings.warm_up,
        images if has_images(data) else unchanged,
    )
    return Training(model, data, recipe, seed=settings.seed, amp=settings.amp, compiled=compiled, **hooks)


def resume(training: Training, settings: Settings, path: Path) -> None:
    """Go on where the checkpoint was written, if it belongs to the same settings."""
    state = load_checkpoint(path)
    if not {"settings", "data", "training"} <= state.keys():
        raise ValueError(f"{path}: expected a checkpoint of this program, found {sorted(map(str, state))}")
    before, now = json.loads(state["settings"]), json.loads(as_json(settings))
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        name = changed[0]
        raise ValueError(f"{path}: {', '.join(changed)} changed ({name}: {before.get(name)} then, {now.get(name)} now)")
    if state["data"] != fingerprint(training.data):
        raise ValueError(f"{path}: the data are not those that the run began with")
    training.load_state_dict(state["training"])


def fingerprint(data: Dataset) -> str:
    """Return what tells these data from others."""
    digest = hashlib.sha256()
    for split in (data.train, data.evaluation):
        for tensor in (split.inputs, split.targets):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def as_json(settings: Settings) -> str:
    """Return the settings as text, so that those of a checkpoint can be compared."""
    return json.dumps(asdict(settings), sort_keys=True)


def write_log(training: Training, path: Path) -> None:
    """Write a line of JSON for every epoch so far."""
    path.write_text("".join(json.dumps(epoch) + "\n" for epoch in training.history), encoding="utf-8")


def describe(training: Training, settings: Settings) -> str:
    """Return in a sentence what the run is."""
    data = training.data
    title = SYSTEMS[settings.system].title
    if settings.linear_head:
        title = "linear head" if settings.loss is None else f"linear head with the loss {settings.loss}"
    known = float((data.train.targets >= 0).double().mean())
    part = f", {100 * known:.3g} % of their labels known" if known < 1 else ""
    numbers = count(training.model)
    frozen = f", and {numbers['frozen']:,} that are frozen" if numbers["frozen"] else ""
    return (
        f"{title} on {data.name}: {len(data.train)} {'images' if has_images(data) else 'samples'} to train on{part}, "
        f"{len(data.evaluation)} for {settings.evaluate_on}, {len(data.label_names)} labels; "
        f"{numbers['all']:,} parameters, {numbers['backbone']:,} of them in the backbone{frozen}"
    )


def count(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters that learn, of those in the backbone among them, and of frozen ones."""
    learned = count_parameters(model)
    frozen = sum(each.numel() for each in model.parameters()) - learned
    return {"all": learned, "backbone": count_parameters(model.backbone), "frozen": frozen}


def print_header(console: Console) -> None:
    """Print the head of the table of epochs."""
    names = "".join(f"{name:>8}" for name in SCORES)
    console.print(f"{'':16}{'raw weights':>24}{'their average':>24}", highlight=False)
    console.print(f"epoch       loss{names}{names}", highlight=False)


def print_epoch(console: Console, epoch: dict[str, Any]) -> None:
    """Print a row of the table of epochs, scores in percent."""
    scores = "".join(f"{100 * epoch[weights][name]:8.2f}" for weights in ("raw", "ema") for name in SCORES)
    console.print(f"{epoch['epoch']:5d}{epoch['loss']:11.4f}{scores}", highlight=False)


def print_report(console: Console, report: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print all scores of the last epoch, by both rules of prediction, in percent."""
    names = {"raw": "raw weights", "ema": "their average"}
    rules = {"threshold": "p > 0.5", "prevalence": "as often as in training"}
    console.print(f"{'':40}" + "".join(f"{name:>8}" for name in REPORT), highlight=False)
    for weights, by_rule in report.items():
        for rule, scores in by_rule.items():
            values = "".join(f"{100 * scores[name]:8.2f}" for name in REPORT)
            console.print(f"{names[weights]:15}{rules[rule]:25}{values}", highlight=False)


def run(training: Training, settings: Settings, folder: Path, console: Console, *, last: int) -> None:
    """Train up to epoch ``last``; after every epoch there is a checkpoint and a line of the log."""
    data = fingerprint(training.data)
    print_header(console)
    for epoch in training.history:
        print_epoch(console, epoch)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        epochs = progress.add_task("epochs", total=settings.epochs, completed=len(training.history))
        batches = progress.add_task("batches", total=training.batches)
        while len(training.history) < last:
            progress.reset(batches)
            epoch = training.run_epoch(lambda: progress.advance(batches))
            state = {"settings": as_json(settings), "data": data, "training": training.state_dict()}
            save_checkpoint(state, folder / CHECKPOINT)
            write_log(training, folder / LOG)
            print_epoch(progress.console, epoch)
            progress.advance(epochs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write checkpoint, log, results and pictures."""
    started = time.perf_counter()
    options, system_options = parse_arguments(arguments)
    settings = make_settings(options, system_options)
    folder = options.output or Path("runs") / settings.system
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    try:
        data = load_data(settings).to(options.device)
        training = start(settings, data, compiled=options.compile)
        folder.mkdir(parents=True, exist_ok=True)
        if options.resume:
            resume(training, settings, folder / CHECKPOINT)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error

    console.print(describe(training, settings), highlight=False, soft_wrap=True)
    last = min(options.stop_after or settings.epochs, settings.epochs)
    run(training, settings, folder, console, last=last)
    if last < settings.epochs:
        console.print(f"stopped after epoch {last}; --resume goes on", highlight=False)
        return

    if not settings.linear_head:
        left_out = SYSTEMS[settings.system].draw(training.average.module, build(settings, data), data, folder)
        if left_out:
            console.print(f"not drawn, since there are no images: {', '.join(left_out)}", highlight=False)
    report = training.report()
    print_report(console, report)
    seconds = round(time.perf_counter() - started, 1)
    results = {
        "settings": asdict(settings),
        "versions": versions(),
        "parameters": count(training.model),
        "scores": {weights: training.history[-1][weights] for weights in ("raw", "ema")},
        "report": report,
        "seconds": seconds,
    }
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"log, results, checkpoint and pictures are in {folder}, {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
