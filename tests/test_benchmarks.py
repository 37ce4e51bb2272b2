"""The benchmarks: a provider that is wrong gets no number, and a run leaves readable records."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gate, plot, run
from benchmarks.cases import CASES, Case, Inputs, draw
from benchmarks.definition import Loops, Vectorized, sequence_edges
from benchmarks.measure import Task, clock, peak_memory, time_in_turns
from benchmarks.providers import PROVIDERS, TRUTHS, Provider, reason_to_skip

CPU = torch.device("cpu")
SMALL = Case("small", 3, 5, (2, 3))
LINEAR = Case("linear", 3, 6, (2, 3, 4), delta=0.2)
KEYS = [
    *("schema", "device", "threads", "mlcorr", "torch", "triton", "cuda", "python", "commit"),
    *("case", "rows", "labels", "orders", "delta", "provider", "quantity", "metric", "unit", "p20", "p50", "p80"),
]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "small", SMALL)


def run_gate(name: str, case: Case) -> None:
    provider, inputs = PROVIDERS[name], draw(case, CPU)
    expected = gate.truth(provider.quantity, case, inputs)
    gate.check(provider, provider.build(case)(inputs), inputs.student, expected)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case.name}")
        for name, provider in PROVIDERS.items()
        for case in (SMALL, LINEAR, Case("pairs", 2, 6, (2,)), Case("tall", 9, 4))
        if not name.endswith("compile") and reason_to_skip(provider, case, CPU) is None
    ],
)
def test_providers_pass_their_gate(name: str, case: Case) -> None:
    run_gate(name, case)


@pytest.mark.parametrize("name", ["compile", "asymmetric-compile"])
def test_compiled_providers_compile_in_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiler(*a, **k, backend="aot_eager"))
    torch.compiler.reset()
    run_gate(name, SMALL)


@pytest.mark.parametrize("case", [SMALL, LINEAR, Case("one", 1, 5, (5,))], ids=lambda c: c.name)
def test_the_definition_is_the_quantity_loop_by_loop_and_vectorised(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.definition._CHUNK", 7)  # several chunks, the last one not full
    exact = draw(case, CPU).double()
    value = Vectorized(case)(exact)
    truth = PROVIDERS[TRUTHS["enumeration" if case.delta < 1 else "instance"]].build(case)(exact)
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(Loops(case)(exact).double(), truth, check_dtype=False)
    gradients = [torch.autograd.grad(x, exact.student)[0] for x in (value, truth)]
    torch.testing.assert_close(*gradients)


def test_sequences_are_those_of_distinct_labels_in_one_direction() -> None:
    for order, labels in ((2, 4), (3, 4), (4, 5), (5, 5)):
        edges = sequence_edges(order, labels)
        starts, ends = edges // labels, edges % labels
        assert torch.equal(starts[1:], ends[:-1])
        sequences = {tuple(s) for s in torch.cat([starts, ends[-1:]]).T.tolist()}
        assert len(sequences) == edges.shape[1] == Case("", 1, labels, (order,)).sequences
        assert all(len(set(s)) == order and tuple(reversed(s)) not in sequences for s in sequences)


def _wrong(change: Any) -> Provider:
    right = PROVIDERS["eager"]
    return Provider("instance", lambda case: lambda x: change(right.build(case)(x), x))


def _value(loss: Tensor, x: Inputs) -> Tensor:
    return loss + 0.01 * x.student.detach().norm()


def _gradient(loss: Tensor, x: Inputs) -> Tensor:
    return loss + (x.student - x.student.detach()).sum()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("change", "what"), [(_value, "value"), (_gradient, "gradient")])
def test_a_wrong_provider_gets_no_number(
    change: Any, what: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(PROVIDERS, "wrong", _wrong(change))
    output = tmp_path / "times.jsonl"
    command = ["--case", "small", "--providers", "wrong,bce", "--seconds", "0.01", "--output", str(output)]
    assert run.main(command) == 1
    assert f"small: wrong refused: its {what} is off by" in capsys.readouterr().out
    assert {json.loads(line)["provider"] for line in output.read_text().splitlines()} == {"bce"}


@pytest.mark.usefixtures("_small")
def test_a_provider_that_fails_gets_no_number_and_stops_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def build(case: Case) -> Any:
        raise NotImplementedError("one day\nor another")

    monkeypatch.setitem(PROVIDERS, "later", Provider("bce", build))
    assert run.main(["--case", "small", "--providers", "later", "bce", "--seconds", "0.01"]) == 1
    out = capsys.readouterr().out
    assert "small: later failed: NotImplementedError: one day\n" in out
    assert "│ bce" in out


@pytest.mark.usefixtures("_small")
def test_what_is_skipped_is_told_with_its_reason(capsys: Any) -> None:
    assert run.main(["--case", "small", "--providers", "triton", "batch-triton", "enumeration"]) == 0
    out = capsys.readouterr().out
    assert "small: triton, batch-triton skipped: needs a GPU" in out
    assert "small: enumeration skipped: for delta < 1" in out
    reasons = {name: reason_to_skip(PROVIDERS[name], CASES["coco-32x80"], CPU) for name in PROVIDERS}
    assert reasons["naive"] == "6.2e+08 label sequences, which is beyond its 4e+07"
    assert (reasons["asymmetric-timm"] is None) == (find_spec("timm") is not None)
    assert "delta >= 1" in str(reason_to_skip(PROVIDERS["eager"], LINEAR, CPU))
    assert reason_to_skip(PROVIDERS["triton"], SMALL, torch.device("cuda")) is None


@pytest.mark.usefixtures("_small")
def test_a_run_writes_one_record_a_measurement(tmp_path: Path) -> None:
    output = tmp_path / "times.jsonl"
    output.write_text('{"schema": 1}\n')  # a run appends
    command = ["--case", "small", "--providers", "naive, bce", "eager", "--seconds", "0.02", "--output", str(output)]
    assert run.main(command) == 0
    _, *records = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(list(r) == KEYS for r in records)
    metrics = ("forward", "backward", "both", "memory")
    expected = [("naive", "forward"), *((p, m) for p in ("bce", "eager") for m in metrics)]
    assert [(r["provider"], r["metric"]) for r in records] == expected
    assert all(0 < r["p20"] <= r["p50"] <= r["p80"] for r in records)
    assert all(r["unit"] == ("B" if r["metric"] == "memory" else "s") for r in records)
    of_eager = records[-1]
    assert (of_eager["schema"], of_eager["quantity"], of_eager["torch"]) == (1, "instance", torch.__version__)
    shape = [of_eager[key] for key in ("case", "rows", "labels", "orders", "delta")]
    assert shape == ["small", 3, 5, [2, 3], 1.0]


def test_names_are_separated_by_commas_or_spaces_and_may_be_patterns() -> None:
    names = run._names_in(CASES)
    assert names("coco-32x80,256x1000") == ["coco-32x80", "256x1000"]
    assert names("order-*-1x12") == [f"order-{n}-1x12" for n in range(2, 7)]
    assert run._flat([["a", "b"], ["b", "c"]]) == ["a", "b", "c"]
    assert run._flat(None) == []


@pytest.mark.parametrize("option", ["--case", "--providers"])
def test_an_unknown_name_is_refused_with_the_known_ones(option: str, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main([option, "bce,nonsense"])
    error = capsys.readouterr().err
    assert "unknown name" in error
    assert ("coco-32x80, nuswide-128x81" if option == "--case" else "naive, vectorized") in error


def test_the_default_set_names_what_exists() -> None:
    for case, providers in run.DEFAULT.items():
        assert case in CASES
        assert set(providers) <= set(PROVIDERS)


def test_the_clock_does_not_see_what_is_prepared() -> None:
    events: list[str] = []
    task = Task(lambda: events.append("prepare"), lambda _: events.append("run"), at_once=2)
    assert clock(task, 3, CPU) >= 0
    assert events == ["prepare", "prepare", "run", "run", "prepare", "run"]
    events.clear()
    assert clock(task, 100, CPU, limit=1e-9) > 0
    assert events.count("run") == 2  # the first two took longer than they may
    samples = time_in_turns({"short": task, "none": Task(lambda: None, lambda _: None)}, CPU, 0.001)
    assert all(1 <= len(of_task) <= 10 for of_task in samples.values())


def test_peak_memory_counts_the_result_and_what_is_freed_again() -> None:
    held = torch.ones(1000)
    assert peak_memory(lambda: held + 1, CPU) == pytest.approx(4000, abs=100)
    assert peak_memory(lambda: ((held + 1) * 2).sum(), CPU) == pytest.approx(8000, abs=100)


def _record(provider: str, metric: str, case: str, labels: int, orders: list[int], p50: float, **more: Any) -> Any:
    machine = {"device": "CPU", "threads": 2, "torch": "2", "mlcorr": "0", "triton": None, "cuda": None}
    sizes = {"case": case, "labels": labels, "orders": orders}
    return {"schema": 1, **machine, **sizes, "provider": provider, "metric": metric, "p50": p50, **more}


def test_the_plot_shows_the_latest_medians_and_leaves_gaps_open(tmp_path: Path) -> None:
    def at(provider: str, metric: str, labels: int, p50: float, **more: Any) -> Any:
        return _record(provider, metric, f"labels-32x{labels}", labels, [2, 3, 4], p50, **more)

    records = [
        *(at("eager", "both", labels, 1.0) for labels in (10, 20, 40)),
        *(at("eager", "memory", labels, 100.0) for labels in (10, 20, 40)),
        at("eager", "both", 20, 2.0),  # measured again
        *(at("naive", "forward", labels, 9.0) for labels in (10, 40)),
        _record("eager", "both", "order-3-1x80", 80, [3], 0.5),
        _record("eager", "both", "order-3-1x12", 12, [3], 7.0),
        at("eager", "both", 10, 3.0, device="GPU"),
        {"case": "pairs-1x80", "provider": "bce"},  # of before the schema
    ]
    path, picture = tmp_path / "records.jsonl", tmp_path / "new" / "plot.png"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    plot.main([str(path), "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")

    of_cpu = plot.of_device(records[:-1], None)
    time_c, time_n, memory_c, _ = plot.draw(of_cpu).axes
    lines = {str(line.get_label()): list(line.get_ydata()) for line in time_c.get_lines()}
    assert lines.pop("closed form") == [1.0, 2.0, 1.0]
    ((first, gap, last),) = lines.values()
    assert (first, last) == (9.0, 9.0)
    assert gap != gap
    assert [list(line.get_ydata()) for line in time_n.get_lines()] == [[0.5]]
    assert [list(line.get_ydata()) for line in memory_c.get_lines()] == [[100.0] * 3]
    assert len(plot.draw([r for r in of_cpu if r["metric"] != "memory"]).axes) == 2
    assert [r["p50"] for r in plot.of_device(records[:-1], "gpu")] == [3.0]
    with pytest.raises(SystemExit):
        plot.main([str(path), "--output", str(picture), "--device", "abacus"])
