"""The long runs, short: the commands in this folder do the same for hours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.endurance import kills, steps

WARM_UP = 2  # looks at memory before it is as large as it gets


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_ends_as_one_left_alone(tmp_path: Path) -> None:
    result = kills.run(3, 0, tmp_path)
    assert len(result["log"]) == 3
    assert result["tensors"] > 100
    assert result["differing"] == []
    assert result["unfinished_files"] == []


def test_a_difference_would_be_found() -> None:
    state = {"a": [torch.zeros(2), 1], "b": {"c": torch.ones(())}}
    other = {"a": [torch.tensor([0.0, -0.0]), 2], "b": {"c": torch.ones((), dtype=torch.float64)}}
    assert kills.differing(state, state) == []
    assert kills.differing(state, other) == [".a.1", ".b.c"]
    assert kills.differing(state, {"a": state["a"]}) == [""]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stays_and_counts_are_exact(dtype: torch.dtype) -> None:
    result = steps.run(60, dtype, looks=6)
    assert result["counts_are_exact"]
    assert result["bank_steps"] == 60
    assert result["bank_features"] > 0
    assert len(result["history"]) == 6
    assert all(look["finite"] for look in result["history"])
    assert len({look["tensors"] for look in result["history"][WARM_UP:]}) == 1
