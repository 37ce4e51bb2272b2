"""What each treatment of unknown labels costs: ``python -m examples.known_fractions`` hides more and more of them.

Every method learns from the same samples, with the same labels known, on the same backbone, in as many updates. What is
finished stands in ``results.json`` after every run; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from examples.ablations import CANVAS, EPOCHS, NUM_SCENES
from examples.comparison import plain_console, progress_bar, settings_from, summarise, train_all
from examples.data import Dataset
from examples.distill import versions
from examples.known_figures import draw_known_fractions
from examples.report import percent
from examples.students import default_workers
from examples.systems import has_images
from examples.train import QUICK, Settings, fingerprint, fraction, load_data

FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
BASELINE = "BCE-ignore"
METHODS: dict[str, tuple[str, ...]] = {
    BASELINE: ("--linear-head", "--loss", "ignore"),
    "assume negative": ("--linear-head", "--loss", "assume_negative"),
    "ASL": ("--linear-head", "--loss", "asymmetric"),
    "latent context": (),
}
# Chosen by the mAP on validation samples of one seed, the mean of a tenth and of all of the labels known: of scenes of
# digits, among 2e-3, 5e-3, 1e-2 and 2e-2 (latent context: 2e-3, 5e-3), and of yeast genes, among 5e-4, 1e-3 and 2e-3.
RATES = {
    "images": {BASELINE: 1e-2, "assume negative": 5e-3, "ASL": 1e-2, "latent context": 2e-3},
    "features": {BASELINE: 5e-4, "assume negative": 1e-3, "ASL": 5e-4, "latent context": 2e-3},
}
RESULTS, FIGURE = "results.json", "known_fractions.png"

Results = dict[str, Any]  # what results.json holds
Job = tuple[str, float, int]  # method, share of known labels, seed


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    text = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m examples.known_fractions", description=text)
    text = "arrays images, or features, and labels (default: scenes of digits)"
    parser.add_argument("--data", metavar="FILE.npz", help=text)
    text = "validation: to choose by the scores (default: %(default)s)"
    parser.add_argument("--evaluate-on", choices=("test", "validation"), default="test", help=text)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    text = "shares of known labels (default: %(default)s)"
    parser.add_argument("--fractions", nargs="+", type=fraction, default=list(FRACTIONS), metavar="F", help=text)
    parser.add_argument("--learning-rate", type=float, help="of all methods (default: of each its own)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method and share (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, 2 epochs")
    parser.add_argument("--workers", type=int, default=default_workers(torch.device("cpu")), help="processes")
    parser.add_argument("--fresh", action="store_true", help="begin anew where there are results")
    output = Path("runs/known_fractions")
    parser.add_argument("--output", type=Path, default=output, help="folder (default: %(default)s)")
    text = "train nothing; draw these results side by side"
    parser.add_argument("--draw", nargs="+", type=Path, metavar="RESULTS.json", help=text)
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help=f"picture (default: OUTPUT/{FIGURE})")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    return options


def settings_of(job: Job, base: Settings, rates: dict[str, float]) -> Settings:
    """Return the settings of a run, with the learning rate of its method."""
    method, known, seed = job
    return replace(settings_from((*METHODS[method], "--known", str(known)), seed, base), learning_rate=rates[method])


def plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON would give them back."""
    return json.loads(json.dumps(asdict(settings)))


def read(path: Path) -> Results:
    """Return the results of a file."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    missing = {"settings", "versions", "data", "fingerprint", "runs", "summary"} - set(results)
    if missing:
        raise ValueError(f"{path}: no results of this program: no {', '.join(sorted(missing))}")
    return results


def write(results: Results, path: Path) -> None:
    """Write the results, which are whole or as they were if this is interrupted, with their summary."""
    results["runs"].sort(key=lambda run: (list(METHODS).index(run["method"]), run["known"], run["seed"]))
    results["summary"] = summary_of(results["runs"])
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def summary_of(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return method → share of known labels → scores, and the difference to the baseline, seed by seed."""
    summary: dict[str, dict[str, Any]] = {}
    for known in sorted({run["known"] for run in runs}):
        scores: dict[str, dict[int, Any]] = {}
        for run in runs:
            if run["known"] == known:
                scores.setdefault(run["method"], {})[run["seed"]] = run["scores"]
        for method, values in summarise(scores, BASELINE).items():
            summary.setdefault(method, {})[str(known)] = values
    return {method: summary[method] for method in METHODS if method in summary}


