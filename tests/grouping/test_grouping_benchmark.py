"""The planted targets, and the benchmark that counts on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import grouping
from benchmarks.planted import planted_groups, planted_targets


def test_planted_targets() -> None:
    hidden = planted_groups(103, 5)
    assert hidden.bincount().tolist() == [21, 21, 21, 20, 20]
    batches = list(planted_targets(hidden, 250, noise=0.0, batch=100))
    assert [batch.shape for batch in batches] == [(100, 103), (100, 103), (50, 103)]
    targets = torch.cat([batch.to_dense() for batch in batches])
    assert targets.dtype == torch.uint8
    assert targets.max() == 1
    assert 4 < targets.sum(1).float().mean() <= 5
    of_group = torch.stack([targets[:, hidden == group].sum(1) for group in range(5)], 1)
    assert ((of_group > 0).sum(1) == 1).all()  # every row keeps to one group
    state = torch.get_rng_state()
    again = list(planted_targets(hidden, 250, noise=0.0, batch=100))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(batches, again, strict=True))
    noisy = torch.cat([batch.to_dense() for batch in planted_targets(hidden, 4000, noise=0.5)])
    of_group = torch.stack([noisy[:, hidden == group].sum(1) for group in range(5)], 1)
    # Half of five draws is astray, and of these four in five end up in another group.
    assert 1 - of_group.amax(1).sum() / noisy.sum() == pytest.approx(0.4, abs=0.06)


def test_agreement() -> None:
    hidden = torch.tensor([0, 0, 1, 1])
    assert grouping.agreement(torch.tensor([1, 1, 0, 0]), hidden) == 1
    assert grouping.agreement(torch.tensor([1, 1, 1, 0]), hidden) == 0.75


def test_records_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    grouping.main(["--measure", "100"])
    run = json.loads(capsys.readouterr().out)
    assert run["agreement"] == 1
    assert sum(run[phase] for phase in ("counting", "affinity", "co", "dis")) <= run["all"]
    records = grouping.records_of(100, [run])
    assert {(r["provider"], r["metric"], r["unit"]) for r in records} == {
        *((phase, "forward", "s") for phase in grouping.PHASES),
        ("all", "memory", "B"),
    }
    assert all(0 < r["p20"] <= r["p50"] <= r["p80"] for r in records)
    grouping.draw(records, tmp_path / "grouping.png")
    assert (tmp_path / "grouping.png").read_bytes()[:4] == b"\x89PNG"
