"""Time providers on cases, each only after its value and gradient were found right.

    python -m benchmarks.run --case coco-32x80 256x1000 --providers bce objective --output times.jsonl

Providers take turns, so that a drift of the machine meets all of them alike; compare within a run only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import mlcorr
from benchmarks.cases import CASES, Case, Inputs, draw
from benchmarks.providers import PROVIDERS, Loss, Provider

DEFAULT_CASES = ("pairs-1x80", "triples-1x80", "quadruples-1x80", "coco-32x80", "256x1000")
# (case, provider, what it is divided by): the ratios that the library is held to.
RATIOS = (
    ("pairs-1x80", "naive", "instance", "forward"),
    ("triples-1x80", "naive", "instance", "forward"),
    ("quadruples-1x80", "naive", "instance", "forward"),
    ("coco-32x80", "objective", "bce", "both"),
    ("256x1000", "objective", "bce", "both"),
    ("256x1000", "objective-compile", "bce-compile", "both"),
    ("256x1000", "batch", "products", "both"),
    ("openimages-1024x9605", "objective", "bce", "both"),
    ("openimages-1024x9605", "batch", "products", "both"),
)


def main() -> None:
    """Run what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(DEFAULT_CASES))
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each provider of a case")
    parser.add_argument("--output", type=Path, help="append the measurements as JSON lines")
    arguments = parser.parse_args()

    machine = describe(arguments.device)
    records = []
    for name in arguments.case:
        times = time_case(CASES[name], arguments.providers, arguments.device, arguments.seconds)
        for (provider, metric), seconds in times.items():
            p20, p50, p80 = quantiles(seconds)
            records.append(
                {"case": name, "provider": provider, "metric": metric, "p20": p20, "p50": p50, "p80": p80, **machine}
            )
    report(records)
    if arguments.output:
        with arguments.output.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def describe(device: torch.device) -> dict[str, object]:
    """Return what a figure needs to be read later."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    on_cpu = device.type == "cpu"
    return {
        "device": cpu_name() if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "mlcorr": mlcorr.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def cpu_name() -> str:
    """Return the processor's model where the system tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def time_case(case: Case, names: list[str], device: torch.device, seconds: float) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of every repetition by (provider, "forward" or "both")."""
    inputs = draw(case, device)
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name in names:
        provider = PROVIDERS[name]
        # The naive loop is only for one order at a time: it says how each order grows.
        if case.labels > provider.largest or (name == "naive" and len(case.orders) > 1):
            continue
        loss = provider.build(case)
        check(name, provider, case, loss, inputs)
        runs[name, "forward"] = lambda loss=loss: loss(inputs)
        if provider.backward:
            runs[name, "both"] = lambda loss=loss: torch.autograd.grad(loss(inputs), inputs.student)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    repeats = {key: repetitions(run, device, seconds / 10) for key, run in runs.items()}
    for _ in range(10):
        for key, run in runs.items():
            # What takes longer than its whole share is run once.
            if repeats[key] or not times[key]:
                times[key].append(clock(run, max(repeats[key], 1), device))
    return times


def check(name: str, provider: Provider, case: Case, loss: Loss, inputs: Inputs) -> None:
    """Raise unless value and gradient are those of the quantity in float64."""
    if provider.quantity not in PROVIDERS or provider.quantity == "products":
        return  # bare matrix products are no loss
    exact = inputs.double()
    expected = PROVIDERS[provider.quantity].build(case)(exact)
    actual = loss(inputs)
    torch.testing.assert_close(actual.detach().double(), expected.detach(), rtol=1e-4, atol=0, msg=f"{name}: value")
    if provider.backward:
        (gradient,) = torch.autograd.grad(actual, inputs.student)
        (truth,) = torch.autograd.grad(expected, exact.student)
        distance = torch.linalg.vector_norm(gradient.double() - truth) / torch.linalg.vector_norm(truth)
        if not distance <= 1e-4:
            raise AssertionError(f"{name} on {case.name}: the gradient is off by {distance:.1e}")


def repetitions(run: Callable[[], object], device: torch.device, seconds: float) -> int:
    """Return how often ``run`` fits into ``seconds``, after warming up; 0 if not once."""
    first = clock(run, 1, device)
    if first > seconds:
        return 0
    return max(int(seconds / clock(run, 3, device)), 1)


def clock(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the mean seconds of ``repeats`` runs."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Wait for what was launched on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return p20, statistics.median(values), p80


def report(records: list[dict[str, object]]) -> None:
    """Print the medians, and the ratios that can be formed."""
    console = Console()
    table = Table("case", "provider", "metric", "median", "p20 to p80", title="seconds per call")
    medians = {}
    for record in records:
        medians[record["case"], record["provider"], record["metric"]] = record["p50"]
        spread = f"{record['p20']:.3g} to {record['p80']:.3g}"
        table.add_row(*(str(record[k]) for k in ("case", "provider", "metric")), f"{record['p50']:.3g}", spread)
    console.print(table)
    ratios = Table("case", "ratio", "metric", "value", title="ratios within this run")
    for case, above, below, metric in RATIOS:
        if (case, above, metric) in medians and (case, below, metric) in medians:
            value = medians[case, above, metric] / medians[case, below, metric]
            ratios.add_row(case, f"{above} / {below}", metric, f"{value:,.2f}")
    console.print(ratios)


if __name__ == "__main__":
    main()
