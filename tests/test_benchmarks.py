"""The benchmarks: a provider that is wrong gets no number, and a run leaves readable records."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.cases import CASES, Case, draw
from benchmarks.providers import PROVIDERS, Provider

SMALL = Case("small", 3, 5, (2, 3))


@pytest.mark.parametrize("name", [name for name in PROVIDERS if not name.endswith("compile")])
@pytest.mark.parametrize("case", [SMALL, Case("pairs", 2, 6, (2,)), Case("tall", 9, 4)])
def test_providers_pass_their_gate(name: str, case: Case) -> None:
    provider = PROVIDERS[name]
    run.check(name, provider, case, provider.build(case), draw(case, torch.device("cpu")))


def test_a_wrong_provider_is_refused() -> None:
    right = PROVIDERS["instance"]
    inputs = draw(SMALL, torch.device("cpu"))
    wrong_value = Provider("instance", lambda case: lambda x: 1.01 * right.build(case)(x))
    wrong_gradient = Provider(
        "instance",
        lambda case: (
            lambda x: right.build(case)(x) + 0 * x.student.sum() ** 2 + ((x.student - x.student.detach()).sum())
        ),
    )
    for provider in (wrong_value, wrong_gradient):
        with pytest.raises(AssertionError):
            run.check("wrong", provider, SMALL, provider.build(SMALL), inputs)


def test_a_run_writes_one_record_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "small", SMALL)
    output = tmp_path / "times.jsonl"
    command = ["run", "--case", "small", "--providers", "bce", "instance", "--seconds", "0.05", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    run.main()
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(r["provider"], r["metric"]) for r in records} == {
        (p, m) for p in ("bce", "instance") for m in ("forward", "both")
    }
    assert all(0 < r["p20"] <= r["p50"] <= r["p80"] for r in records)
    assert all(r["device"] and r["torch"] == torch.__version__ for r in records)
