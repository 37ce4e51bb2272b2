"""Structures in an argument's place, spelled out by bytes as a fuzzer does (see ``fuzz_structures.py``)."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import fuzz_structures
from tests.contract.fuzz_values import Bytes


@pytest.fixture(autouse=True)
def _kernels_on_devices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=4, max_size=120))
def test_a_structure_gives_a_result_or_an_error_that_names_the_argument(data: bytes) -> None:
    done = fuzz_structures.structured(Bytes(data))
    assert done is None or done.violation is None, f"{done.entry.title} of {done.texts}: {done.violation}"


def test_bytes_reach_every_structure() -> None:
    structures, every = fuzz_structures.targets()
    assert {argument for _, argument in structures} == set(fuzz_structures.STRUCTURES)
    assert len(every) > 300
    tried = [fuzz_structures.structured(Bytes(bytes([n % 2, 0, n, 0]))) for n in range(100)]
    named = {done.entry.title for done in tried if done is not None}
    assert len(named) > 25


def test_without_atheris_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="pip install atheris"):
        fuzz_structures.main()
