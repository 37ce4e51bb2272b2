"""What ``import mlcorr`` costs beyond ``import torch``, in fresh interpreters that take turns.

    python -m benchmarks.import_time

Prints medians and the dearest modules. Fails where what is added is above ``--most`` milliseconds of a processor: one
thread imports, so that this is what a quiet machine takes, and unlike the wall's clock it minds other programs little.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

PROGRAMS = {
    "torch": "import torch",
    "torch, mlcorr": "import torch, mlcorr",
    "torch, every public module": (
        "import torch, mlcorr, mlcorr.functional, mlcorr.metrics, mlcorr.systems.mdkd, mlcorr.systems.oprl,"
        "mlcorr.systems.sadcl, mlcorr.systems.ml_vpt, mlcorr.systems.latent_context"
    ),
}


def clocks() -> tuple[float, float]:
    """Return the seconds by the wall's clock, and those that processes waited for so far had of a processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def measure(programs: Mapping[str, str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the two clocks' seconds of every round; the first run of each, which may read a cold disk, is left out."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            before = clocks()
            subprocess.run([sys.executable, "-c", program], check=True)
            after = clocks()
            if number:
                samples[name].append((after[0] - before[0], after[1] - before[1]))
    return samples


def median(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the milliseconds of both clocks."""
    wall, processor = zip(*samples, strict=True)
    return 1000 * statistics.median(wall), 1000 * statistics.median(processor)


def added(more: Sequence[tuple[float, float]], less: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the median over rounds of what ``more`` took longer than ``less`` in the same round, in milliseconds."""
    return median([(a - c, b - d) for (a, b), (c, d) in zip(more, less, strict=True)])


def dearest(program: str, count: int) -> list[tuple[float, str]]:
    """Return the modules after torch that took longest by themselves, in milliseconds, by ``-X importtime``."""
    report = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    lines = re.findall(r"^import time: +(\d+) \| +\d+ \| ( *)(\S+)$", report.stderr, re.MULTILINE)
    after = next(place for place, (_, indent, name) in enumerate(lines) if name == "torch" and not indent.strip()) + 1
    return sorted(((int(own) / 1000, name) for own, _, name in lines[after:]), reverse=True)[:count]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; exit with 1 where importing takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.import_time")
    parser.add_argument("--rounds", type=int, default=15, help="fresh interpreters of each kind (default: %(default)s)")
    parser.add_argument("--most", type=float, default=150.0, help="milliseconds allowed (default: %(default)g)")
    options = parser.parse_args(arguments)
    samples = measure(PROGRAMS, options.rounds)
    base, *others = PROGRAMS
    wall, whole = median(samples[base])
    print(f"{'import':40}{'wall':>9}{'processor':>15}")
    print(f"{base:40}{wall:6.0f} ms {whole:11.0f} ms")
    costs = {name: added(samples[name], samples[base]) for name in others}
    for name, (wall, processor) in costs.items():
        print(f"{name:40}{wall:+6.0f} ms {processor:+11.0f} ms  {processor / whole:+.1%}")
    print("the dearest modules by themselves, under -X importtime:")
    for milliseconds, module in dearest(PROGRAMS["torch, mlcorr"], 5):
        print(f"  {module:35} {milliseconds:7.1f} ms")
    if costs["torch, mlcorr"][1] > options.most:
        sys.exit(f"import mlcorr adds more than {options.most:g} ms to import torch")


if __name__ == "__main__":
    main()
