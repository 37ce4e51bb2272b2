"""Which tests run which lines of the library, and how long they take: what choosing tests for a mutant needs.

    python -m tests.mutation.record            # the whole suite once, with coverage; needs pytest-cov

Writes ``.coverage`` and ``.mutation.json``; ``coverage report`` then shows lines and branches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
RECORD = ROOT / ".mutation.json"
SOURCE = "src/mlcorr"


def run_suite(junit: Path, workers: str) -> None:
    """Run all tests, with a context for each in what coverage finds."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--numprocesses", workers, f"--junit-xml={junit}"),
            *("--cov=mlcorr", "--cov-context=test", "--cov-report="),
            *("-o", "junit_family=xunit1", *sys.argv[1:]),
        ],
        cwd=ROOT,
        env=os.environ | {"CI": "true"},  # properties draw the same each time
        check=True,
    )


def durations(junit: Path) -> dict[str, float]:
    """Return the seconds of each test by a name without its parameters' ends: file and name, as the report has them."""
    found: dict[str, float] = {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        file, name = case.get("file", ""), case.get("name", "")
        found[f"{file}::{name}"] = float(case.get("time", 0))
    return found


def test_of(context: str) -> str:
    """Return the test of a context: ``name|run`` where it ran itself, ``name (call)`` of a process that it started."""
    return context.partition("|")[0].rpartition(" (")[0] or context.partition("|")[0]


def lines() -> dict[str, dict[int, list[str]]]:
    """Return, by file and line, the tests that ran it."""
    from coverage import CoverageData

    data = CoverageData(str(ROOT / ".coverage"))
    data.read()
    found: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        path = Path(file)
        if (ROOT / SOURCE) in path.parents:
            contexts = data.contexts_by_lineno(file)
            found[str(path.relative_to(ROOT))] = {
                line: sorted({test_of(name) for name in names if name}) for line, names in contexts.items()
            }
    return found


def main() -> None:
    """Run the suite and write what was found."""
    junit = ROOT / ".mutation.xml"
    run_suite(junit, os.environ.get("WORKERS", "2"))
    RECORD.write_text(json.dumps({"seconds": durations(junit), "lines": lines()}), encoding="utf-8")
    junit.unlink()


if __name__ == "__main__":
    main()
