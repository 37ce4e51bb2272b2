"""Time the sample-to-sample contrastive loss and measure its memory, against the number of active features.

    python -m benchmarks.contrast --output benchmarks/results/contrast-cpu.jsonl
    python -m benchmarks.plot benchmarks/results/contrast-cpu.jsonl --figure contrast --output docs/_static/contrast.png

- ours: ``sample_contrastive_loss`` as ``DualContrastiveLoss`` calls it.
- materialised: the same definition with all similarities in one matrix.
- pytorch-metric-learning: its ``SupConLoss``; a bank is a part of its reference set, which needs explicit pairs.

Features have 256 dimensions, one of 80 labels, and a gradient; a bank, where there is one, 65,536 keys without. Before
the clock, each provider has run in a process of its own whose address space is limited (``--limit``; on a GPU its share
of the memory): there it gave the value and gradient of ours, in float64 up to 4·10⁷ similarities and in float32, to
1e-5, beyond, and there its memory was measured. What fits then takes turns in this process.

The records are those of ``benchmarks.run``; ``rows`` is the number of active features. A provider that runs out of
memory, or fails otherwise, has one record whose metric is "failed", with null for its numbers and a further key,
"reason". Running out of memory is a result; for all else that goes wrong the status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import Task, peak_memory, quantiles, time_in_turns
from benchmarks.report import console_of_run, in_units, print_case
from benchmarks.run import SCHEMA, describe
from mlcorr.functional import sample_contrastive_loss

TEMPERATURE = 0.2
LIMIT = 10.0  # GiB

# Of value and gradient as vectors: in float64 where there are at most so many similarities, and in float32.
EXACT, FLOAT64, FLOAT32 = 4 * 10**7, 1e-10, 1e-5


class Case(NamedTuple):
    """Numbers of active features, of keys in the bank, of dimensions and of labels."""

    name: str
    rows: int
    keys: int = 0
    dims: int = 256
    labels: int = 80


CASES = {
    case.name: case
    for rows in (512, 4096, 16384)
    for case in (Case(f"contrast-{rows}", rows), Case(f"contrast-{rows}-bank", rows, 65_536))
}


class Inputs(NamedTuple):
    """Active features and their labels, keys and theirs, and the number of labels."""

    x: Tensor
    of_x: Tensor
    keys: Tensor
    of_keys: Tensor
    labels: int


def draw(case: Case, device: torch.device) -> Inputs:
    """Return noise about a centre for each label; the same for the same case."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(case.labels, case.dims, generator=generator) / 2
    of_x, of_keys = (torch.randint(case.labels, (n,), generator=generator) for n in (case.rows, case.keys))
    x, keys = (centres[of] + torch.randn(len(of), case.dims, generator=generator) for of in (of_x, of_keys))
    return Inputs(x.to(device), of_x.to(device), keys.to(device), of_keys.to(device), case.labels)


def ours(inputs: Inputs, block_size: int = 1024) -> Tensor:
    """Return the library's."""
    x, of_x, keys, of_keys, labels = inputs
    bank = {"keys": keys, "key_labels": of_keys} if len(keys) else {}
    return sample_contrastive_loss(x, of_x, **bank, num_labels=labels, temperature=TEMPERATURE, block_size=block_size)


def materialised(inputs: Inputs) -> Tensor:
    """Return the loss by matrices of all similarities."""
    x, of_x, keys, of_keys, _ = inputs
    x, keys = F.normalize(x), F.normalize(keys)
    s = x @ torch.cat([x, keys]).T / TEMPERATURE
    own = torch.zeros_like(s, dtype=torch.bool).fill_diagonal_(True)
    positive = (of_x.unsqueeze(1) == torch.cat([of_x, of_keys])) & ~own
    number = positive.sum(dim=1)
    losses = s.masked_fill(own, -torch.inf).logsumexp(dim=1) - (s * positive).sum(dim=1) / number.clamp(min=1)
    return losses[number > 0].mean()


