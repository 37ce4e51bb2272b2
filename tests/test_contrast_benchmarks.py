"""The benchmark of the contrastive loss: all compute the same thing, and what ours takes grows as it should."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contrast, plot
from benchmarks.measure import peak_memory

CPU = torch.device("cpu")
SMALL = contrast.Case("small", 40, dims=6, labels=5)
BANKED = contrast.Case("small-bank", 40, keys=70, dims=6, labels=5)
needs_peer = pytest.mark.skipif(find_spec("pytorch_metric_learning") is None, reason="needs pytorch-metric-learning")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", [SMALL, BANKED], ids=lambda case: case.name)
@pytest.mark.parametrize("name", [n if n == "ours" else pytest.param(n, marks=needs_peer) for n in contrast.PROVIDERS])
def test_providers_agree(name: str, case: contrast.Case, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(contrast, "EXACT", 0)
    contrast.check(contrast.PROVIDERS[name], contrast.draw(case, CPU))


@pytest.mark.parametrize(
    ("change", "what"),
    [(lambda loss, _: 1.001 * loss, "value"), (lambda loss, x: loss + 1e-3 * (x - x.detach()).sum(), "gradient")],
)
@pytest.mark.parametrize("exact", [True, False])
def test_a_wrong_provider_is_refused(change: Any, what: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(contrast, "EXACT", 0)
    with pytest.raises(AssertionError, match=f"its {what} is off by"):
        contrast.check(lambda inputs: change(contrast.ours(inputs), inputs.x), contrast.draw(SMALL, CPU))


@needs_peer
def test_the_peer_would_count_a_row_as_its_own_positive_with_a_reference_set() -> None:
    from pytorch_metric_learning.losses import SupConLoss

    x, of_x, keys, of_keys, _ = inputs = contrast.draw(BANKED, CPU)
    every, of_every = torch.cat([x, keys]), torch.cat([of_x, of_keys])
    plain = SupConLoss(temperature=contrast.TEMPERATURE)(x, of_x, ref_emb=every, ref_labels=of_every)
    assert abs(plain - contrast.ours(inputs)) > 0.01


@pytest.mark.parametrize("keys", [0, 500])
def test_memory_of_ours_grows_with_active_features_and_never_with_their_square(keys: int) -> None:
    block = 128
    for rows in (256, 1024, 2048):
        inputs = contrast.draw(contrast.Case("", rows, keys, dims=8, labels=5), CPU)
        peak = peak_memory(
            lambda x=inputs: contrast.value_and_gradient(lambda x: contrast.ours(x, block_size=block), x), CPU
        )
        # Of features of 32 bytes: eight copies, two of the bank's, and four blocks of similarities.
        assert peak <= 256 * rows + 64 * keys + 4 * 4 * block**2
    assert peak < 4 * 2048**2 / 20


def test_what_runs_out_of_memory_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("no limit on this system")
    case = contrast.Case("contrast-4096", 4096, dims=8)
    monkeypatch.setattr(contrast, "CASES", {case.name: case})
    monkeypatch.setattr(contrast, "PROVIDERS", {name: contrast.PROVIDERS[name] for name in ("ours", "materialised")})
    output = tmp_path / "times.jsonl"
    command = ["--case", case.name, "--limit", "0.25", "--seconds", "0.01", "--output", str(output)]
    assert contrast.main(command) == 0
    *records, failed = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(r["provider"], r["metric"]) for r in records} == {("ours", m) for m in ("forward", "both", "memory")}
    assert all(0 < r["p20"] <= r["p50"] <= r["p80"] for r in records)
    assert list(failed) == [*records[0], "reason"]
    assert (failed["provider"], failed["metric"], failed["rows"], failed["p50"]) == (
        "materialised",
        "failed",
        4096,
        None,
    )
    assert failed["reason"].startswith("needs more than 0.25 GiB: RuntimeError: ")
    assert "contrast-4096: materialised failed: needs more than 0.25 GiB" in capsys.readouterr().out


def test_a_process_that_dies_or_fails_otherwise_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = {
        "ours": contrast.Examined(memory=1000),
        "materialised": contrast.Examined(trouble="failed", reason="BrokenProcessPool: it died"),
        "pytorch-metric-learning": contrast.Examined(trouble="refused", reason="its value is off by 1"),
    }
    monkeypatch.setattr(contrast, "CASES", {"small": SMALL})
    monkeypatch.setattr(contrast, "examine", lambda name, *_: found[name])
    output = tmp_path / "times.jsonl"
    assert contrast.main(["--case", "small", "--seconds", "0.01", "--output", str(output)]) == 1
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(r["provider"], r["metric"]) for r in records if r["provider"] != "ours"] == [("materialised", "failed")]
    out = capsys.readouterr().out
    assert "small: materialised failed: BrokenProcessPool: it died" in out
    assert "small: pytorch-metric-learning refused: its value is off by 1" in out


def _record(case: contrast.Case, provider: str, metric: str, p50: float | None) -> Any:
    machine = {"device": "CPU", "threads": 2, "torch": "2", "mlcorr": "0", "triton": None, "cuda": None}
    return {
        "schema": 1, **machine, "case": case.name, "rows": case.rows, "labels": 80, "orders": [],
        "provider": provider, "metric": metric, "p50": p50,
    }  # fmt: skip


def test_growth_is_told_for_each_step() -> None:
    records = [_record(case, "ours", "memory", 1e6 + 2000.0 * case.rows) for case in contrast.CASES.values()]
    told = "for each further active feature: 2.00 kB from 512 to 4,096, 2.00 kB from 4,096 to 16,384; a row of"
    assert told in str(contrast.growth(records))
    assert "a row of 81,920 similarities alone would take 328 kB" in str(contrast.growth(records, "-bank"))
    assert contrast.growth(records[1:]) is None


def test_the_plot_ends_a_line_where_memory_did_not_suffice(tmp_path: Path) -> None:
    records = [
        _record(case, provider, metric, float(case.rows))
        for case in contrast.CASES.values()
        for provider in ("ours", "materialised")
        for metric in ("both", "memory")
        if provider == "ours" or case.rows < 16_384
    ]
    records.append(_record(contrast.CASES["contrast-16384"], "materialised", "failed", None))
    path, picture = tmp_path / "records.jsonl", tmp_path / "plot.png"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    plot.main([str(path), "--figure", "contrast", "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    for panel in plot.draw(records, plot.CONTRAST).axes:
        lines = {str(line.get_label()): list(line.get_ydata()) for line in panel.get_lines()}
        assert lines.pop("streamed (ours)") == [512.0, 4096.0, 16_384.0]
        ((*short, gap),) = lines.values()
        assert short == [512.0, 4096.0]
        assert gap != gap
