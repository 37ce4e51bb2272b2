"""Turn the kept measurements into the tables of the documentation's page on performance.

    python -m benchmarks.tables                       # writes docs/performance_tables/*.inc from benchmarks/results
    python -m benchmarks.tables --check               # writes nothing; status 1 if a table is not what the results give

Nothing is measured here. Each table ends with the machine, the versions and the command of its results. Shown are
medians, of the latest record where a provider was measured more than once on a case.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import in_units

Record = Mapping[str, Any]
Medians = Mapping[tuple[str, str, str], float]  # by (case, provider, metric)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = ROOT / "docs" / "performance_tables"

NOTHING = "–"
_FIGURE = (
    "python -m benchmarks.run --case 'labels-*' 'order-*' --providers naive,vectorized,eager,compile,bce "
    "--output benchmarks/results/cpu.jsonl"
)
_DEFAULT = "python -m benchmarks.run --output benchmarks/results/cpu.jsonl"
_LARGE = (
    "python -m benchmarks.run --case openimages-1024x9605,32x1000000 --providers bce,eager,objective,batch,products "
    "--output benchmarks/results/cpu.jsonl"
)
_SIZES = {
    "coco-32x80": "32 × 80",
    "256x1000": "256 × 1,000",
    "openimages-1024x9605": "1,024 × 9,605",
    "32x1000000": "32 × 1,000,000",
}
_COSTS = {  # provider, and what its time is divided by
    ("eager", "bce"): "dependency loss, instance level",
    ("batch", "bce"): "dependency loss, batch level",
    ("objective", "bce"): "BCE + MLD + instance level, in one pass",
    ("objective-compile", "bce-compile"): "the same, both sides under ``torch.compile``",
    ("asymmetric", "bce"): "asymmetric loss",
    ("batch", "products"): "batch level, against its bare matrix products",
}
_CONTRAST = {
    "ours": "ours",
    "materialised": "one matrix of similarities",
    "pytorch-metric-learning": "pytorch-metric-learning",
}
_LAYERS = {
    ("purification-32x80x196", "ours", "torch.quantile"): "purified attention, 32 × 80 maps of 14 × 14, "
    "against ``torch.quantile``",
    ("purification-32x80x784", "ours", "torch.quantile"): "the same, maps of 28 × 28",
    ("average-message-4x80x128", "ours", "dense"): "average message, 80 labels, against the dense matrix",
    ("average-message-4x1000x128", "ours", "dense"): "the same, 1,000 labels",
    ("average-message-4x9605x128", "ours", "dense"): "the same, 9,605 labels",
    ("head-32x80-of-2048x14x14", "OPRL", "Query2Label"): "OPRL's head, against Query2Label's",
    ("head-32x80-of-2048x14x14", "OPRL", "linear"): "OPRL's head, against a linear layer on the mean",
}
_SCORES = {  # file: (title, plain setting, the system's setting)
    "oprl-ablations.json": ("OPRL", "linear head", "OPRL"),
    "sadcl-ablations.json": ("SADCL", "linear head", "SADCL"),
    "mlvpt-probe.json": ("ML-VPT", "linear probe, rate 1e-1", "ML-VPT, rate 1e-2"),
}


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Return the text of every table by its file's name."""
    cpu, contrast, grouping, layers, kernels = (
        _read(results / f"{name}.jsonl") for name in ("cpu", "contrast-cpu", "grouping-cpu", "layers-cpu", "kernels")
    )
    return {
        "labels.inc": _labels(cpu),
        "orders.inc": _orders(cpu),
        "costs.inc": _costs(cpu),
        "outside.inc": _outside(cpu),
        "contrast.inc": _contrast(contrast),
        "grouping.inc": _grouping(grouping),
        "layers.inc": _layers(layers),
        "kernels.inc": _kernels(kernels),
        "scores.inc": _scores(results),
    }


# ------------------------------------------------------------------------------------------------------ tables


def _labels(records: Sequence[Record]) -> str:
    found = medians(records)
    providers = ("naive", "vectorized", "eager", "compile", "bce")
    header = ("labels", "literal loops, value only", "vectorised", "closed form", "compiled", "BCE alone")
    rows = []
    for labels in (10, 20, 40, 80, 160, 320, 1000, 10_000):
        case = f"labels-32x{labels}"
        metrics = ["forward", *["both"] * (len(providers) - 1)]
        cells = [_time(found, case, p, m) for p, m in zip(providers, metrics, strict=True)]
        rows.append((f"{labels:,}", *cells))
    return _table(header, rows, (12, 20, 17, 17, 17, 17)) + _origin(records, "cpu.jsonl", _FIGURE)


