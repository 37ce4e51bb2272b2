"""Change the library in small ways, one at a time, and see whether a test notices.

    pip install cosmic-ray pytest-cov
    python -m tests.mutation.record
    python -m tests.mutation.run --number 300 --seed 0 --output benchmarks/results/mutants.json

Each mutant gets tests that run its line (of a line that runs at import, or in processes that tests start: its file),
until one fails: the quickest of each test function, then the next of each, as far as ``--seconds`` go. A mutant with
which they take several times as long as without is killed too: it hangs. In the end the tests that killed are run on
the code as it is, since what fails there has killed nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from itertools import accumulate, zip_longest
from pathlib import Path
from queue import Queue
from typing import Any

from tests.mutation.mutants import Mutant, mutated, sample
from tests.mutation.record import RECORD, ROOT

START = 60.0  # seconds that starting the tests may take, on a busy machine
SLOWER = 5.0  # times as long as without the change: it hangs
AT_IMPORT = ("tests/test_signatures.py::test_parameters_and_defaults_are_the_listed_ones",)
HEAD = 40  # tests that are tried first, since most mutants are killed by one of them


def tests_of(mutant: Mutant, record: dict[str, Any], limit: float) -> list[tuple[float, str]]:
    """Return seconds and names of tests that run the mutant's line, as many as take ``limit`` seconds."""
    by_line = record["lines"].get(mutant.path, {})
    names = by_line.get(str(mutant.line)) or sorted({name for each in by_line.values() for name in each} | {*AT_IMPORT})
    seconds = record["seconds"]
    functions: dict[str, list[tuple[float, str]]] = {}
    for timed in sorted((seconds.get(name, 1.0), name) for name in names):
        functions.setdefault(timed[1].partition("[")[0], []).append(timed)
    rounds = [each for at_a_time in zip_longest(*functions.values()) for each in at_a_time if each is not None]
    sums = accumulate(seconds for seconds, _ in rounds)
    return [each for each, total in zip(rounds, sums, strict=True) if total <= limit or each is rounds[0]]


def run_tests(folder: Path, names: list[str], limit: float) -> tuple[int, str]:
    """Return the exit code of the tests, None for too long, and the end of what they print."""
    environment = os.environ | {
        "CI": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(folder)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    listed = folder / "tests.txt"
    listed.write_text("\n".join(names), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", f"@{listed}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -1, "too long"
    return process.returncode, output[-2000:]


def judge(mutant: Mutant, folder: Path, chosen: list[tuple[float, str]]) -> dict[str, Any]:
    """Return what became of a mutant: killed, with the test that noticed, or survived."""
    path = folder / mutant.path
    original, change = path.read_text(encoding="utf-8"), mutated(mutant)
    difference = list(unified_diff(original.splitlines(), change.splitlines(), n=0, lineterm=""))[3:]
    result: dict[str, Any] = {**mutant._asdict(), "change": difference}
    started = time.perf_counter()
    path.write_text(change, encoding="utf-8")
    try:
        for part in (chosen[:HEAD], chosen[HEAD:]):
            if not part:
                continue
            limit = START + SLOWER * sum(seconds for seconds, _ in part)
            code, output = run_tests(folder, [name for _, name in part], limit)
            if code != 0:
                by = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), output[-300:])
                result |= {"outcome": "killed", "by": by.partition(" - ")[0][:300], "code": code}
                break
        else:
            result["outcome"] = "survived" if chosen else "no test runs it"
    finally:
        path.write_text(original, encoding="utf-8")
    return result | {"tests": len(chosen), "seconds": round(time.perf_counter() - started, 1)}


def innocent(results: Iterable[dict[str, Any]], folder: Path) -> list[str]:
    """Return the killing tests that fail on the code as it is."""
    names = sorted({by.partition(" ")[2] for by in (each.get("by", "") for each in results) if by.startswith("FAILED")})
    if not names or run_tests(folder, names, 60 * START)[0] == 0:
        return []
    return [name for name in names if run_tests(folder, [name], 10 * START)[0] != 0]


def copy_of_project(folder: Path) -> Path:
    """Copy what git knows, and what lies beside the project, to where it can be changed."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        target = folder / "main" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    beside = ROOT.parent / "shared"
    if beside.exists():
        (folder / "shared").symlink_to(beside.resolve())
    return folder / "main"


def main() -> None:
    """Judge a sample and write what became of each mutant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300, help="mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for a mutant (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--again", type=Path, help="a result: judge only what survived there")
    parser.add_argument("--tests", nargs="+", help="these, a minute each at most, in place of those that run the line")
    parser.add_argument("--output", type=Path, required=True, help="file for the result, written after each mutant")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    named = [(START, name) for name in options.tests or ()]
    mutants, sites, everything = sample(options.number, options.seed)
    kept: list[dict[str, Any]] = []
    if options.again:
        before = json.loads(options.again.read_text(encoding="utf-8"))["mutants"]
        killed = {(m["path"], m["line"], m["operator"], m["occurrence"]): m for m in before if m["outcome"] == "killed"}
        kept = [killed[mutant] for mutant in mutants if mutant in killed]
        mutants = [mutant for mutant in mutants if mutant not in killed]

    def write(results: list[dict[str, Any]]) -> None:
        outcomes = Counter(result["outcome"] for result in results)
        summary = {"seed": options.seed, "sites": sites, "possible": everything, "outcomes": outcomes}
        text = json.dumps({**summary, "mutants": sorted(results, key=str)}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folders: Queue[Path] = Queue()
        for number in range(options.workers):
            folders.put(copy_of_project(Path(name, str(number))))

        def work(mutant: Mutant) -> dict[str, Any]:
            folder = folders.get()
            try:
                return judge(mutant, folder, named or tests_of(mutant, record, options.seconds))
            finally:
                folders.put(folder)

        results = list(kept)
        with ThreadPoolExecutor(options.workers) as pool:
            for result in pool.map(work, mutants):
                results.append(result)
                sys.stdout.write(
                    f"{len(results)}/{options.number} {result['outcome']}: {result['path']}:{result['line']}\n"
                )
                sys.stdout.flush()
                write(results)
        failing = innocent(results, folders.get())
        if failing:
            sys.exit(f"these fail without a mutant, too, and have killed nothing: {failing}")


if __name__ == "__main__":
    main()
