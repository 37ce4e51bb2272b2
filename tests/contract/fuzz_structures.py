"""Arguments out of bytes: lists, mappings and odd things in one another, for whatever takes more than a tensor.

``python -m tests.contract.fuzz_structures -runs=100000`` has atheris look for bytes that reach new lines of the library
(``pip install atheris``; every option is one of libFuzzer). The same bytes mean the same arguments to a test of this.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # atheris sees the lines of what is imported after it
    from tests.contract.entries.entry import Entry
    from tests.contract.fuzz import Trial
    from tests.contract.fuzz_values import Source

# Arguments that are structures; of all others a half of the trials.
STRUCTURES = ("orders", "schedule", "paths", "names", "file_names", "batches", "state", "output", "model", "content")
TOP_FIELDS = ("co", "dis", "names", "num_groups", "tau", "method", "ncut_co", "ncut_dis", "version", "format")


@functools.cache
def targets() -> tuple[list[tuple[Entry, str]], list[tuple[Entry, str]]]:
    """Return the pairs of an entry and an argument of it: those that are structures, and all."""
    from tests.contract.entries import ENTRIES
    from tests.contract.fuzz import goods

    every = [(entry, argument) for entry in (*ENTRIES, file_of_groups()) for argument in goods(entry)]
    return [pair for pair in every if pair[1] in STRUCTURES], every


def file_of_groups() -> Entry:
    from mlcorr.grouping import LabelGroups
    from tests.contract.entries.entry import Entry

    def load(_: object, content: Any) -> LabelGroups:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "groups.json"
            path.write_text(json.dumps(content), encoding="utf-8")
            return LabelGroups.load(path, dis=path if isinstance(content, list) else None)

    good = {"format": "mlcorr.LabelGroups", "version": 1, "num_groups": 2, "tau": 2.0, "method": "given"}
    good |= {"ncut_co": None, "ncut_dis": None, "names": ["a", "b"], "co": [0, 1], "dis": [1, 0]}
    published = [{"0": 0, "2": 1}, {"1": 0}]
    return Entry(
        name="LabelGroups",
        what="load of a file",
        call=load,
        good=lambda: {"content": [good, published]},
        required=("content",),
        also=("path", *TOP_FIELDS),
    )


def structured(source: Source, limit: float = 20.0) -> Trial | None:
    """Call something with good arguments, of which one is a structure that the source spells out."""
    from tests.contract.fuzz import attempt, goods
    from tests.contract.fuzz_values import described, nested, nested_json, pick

    entry, argument = pick(source, targets()[source.below(2)])
    good = goods(entry)
    given = {name: good[name][0] for name in good if name in entry.required}
    if argument == "content":
        value = nested_json(source)
        if source.below(2):
            value = {**good["content"][0], pick(source, TOP_FIELDS): value}
    else:
        value = nested(source)
        start = pick(source, good[argument])
        if isinstance(start, dict) and start and source.below(2):
            value = {**start, pick(source, list(start)): value}
        elif isinstance(start, (list, tuple)) and not hasattr(start, "_fields") and source.below(2):
            value = [*start, value]
    given[argument] = value
    return None if entry.skip(given) else attempt(entry, given, {argument: described(value)}, limit)


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("this needs atheris, for Linux and macOS: pip install atheris")
    with atheris.instrument_imports(include=["mlcorr"]):
        importlib.import_module("tests.contract.fuzz")

    class Provided:
        def __init__(self, data: bytes) -> None:
            self._provider = atheris.FuzzedDataProvider(data)

        def below(self, count: int) -> int:
            return self._provider.ConsumeIntInRange(0, count - 1)

    def one_input(data: bytes) -> None:
        done = structured(Provided(data), limit=0)  # libFuzzer has a limit of its own, -timeout
        if done is not None and done.violation is not None:
            raise AssertionError(f"{done.entry.title} of {done.texts}: {done.violation}")

    os.environ.pop("TRITON_INTERPRET", None)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