def metric_learning(inputs: Inputs) -> Tensor:
    """Return pytorch-metric-learning's.

    Its reference set stands for the batch, which has to be in it beside the bank. A row is then no longer known as its
    own, and counts as a positive, unless all pairs but those are passed.
    """
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

    x, of_x, keys, of_keys, _ = inputs
    loss = SupConLoss(temperature=TEMPERATURE)
    if len(keys) == 0:
        return loss(x, of_x)
    every, of_every = torch.cat([x, keys]), torch.cat([of_x, of_keys])
    anchor, positive, *negatives = get_all_pairs_indices(of_x, of_every)
    other = anchor != positive
    pairs = (anchor[other], positive[other], *negatives)
    return loss(x, of_x, indices_tuple=pairs, ref_emb=every, ref_labels=of_every)


PROVIDERS: Mapping[str, Callable[[Inputs], Tensor]] = {
    "ours": ours,
    "materialised": materialised,
    "pytorch-metric-learning": metric_learning,
}


def value_and_gradient(provider: Callable[[Inputs], Tensor], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return both, the gradient to the active features."""
    x = inputs.x.detach().requires_grad_()
    value = provider(inputs._replace(x=x))
    return value.detach(), torch.autograd.grad(value, x)[0]


def check(provider: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
    """Raise AssertionError unless value and gradient are those of ours."""
    exact = len(inputs.x) * (len(inputs.x) + len(inputs.keys)) <= EXACT
    if exact:
        inputs = inputs._replace(x=inputs.x.double(), keys=inputs.keys.double())
    tolerance = FLOAT64 if exact else FLOAT32
    found = zip(value_and_gradient(provider, inputs), value_and_gradient(ours, inputs), strict=True)
    for name, (actual, expected) in zip(("value", "gradient"), found, strict=True):
        distance = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
        if not distance <= tolerance:  # also where it is NaN
            raise AssertionError(f"its {name} is off by {distance:.1e}, which is beyond {tolerance:.0e}")


class Examined(NamedTuple):
    """The peak of memory in bytes, or what kept a provider from it: "skipped", "refused", "memory" or "failed"."""

    memory: int = 0
    trouble: str = ""
    reason: str = ""


def examine(name: str, case: Case, device: torch.device, limit: float | None) -> Examined:
    """Return what a process of its own finds out about a provider with ``limit`` GiB beyond what it needs to start."""
    if name == "pytorch-metric-learning" and find_spec("pytorch_metric_learning") is None:
        return Examined(trouble="skipped", reason="needs pytorch-metric-learning")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_examine, name, case, device, limit).result()
        except BrokenProcessPool as failure:
            return Examined(trouble="failed", reason=_first_line(failure))


def _examine(name: str, case: Case, device: torch.device, limit: float | None) -> Examined:
    provider = PROVIDERS[name]
    small = draw(case._replace(rows=64, keys=min(case.keys, 64)), device)
    peak_memory(lambda: value_and_gradient(provider, small), device)  # what is loaded at the first call
    inputs = draw(case, device)
    try:
        if limit is not None:
            _limit_memory(int(limit * 2**30), device)
        memory = peak_memory(lambda: value_and_gradient(provider, inputs), device)
        check(provider, inputs)
    except AssertionError as wrong:
        return Examined(trouble="refused", reason=str(wrong))
    except Exception as failure:
        of_memory = isinstance(failure, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(failure)
        beyond = "" if limit is None else f"needs more than {limit:g} GiB: "
        return Examined(
            trouble="memory" if of_memory else "failed", reason=f"{beyond if of_memory else ''}{_first_line(failure)}"
        )
    return Examined(memory)


def _limit_memory(more: int, device: torch.device) -> None:
    """Let this process take ``more`` bytes beyond what it has; where the system cannot tell that, no limit is set."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = (torch.cuda.memory_reserved(device) + more) / total
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
        return
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        import resource

        has = int(statistics.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _first_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {next(iter(str(failure).strip().splitlines()), '')}"


class Measured(NamedTuple):
    """The samples of one case by (provider, metric), and what was found out about each provider before."""

    samples: dict[tuple[str, str], list[float]]
    examined: dict[str, Examined]


def measure(case: Case, device: torch.device, seconds: float, limit: float | None) -> Measured:
    """Examine every provider, then time those that pass, in turns."""
    examined = {name: examine(name, case, device, limit) for name in PROVIDERS}
    passed = {name: found for name, found in examined.items() if not found.trouble}
    inputs = draw(case, device)
    wanting = inputs._replace(x=inputs.x.detach().requires_grad_())
    tasks = {
        (name, metric): task
        for name in passed
        for metric, task in (
            ("forward", Task(lambda: wanting, PROVIDERS[name])),
            ("both", Task(lambda: inputs, lambda x, f=PROVIDERS[name]: value_and_gradient(f, x))),
        )
    }
    samples = time_in_turns(tasks, device, seconds)
    samples |= {(name, "memory"): [found.memory] for name, found in passed.items()}
    return Measured(samples, examined)


def records_of(case: Case, measured: Measured, environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each metric of a provider, or one of its failure."""

    def record(provider: str, metric: str, unit: str | None, *numbers: float | None) -> dict[str, Any]:
        return {
            "schema": SCHEMA, **environment, "case": case.name, "rows": case.rows, "labels": case.labels, "orders": [],
            "delta": None, "provider": provider, "quantity": "sample_contrastive", "metric": metric, "unit": unit,
            **dict(zip(("p20", "p50", "p80"), numbers, strict=True)),
        }  # fmt: skip

    failed = {name: found for name, found in measured.examined.items() if found.trouble in ("memory", "failed")}
    return [
        record(name, metric, "B" if metric == "memory" else "s", *quantiles(values))
        for (name, metric), values in measured.samples.items()
    ] + [{**record(name, "failed", None, None, None, None), "reason": found.reason} for name, found in failed.items()]


def print_ratios(console: Console, records: list[dict[str, Any]]) -> None:
    """Print how many times what ours takes the others take."""
    medians = {(r["case"], r["provider"], r["metric"]): r["p50"] for r in records if r["metric"] != "failed"}
    table = Table("case", "ratio", title="ratios within this run", title_justify="left")
    for metric in ("forward", "both", "memory"):
        table.add_column(metric, justify="right")
    for case in CASES:
        for name in PROVIDERS:
            if name != "ours" and {(case, name, "both"), (case, "ours", "both")} <= medians.keys():
                shares = [medians[case, name, m] / medians[case, "ours", m] for m in ("forward", "both", "memory")]
                table.add_row(case, f"{name} / ours", *(f"{share:,.1f}" for share in shares))
    if table.rows:
        console.print(table)


def growth(records: list[dict[str, Any]], suffix: str = "") -> str | None:
    """Return what an active feature more adds to the peak of ours, in words; None unless all sizes were measured."""
    cases = [case for case in CASES.values() if case.name == f"contrast-{case.rows}{suffix}"]
    peaks = {r["case"]: r["p50"] for r in records if (r["provider"], r["metric"]) == ("ours", "memory")}
    if not cases or any(case.name not in peaks for case in cases):
        return None
    steps = [
        f"{in_units((peaks[b.name] - peaks[a.name]) / (b.rows - a.rows), 'B')} from {a.rows:,} to {b.rows:,}"
        for a, b in itertools.pairwise(cases)
    ]
    last = cases[-1]
    row = in_units(4 * (last.rows + last.keys), "B")
    where = "with a bank" if suffix else "without a bank"
    return (
        f"ours, {where}, bytes of peak memory for each further active feature: {', '.join(steps)}; a row of "
        f"{last.rows + last.keys:,} similarities alone would take {row}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and print tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each metric of a provider on a case")
    parser.add_argument("--limit", type=float, help=f"GiB a provider may take; default: {LIMIT:g}, on a GPU all")
    parser.add_argument("--output", type=Path, help="append the measurements as JSON lines")
    asked = parser.parse_args(arguments)
    limit = LIMIT if asked.limit is None and asked.device.type == "cpu" else asked.limit
    console, environment, records, status = console_of_run(), describe(asked.device), [], 0
    for name in asked.case or CASES:
        measured = measure(CASES[name], asked.device, asked.seconds, limit)
        of_case = records_of(CASES[name], measured, environment)
        notes = {
            provider: f"{'failed' if found.trouble == 'memory' else found.trouble}: {found.reason}"
            for provider, found in measured.examined.items()
            if found.trouble
        }
        print_case(console, name, [r for r in of_case if r["metric"] != "failed"], notes)
        if asked.output:
            with asked.output.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in of_case)
        records += of_case
        if any(found.trouble in ("refused", "failed") for found in measured.examined.values()):
            status = 1
    print_ratios(console, records)
    for line in (growth(records), growth(records, "-bank")):
        if line:
            console.print(line, highlight=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