def _orders(records: Sequence[Record]) -> str:
    found = medians(records)
    header = ("order", "literal loops, value only", "vectorised", "closed form", "vectorised", "closed form")
    rows = []
    for order in range(2, 7):
        case = f"order-{order}-1x80"
        times = [_time(found, case, "naive", "forward")]
        times += [_time(found, case, p, "both") for p in ("vectorized", "eager")]
        memory = [_memory(found, case, p) for p in ("vectorized", "eager")]
        rows.append((str(order), *times, *memory))
    return _table(header, rows, (10, 20, 18, 17, 18, 17)) + _origin(records, "cpu.jsonl", _FIGURE)


def _costs(records: Sequence[Record]) -> str:
    found = medians(records)
    rows = [
        (title, *(_ratio(found, case, provider, beside, "both") for case in _SIZES))
        for (provider, beside), title in _COSTS.items()
    ]
    rows.append(("BCE alone, in time", *(_time(found, case, "bce", "both") for case in _SIZES)))
    header = ("value and gradient, in times BCE's", *_SIZES.values())
    return _table(header, rows, (40, 15, 15, 15, 15)) + _origin(records, "cpu.jsonl", _DEFAULT, _LARGE)


def _outside(records: Sequence[Record]) -> str:
    found, case = medians(records), "delta-0.25-order-4-1x80"
    names = {"enumeration": "enumeration in chunks (ours)", "enumeration-vectorized": "vectorised enumeration"}
    rows = [
        (title, _time(found, case, name, "forward"), _time(found, case, name, "both"), _memory(found, case, name))
        for name, title in names.items()
    ]
    header = ("order 4, 80 labels, δ = 0.25", "value", "value and gradient", "peak memory")
    return _table(header, rows, (40, 20, 20, 20)) + _origin(records, "cpu.jsonl", _DEFAULT)


def _contrast(records: Sequence[Record]) -> str:
    found = medians(records)
    failed = {(r["case"], r["provider"]) for r in records if r["metric"] == "failed"}
    rows = []
    for bank in (0, 65_536):
        for active in (512, 4096, 16_384):
            case = f"contrast-{active}" + ("-bank" if bank else "")
            cells = [
                "more than 10 GiB"
                if (case, provider) in failed
                else f"{_time(found, case, provider, 'both')}, {_memory(found, case, provider)}"
                for provider in _CONTRAST
            ]
            rows.append((f"{active:,}", f"{bank:,}" if bank else "none", *cells))
    command = "python -m benchmarks.contrast --output benchmarks/results/contrast-cpu.jsonl"
    header = ("active features", "keys of a bank", *_CONTRAST.values())
    return _table(header, rows, (16, 15, 22, 23, 24)) + _origin(records, "contrast-cpu.jsonl", command)


def _grouping(records: Sequence[Record]) -> str:
    found = medians(records)
    phases = ("counting", "affinity", "co", "dis", "all")
    rows = []
    for labels in (100, 1000, 10_000, 100_000, 1_000_000):
        case = f"grouping-{labels}"
        times = [_time(found, case, phase, "forward") for phase in phases]
        rows.append((f"{labels:,}", *times, _memory(found, case, "all")))
    command = "python -m benchmarks.grouping --output benchmarks/results/grouping-cpu.jsonl"
    header = ("labels", "counting", "affinity", "co groups", "dis groups", "everything", "peak of the process")
    return _table(header, rows, (16, 13, 13, 13, 13, 14, 18)) + _origin(records, "grouping-cpu.jsonl", command)


def _layers(records: Sequence[Record]) -> str:
    found = medians(records)
    rows = [
        (
            title,
            _time(found, case, ours, "both"),
            _ratio(found, case, ours, beside, "both"),
            _ratio(found, case, ours, beside, "memory"),
        )
        for (case, ours, beside), title in _LAYERS.items()
    ]
    command = "python -m benchmarks.layers --output benchmarks/results/layers-cpu.jsonl"
    header = ("value and gradient", "ours", "time, in times the other's", "peak memory, likewise")
    return _table(header, rows, (46, 14, 20, 20)) + _origin(records, "layers-cpu.jsonl", command)


def _kernels(records: Sequence[Record]) -> str:
    rows = []
    for file in sorted({r["file"] for r in records}):
        cells = []
        for target in ("sm_80", "sm_90", "gfx942"):
            of_target = [r for r in records if (r["file"], r["target"]) == (file, target)]
            registers, spilled = (max((r[key] for r in of_target), default=None) for key in ("registers", "spilled"))
            cells.append(NOTHING if registers is None else f"{registers}, {spilled} B")
        rows.append(
            (f"``{file}``", str(len({(r["kernel"], r["variant"]) for r in records if r["file"] == file})), *cells)
        )
    versions = ", ".join(sorted({r["triton"] for r in records}))
    origin = (
        f"Compiled with Triton {versions}, for GPUs that were not there: ``benchmarks/results/kernels.jsonl``, by\n"
        "``python -m benchmarks.kernels --output benchmarks/results/kernels.jsonl``.\n"
    )
    header = ("kernels of", "variants", "sm_80", "sm_90", "gfx942")
    return _table(header, rows, (32, 14, 18, 18, 18)) + origin