def begin(path: Path, base: Settings, data: Dataset, wanted: dict[Job, Settings], *, fresh: bool) -> Results:
    """Return the results so far, empty ones if there are none.

    Raises:
        ValueError: Those that there are were made otherwise.
    """
    common = {"settings": plain(base), "versions": versions(), "fingerprint": fingerprint(data), "data": data.name}
    if fresh or not path.exists():
        return common | {"runs": [], "summary": {}}
    results = read(path)
    changed = [name for name, value in common.items() if results[name] != value]
    for run in results["runs"]:
        job = (run["method"], run["known"], run["seed"])
        if run["method"] not in METHODS or (job in wanted and run["settings"] != plain(wanted[job])):
            changed.append(f"the settings of {run['method']}")
            break
    if changed:
        raise ValueError(f"{path}: made with other {', '.join(changed)}; --fresh begins anew, or take another --output")
    return results


def tables(summary: dict[str, dict[str, Any]], *, title: str, plain: bool) -> list[Table]:
    """Return mAP, and its difference to the baseline, of every method by share of known labels, in percent."""
    shares = sorted({share for points in summary.values() for share in points}, key=float)
    parts = {f"{title}: mAP, mean ± sd, %": ("mAP", "sd", False)}
    gain = f"mAP - {BASELINE}"
    parts[f"{gain}, paired by seed, ± standard error, %"] = (gain, "se", True)
    found = []
    for heading, (name, spread, sign) in parts.items():
        table = Table(title=heading, box=box.ASCII if plain else box.ROUNDED, title_justify="left")
        table.add_column("known labels", no_wrap=True)
        for share in shares:
            table.add_column(f"{100 * float(share):.3g} %", justify="right", no_wrap=True)
        for method, points in summary.items():
            values = [points.get(share, {}).get(name) for share in shares]
            if not (sign and method == BASELINE):
                table.add_row(method, *(percent(value, spread, sign=sign) if value else "" for value in values))
        found.append(table)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not there yet, write results and picture, print tables; or draw several results."""
    options = parse_arguments(arguments)
    console = plain_console()
    path, figure = options.output / RESULTS, options.figure or options.output / FIGURE
    base = Settings(
        "latent_context",
        data=options.data,
        evaluate_on=options.evaluate_on,
        num_scenes=NUM_SCENES,
        canvas=CANVAS,
        epochs=options.epochs,
    )
    base = replace(base, **QUICK) if options.quick else base
    seeds = range(options.seeds)  # the outermost: an interrupted run has all methods
    jobs = [(method, known, seed) for seed, known, method in product(seeds, options.fractions, options.methods)]
    try:
        if options.draw:
            drawn = [read(each) for each in options.draw]
        else:
            data = load_data(base)
            rates = RATES["images" if has_images(data) else "features"]
            rates = rates if options.learning_rate is None else dict.fromkeys(METHODS, options.learning_rate)
            wanted = {job: settings_of(job, base, rates) for job in jobs}
            results = begin(path, base, data, wanted, fresh=options.fresh)
            path.parent.mkdir(parents=True, exist_ok=True)
        figure.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    if options.draw:
        draw_known_fractions(drawn, figure)
        console.print(f"drawn: {figure}", highlight=False, soft_wrap=True)
        return

    done = {(run["method"], run["known"], run["seed"]) for run in results["runs"]}
    rest = {job: settings for job, settings in wanted.items() if job not in done}
    with progress_bar(console) as progress:
        bar = progress.add_task("runs", total=len(wanted), completed=len(wanted) - len(rest))
        for job, scores, seconds in train_all(rest, workers=options.workers):
            method, known, seed = job
            run = {"method": method, "known": known, "seed": seed, "scores": scores, "seconds": round(seconds, 1)}
            results["runs"].append(run | {"settings": plain(rest[job])})
            write(results, path)
            text = f"{method}, {100 * known:.3g} % (mAP {100 * scores['ema']['mAP']:.1f})"
            progress.update(bar, advance=1, description=text)
    draw_known_fractions([results], figure)
    for table in tables(results["summary"], title=results["data"], plain=not console.is_terminal):
        console.print(table)
    console.print(f"{RESULTS} is in {options.output}, the picture is {figure}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
