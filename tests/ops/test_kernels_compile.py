"""Every kernel compiles for GPUs that are not there, and fits into the registers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "results" / "kernels.jsonl"


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(table: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [tuple(record[key] for key in ("file", "kernel", "variant", "dtype", "target")) for record in table]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_every_kernel_compiles_and_nothing_spills_on_hopper(tmp_path: Path) -> None:
    output = tmp_path / "kernels.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--output", output],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    compiled = records(output)
    assert {record["target"] for record in compiled} == {"sm_80", "sm_90", "gfx942"}
    assert {record["file"] for record in compiled} == {
        path.name for path in (ROOT / "src/mlcorr/ops").glob("*/*_triton.py") if "probabilities" not in path.name
    }
    assert [record for record in compiled if record["target"] == "sm_90" and record["spilled"]] == []
    # The committed table is of the same kernels, each at the same tiles.
    assert keys(records(TABLE)) == keys(compiled)
