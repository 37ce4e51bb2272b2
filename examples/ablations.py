"""What each part of a system adds: ``python -m examples.ablations`` leaves parts out and prints a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from examples.comparison import Scores, plain_console, progress_bar, settings_from, summarise, table_of, train_all
from examples.distill import versions
from examples.students import default_workers
from examples.systems import SYSTEMS
from examples.train import QUICK, Settings, fraction, load_data

NUM_SCENES, CANVAS, EPOCHS = (1000, 500, 1000), 32, 15  # little, so that the whole table takes minutes
PRETRAINED = ("--pretrain-epochs", "20")
# Of each system, one of them the whole by its title. Where a row says how many labels are known, the first of those
# that say the same is what it is compared with.
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
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
    "latent_context": {
        "linear head": ("--linear-head",),
        "linear head, rate 1e-2": ("--linear-head", "--learning-rate", "1e-2"),
        "latent context": (),
        "depth 0": ("--depth", "0"),
        "depth 1": ("--depth", "1"),
        "depth 5": ("--depth", "5"),
        "mask ratio 0": ("--mask-ratio", "0"),
        "mask ratio 0.5": ("--mask-ratio", "0.5"),
        "mask ratio 0.9": ("--mask-ratio", "0.9"),
        "alpha 0.5": ("--alpha", "0.5"),
        "alpha 3": ("--alpha", "3"),
        "beta 0": ("--beta", "0"),
        "beta 0.3": ("--beta", "0.3"),
        "beta 0.5": ("--beta", "0.5"),
        "fusion: none": ("--fusion", "none"),
        "fusion: sum": ("--fusion", "sum"),
        "fusion: concat": ("--fusion", "concat"),
        "partial branch: feature": ("--partial-mode", "feature"),
        "partial branch: own encoder": ("--separate-encoder",),
        **{
            f"{missing} % missing: beta {beta}": ("--known", known, "--beta", beta)
            for missing, known in ((10, "0.9"), (50, "0.5"), (90, "0.1"))
            for beta in ("0.1", "0.3", "0.4")
        },
    },
}


def settings_of(row: str, seed: int, base: Settings) -> Settings:
    """Return the settings of a row of the table."""
    return settings_from(ROWS[base.system][row], seed, base)


def tables_of(rows: Sequence[str], base: Settings) -> list[tuple[str, list[str]]]:
    """Return the rows that belong in one table, and before them the one that the others are compared with.

    Rows with as many known labels do; what is compared with is added where it is not among ``rows``.
    """
    title = SYSTEMS[base.system].title
    tables: dict[float, list[str]] = {}
    for row in ROWS[base.system]:
        tables.setdefault(settings_of(row, 0, base).known, []).append(row)
    chosen = []
    for every in tables.values():
        whole = title if title in every else every[0]
        if any(row in rows for row in every):
            chosen.append((whole, [row for row in every if row in rows or row == whole]))
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all rows and print the tables."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m examples.ablations", description=__doc__)
    parser.add_argument("--system", choices=ROWS, default="oprl", help="default: %(default)s")
    text = "only those, and what they are compared with (default: all)"
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=text)
    text = "arrays images, or features, and labels (default: scenes of digits)"
    parser.add_argument("--data", metavar="FILE.npz", help=text)
    text = "validation: to choose by the scores (default: %(default)s)"
    parser.add_argument("--evaluate-on", choices=("test", "validation"), default="test", help=text)
    text = "share of the training labels that are known, unless the row says it (default: 1)"
    parser.add_argument("--known", type=fraction, metavar="F", default=1.0, help=text)
    parser.add_argument("--seeds", type=int, default=3, help="runs a row (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, 2 epochs")
    parser.add_argument("--workers", type=int, default=default_workers(torch.device("cpu")), help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    unknown = [row for row in options.rows or [] if row not in ROWS[options.system]]
    if unknown:
        parser.error(f"--rows: expected some of {', '.join(map(repr, ROWS[options.system]))}, got {unknown[0]!r}")
    base = Settings(
        options.system,
        data=options.data,
        evaluate_on=options.evaluate_on,
        known=options.known,
        num_scenes=NUM_SCENES,
        canvas=CANVAS,
        epochs=options.epochs,
    )
    base = replace(base, **QUICK) if options.quick else base
    tables = tables_of(options.rows or list(ROWS[options.system]), base)
    try:
        data = load_data(base)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error

    console = plain_console()
    jobs = {
        (row, seed): settings_of(row, seed, base) for _, rows in tables for row in rows for seed in range(options.seeds)
    }
    found: dict[tuple[str, int], Scores] = {}
    with progress_bar(console) as progress:
        bar = progress.add_task("runs", total=len(jobs))
        for (row, seed), scores, _ in train_all(jobs, workers=options.workers):
            found[row, seed] = scores
            progress.update(bar, advance=1, description=f"{row} (mAP {100 * scores['ema']['mAP']:.1f})")

    seconds = round(time.perf_counter() - started, 1)
    runs, summary = {}, {}
    for whole, rows in tables:
        own = {row: {seed: found[row, seed] for seed in range(options.seeds)} for row in rows}
        part = summarise(own, whole)
        known = settings_of(whole, 0, base).known
        title = (
            f"{data.name}{'' if known == 1 else f', {100 * known:.3g} % of the labels known'}: averaged weights, "
            f"mean ± sd of {options.seeds} seeds, paired difference ± standard error, %"
        )
        console.print(table_of(part, whole, title=title, plain=not console.is_terminal))
        runs |= {row: list(scores.values()) for row, scores in own.items()}
        summary |= part
    options.output.mkdir(parents=True, exist_ok=True)
    results = {"settings": asdict(base), "versions": versions(), "runs": runs, "summary": summary, "seconds": seconds}
    text = json.dumps(results, indent=1, allow_nan=False)
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    console.print(f"results.json is in {options.output}, made in {seconds:.0f} s", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
