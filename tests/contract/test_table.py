"""The table of the contract is complete: every public name has a case, every property a cell for every case."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tests.contract
from tests.contract.case import TABLE, TESTED, Sizes, scalar, with_gradients
from tests.contract.cases import CASES, RECORDS
from tests.test_public_names import public_names

for module in pkgutil.iter_modules(tests.contract.__path__, "tests.contract."):
    if module.name.rpartition(".")[2].startswith("test_") and module.name != __name__:
        importlib.import_module(module.name)  # fills the table


def test_every_public_name_has_a_case() -> None:
    names = {name.rpartition(".")[2] for name in public_names() if not name.endswith("select_backend")}
    names |= {"norder.select_backend", "contrast.select_backend"}
    assert names == {name.partition(",")[0] for name in CASES} | RECORDS


def test_every_property_says_something_of_every_case() -> None:
    assert TABLE
    for title, cells in TABLE.items():
        assert cells.keys() == CASES.keys(), title
        assert TESTED in cells.values(), title


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_it_says(name: str) -> None:
    """Else a property could hold of nothing."""
    case = CASES[name]
    arguments = with_gradients(case, case.draw(Sizes()))
    assert case.floating.keys() <= arguments.keys()
    assert set(case.leaves) <= case.floating.keys()
    output = case(arguments)
    if case.leaves:
        scalar(output).backward()
    for leaf in case.leaves:
        assert (arguments[leaf].grad != 0).any(), leaf