def _scores(results: Path) -> str:
    rows, origins = [], []
    for file, (title, plain, own) in _SCORES.items():
        content = json.loads((results / file).read_text(encoding="utf-8"))
        before, after = ([100 * run["ema"]["mAP"] for run in content["runs"][setting]] for setting in (plain, own))
        gain = [b - a for a, b in zip(before, after, strict=True)]
        error = statistics.stdev(gain) / len(gain) ** 0.5
        mean = statistics.mean(gain)
        rows.append(
            (
                title,
                str(len(gain)),
                *(f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f}" for x in (before, after)),
                f"{'+' if mean >= 0 else '−'}{abs(mean):.2f} ± {error:.2f}",
            )
        )
        versions = content["versions"]
        origins.append(
            f"``benchmarks/results/{file}`` ({versions['machine']}, Python {versions['python']}, PyTorch "
            f"{versions['torch']})"
        )
    header = ("system", "seeds", "plain head, mAP", "system, mAP", "difference, seed by seed")
    commands = (
        "``python -m examples.ablations --seeds 3``,\n"
        "``python -m examples.ablations --system sadcl --epochs 10 --seeds 3``,\n"
        "``python -m examples.ablations --system mlvpt --seeds 2``"
    )
    text = "Mean ± standard deviation over seeds; the difference ± its standard error. Kept in\n"
    return _table(header, rows, (16, 10, 24, 24, 26)) + text + ",\n".join(origins) + f", by\n{commands}.\n"


# --------------------------------------------------------------------------------------------------------- rst


def medians(records: Iterable[Record]) -> dict[tuple[str, str, str], float]:
    """Return the latest median of each (case, provider, metric); failures have none."""
    return {(r["case"], r["provider"], r["metric"]): r["p50"] for r in records if r["metric"] != "failed"}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in (header, *rows):
        for index, cell in enumerate(row):
            lines.append(f"   {'*' if index == 0 else ' '} - {cell}")
    return "\n".join(lines) + "\n\n"


def _origin(records: Sequence[Record], file: str, *commands: str) -> str:
    """Return the machine, the versions and the commands, of records that agree in all of them."""
    keys = ("device", "threads", "torch", "python", "mlcorr", "commit", "cuda")
    machines = {tuple(r[key] for key in keys) for r in records}
    if len(machines) != 1:
        raise ValueError(f"{file}: expected the records of one machine, versions and commit, got {len(machines)}")
    device, threads, torch, python, mlcorr, commit, cuda = machines.pop()
    gpu = "no GPU" if cuda is None else f"CUDA or HIP {cuda}"
    number = "one thread" if threads == 1 else f"{threads} threads"
    return (
        f"{device}, {number}, {gpu}; PyTorch {torch}, Python {python}, mlcorr {mlcorr} at {commit}:\n"
        f"``benchmarks/results/{file}``, by\n" + ",\n".join(f"``{command}``" for command in commands) + ".\n"
    )


def _time(found: Medians, case: str, provider: str, metric: str) -> str:
    value = found.get((case, provider, metric))
    return NOTHING if value is None else in_units(value, "s")


def _memory(found: Medians, case: str, provider: str) -> str:
    value = found.get((case, provider, "memory"))
    return NOTHING if value is None else in_units(value, "B")


def _ratio(found: Medians, case: str, provider: str, beside: str, metric: str) -> str:
    above, below = found.get((case, provider, metric)), found.get((case, beside, metric))
    if above is None or below is None:
        return NOTHING
    value = above / below
    return (
        f"{value:,.0f}"
        if value >= 10
        else f"{value:.1f}"
        if value >= 1
        else f"{value:.2f}"
        if value >= 0.1
        else f"{value:.2g}"
    )


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(arguments: list[str] | None = None) -> int:
    """Write the tables, or compare them with those that are there; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measurements")
    parser.add_argument("--output", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--check", action="store_true", help="write nothing; say which tables are not up to date")
    asked = parser.parse_args(arguments)
    made = tables(asked.results)
    there = {path.name: path.read_text(encoding="utf-8") for path in asked.output.glob("*.inc")}
    changed = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
    if asked.check:
        for name in changed:
            print(f"{name}: not what the results give; python -m benchmarks.tables")
        return 1 if changed else 0
    asked.output.mkdir(parents=True, exist_ok=True)
    for name in changed:
        if name in made:
            (asked.output / name).write_text(made[name], encoding="utf-8")
            print(f"{name} written")
        else:
            (asked.output / name).unlink()
            print(f"{name} removed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
