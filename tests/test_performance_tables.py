"""The tables of the page on performance are what the kept measurements give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import tables

PAGE = Path(__file__).parents[1] / "docs" / "performance.rst"


@pytest.mark.parametrize("name", sorted(tables.tables()))
def test_a_table_is_what_the_results_give(name: str) -> None:
    there = (tables.TABLES / name).read_text(encoding="utf-8")
    assert there == tables.tables()[name], "python -m benchmarks.tables writes them anew"


def test_the_page_shows_every_table_once() -> None:
    shown = re.findall(r"^\.\. include:: performance_tables/(\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(tables.tables()) == sorted(path.name for path in tables.TABLES.iterdir())


def test_every_table_says_where_its_figures_are_from() -> None:
    for name, text in tables.tables().items():
        assert re.search(r"``benchmarks/results/[\w.-]+``", text), name
        assert re.search(r"``python -m (benchmarks|examples)\.[^`]+``", text), name
        assert "PyTorch 2" in text or "Triton" in text, name


def test_check_names_what_is_not_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0
    assert tables.main(["--output", str(tmp_path)]) == 0
    (tmp_path / "costs.inc").write_text("something else\n")
    (tmp_path / "old.inc").write_text("of a table that is no more\n")
    capsys.readouterr()
    assert tables.main(["--output", str(tmp_path), "--check"]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["costs.inc", "old.inc"]
    assert tables.main(["--output", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == tables.tables()


def test_the_latest_record_counts_and_failures_do_not() -> None:
    records = [{"case": "a", "provider": "x", "metric": m, "p50": p} for m, p in (("both", 1.0), ("both", 2.0))]
    failure = {"case": "a", "provider": "y", "metric": "failed", "p50": None}
    assert tables.medians([*records, failure]) == {("a", "x", "both"): 2.0}


def test_records_of_two_machines_make_no_table() -> None:
    records = [json.loads(line) for line in (tables.RESULTS / "cpu.jsonl").read_text().splitlines()]
    with pytest.raises(ValueError, match="expected the records of one machine"):
        tables._origin([*records, {**records[0], "threads": 64}], "cpu.jsonl", "python -m benchmarks.run")


def test_the_costs_on_the_page_of_choices_are_those_of_the_results() -> None:
    text = " ".join((PAGE.parent / "choosing.rst").read_text(encoding="utf-8").split())
    cpu, contrast, layers = (
        tables.medians(json.loads(line) for line in (tables.RESULTS / name).read_text().splitlines())
        for name in ("cpu.jsonl", "contrast-cpu.jsonl", "layers-cpu.jsonl")
    )

    def times(found: tables.Medians, case: str, provider: str, beside: str) -> str:
        return tables._ratio(found, case, provider, beside, "both")

    case, head = "256x1000", "head-32x80-of-2048x14x14"
    objective, batch, instance = (times(cpu, case, name, "bce") for name in ("objective", "batch", "eager"))
    compiled = times(cpu, case, "objective-compile", "bce-compile")
    for shown in (
        f"- {times(cpu, case, 'asymmetric', 'bce')}×",
        f"{objective}× for BCE, MLD and instance level; another {batch}× for batch level; compiled {compiled}×",
        f"{instance}× (instance level), {batch}× (batch level)",
        f"{tables._time(contrast, 'contrast-512', 'ours', 'both')[:3]} ms for 512 active features, "
        f"{tables._time(contrast, 'contrast-4096', 'ours', 'both')} for 4,096",
        f"{times(layers, head, 'OPRL', 'Query2Label')}× Query2Label's head, {times(layers, head, 'OPRL', 'linear')}×",
    ):
        assert shown in text, shown
