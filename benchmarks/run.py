"""Time providers on cases, each only after its value and gradient were found right.

    python -m benchmarks.run                                          # a small set, in under three minutes on a CPU
    python -m benchmarks.run --case coco-32x80,256x1000 --providers bce,objective --output times.jsonl
    python -m benchmarks.run --case 'labels-*' 'order-*' --providers naive,vectorized,eager,compile,bce --device cuda

Names of cases and providers are separated by commas or spaces and may be patterns. Providers take turns, so that a
drift of the machine meets all of them alike; compare within a run only. A provider whose value or gradient is wrong, or
that fails, gets no number; the run says so, goes on, and ends with status 1.

``--output`` appends one JSON object a line for each metric of a provider on a case, all with these keys:

- schema: 1, the number of this schema.
- device, threads: the processor's or GPU's name, and PyTorch's number of threads on the CPU.
- mlcorr, torch, triton, cuda, python: versions; triton is null where it is not installed, cuda (or HIP) where PyTorch
  was built without. commit: ``git describe`` of this checkout, null outside one.
- case, rows, labels, orders, delta: the case's name and what it stands for.
- provider, quantity: who computes, and what (see ``providers.py``).
- metric, unit: "forward", the value alone, recording for a backward included; "backward", the gradient to the student's
  logits alone; "both", in "s"; "memory", in "B", the peak of what "both" allocates, result included, plus what the
  provider keeps between calls (see ``measure.py``). The naive loop has "forward" only.
- p20, p50, p80: percentiles over samples that are means of enough runs to be timed; "memory" is measured once.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import mlcorr
from benchmarks import gate
from benchmarks.cases import CASES, Case, Inputs, draw
from benchmarks.measure import Task, peak_memory, quantiles, time_in_turns, timed
from benchmarks.providers import PROVIDERS, Loss, reason_to_skip
from benchmarks.report import METRICS, console_of_run, print_case, print_ratios

SCHEMA = 1

# What is run when neither cases nor providers are named.
_DEFINITION = ("naive", "vectorized", "eager")
_LOSSES = ("bce", "eager", "triton", "objective", "objective-triton")
DEFAULT: Mapping[str, tuple[str, ...]] = {
    "order-2-1x80": _DEFINITION,
    "order-3-1x80": _DEFINITION,
    "order-4-1x80": _DEFINITION,
    "delta-0.25-order-4-1x80": ("enumeration", "enumeration-vectorized", "enumeration-triton"),
    "coco-32x80": _LOSSES,
    "256x1000": (
        *_LOSSES,
        "bce-compile",
        "objective-compile",
        "batch",
        "batch-triton",
        "products",
        "asymmetric",
        "asymmetric-timm",
    ),
}

# Bytes that graphs may take which are made before the clock of the backward pass starts.
_GRAPHS = 1 << 30


class Measured(NamedTuple):
    """The samples of one case by (provider, metric), and why the other providers have none."""

    samples: dict[tuple[str, str], list[float]]
    skipped: dict[str, str]
    refused: dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and print tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", type=_names_in(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--providers", nargs="+", type=_names_in(PROVIDERS), metavar="NAME", help=f"of {', '.join(PROVIDERS)}"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each metric of a provider on a case")
    parser.add_argument("--output", type=Path, help="append the measurements as JSON lines")
    asked = parser.parse_args(arguments)

    console, environment, records, status = console_of_run(), describe(asked.device), [], 0
    for name in _flat(asked.case) or DEFAULT:
        providers = _flat(asked.providers) or (DEFAULT[name] if asked.case is None else list(PROVIDERS))
        measured = measure_case(CASES[name], providers, asked.device, asked.seconds)
        keys = [(provider, metric) for provider in providers for metric in METRICS]
        of_case = [
            record(environment, CASES[name], *key, measured.samples[key]) for key in keys if key in measured.samples
        ]
        print_case(console, name, of_case, measured.skipped | measured.refused)
        if asked.output:
            with asked.output.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in of_case)
        records += of_case
        status = 1 if measured.refused else status
    print_ratios(console, records)
    return status


def measure_case(case: Case, names: Iterable[str], device: torch.device, seconds: float) -> Measured:
    """Gate every provider on a case, then time those that pass, in turns."""
    torch.compiler.reset()  # else a compiled loss is at some case no longer compiled: there were too many shapes
    inputs = draw(case, device)
    measured = Measured({}, {}, {})
    truths: dict[str, gate.Truth | None] = {}
    tasks: dict[tuple[str, str], Task] = {}
    for name in names:
        provider = PROVIDERS[name]
        reason = reason_to_skip(provider, case, device)
        if reason:
            measured.skipped[name] = f"skipped: {reason}"
            continue
        try:
            if provider.quantity not in truths:
                truths[provider.quantity] = gate.truth(provider.quantity, case, inputs)
            loss = provider.build(case)
            if isinstance(loss, nn.Module):
                loss.to(device)
            value, first = timed(lambda loss=loss: loss(inputs), device)
            gate.check(provider, value, inputs.student, truths[provider.quantity])
            del value
            if provider.backward:
                memory = _both_memory(loss, inputs, device)
        except AssertionError as wrong:
            measured.refused[name] = f"refused: {wrong}"
            continue
        except Exception as failure:
            first_line = next(iter(str(failure).strip().splitlines()), "")
            measured.refused[name] = f"failed: {type(failure).__name__}: {first_line}"
            continue
        if not provider.backward and first > seconds:
            measured.samples[name, "forward"] = [first]  # a loop that long need not be run again
            continue
        tasks[name, "forward"] = Task(lambda: inputs, loss)
        if provider.backward:
            measured.samples[name, "memory"] = [memory]
            tasks |= _backward_tasks(name, loss, inputs, memory)
    measured.samples.update(time_in_turns(tasks, device, seconds))
    return measured


def _both(loss: Loss, inputs: Inputs) -> object:
    return torch.autograd.grad(loss(inputs), inputs.student)


def _both_memory(loss: Loss, inputs: Inputs, device: torch.device) -> int:
    _both(loss, inputs)  # so that the first call's own allocations do not count
    kept = sum(buffer.nbytes for buffer in loss.buffers()) if isinstance(loss, nn.Module) else 0
    return kept + peak_memory(lambda: _both(loss, inputs), device)


def _backward_tasks(name: str, loss: Loss, inputs: Inputs, memory: int) -> dict[tuple[str, str], Task]:
    graphs = min(max(_GRAPHS // max(memory, 1), 1), 50)
    return {
        (name, "backward"): Task(
            lambda: loss(inputs), lambda value: torch.autograd.grad(value, inputs.student), graphs
        ),
        (name, "both"): Task(lambda: inputs, lambda x: _both(loss, x)),
    }


def record(
    environment: Mapping[str, Any], case: Case, provider: str, metric: str, samples: list[float]
) -> dict[str, Any]:
    """Return one line of the output."""
    p20, p50, p80 = quantiles(samples)
    return {
        "schema": SCHEMA,
        **environment,
        "case": case.name,
        "rows": case.rows,
        "labels": case.labels,
        "orders": list(case.orders),
        "delta": case.delta,
        "provider": provider,
        "quantity": PROVIDERS[provider].quantity,
        "metric": metric,
        "unit": "B" if metric == "memory" else "s",
        "p20": p20,
        "p50": p50,
        "p80": p80,
    }


def describe(device: torch.device) -> dict[str, Any]:
    """Return what a figure needs to be read later: the machine and the versions."""
    here = Path(__file__).parent
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False, cwd=here)
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "device": cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "mlcorr": mlcorr.__version__,
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or torch.version.hip,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def cpu_name() -> str:
    """Return the processor's model where the system tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _names_in(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """Return the parser of a list of names or patterns, separated by commas or spaces."""

    def names(text: str) -> list[str]:
        found: list[str] = []
        for pattern in text.replace(",", " ").split():
            matching = fnmatch.filter(known, pattern)
            if not matching:
                raise argparse.ArgumentTypeError(f"unknown name {pattern!r}; known are {', '.join(known)}")
            found += matching
        return found

    return names


def _flat(lists: list[list[str]] | None) -> list[str]:
    """Return the names of all lists, each once."""
    return list(dict.fromkeys(name for names in lists or [] for name in names))


if __name__ == "__main__":
    raise SystemExit(main())
