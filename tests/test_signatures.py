"""Parameters of everything public, and their defaults, are what ``signatures.txt`` lists: a change of one is meant.

python -m tests.test_signatures            # writes the list anew
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from tests.test_public_names import is_record, public_names

LISTED = Path(__file__).with_name("signatures.txt")


def of(call: object) -> str:
    """Return the parameters of a call without their types, which some versions of Python write otherwise."""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(call).parameters.values()
        if parameter.name != "self"
    ]
    return str(inspect.Signature(plain))


def signatures() -> Iterator[str]:
    """Yield a line for each public function, class and method of one that the library defines."""
    for name, value in sorted(public_names().items()):
        if not callable(value) or is_record(value):
            continue
        yield f"{name}{of(value)}"
        if not inspect.isclass(value):
            continue
        for method, function in sorted(inspect.getmembers(value, inspect.isroutine)):
            if not method.startswith("_") and getattr(function, "__module__", "").startswith("mlcorr."):
                yield f"    {method}{of(function)}"


def test_parameters_and_defaults_are_the_listed_ones() -> None:
    assert list(signatures()) == LISTED.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    LISTED.write_text("".join(f"{line}\n" for line in signatures()), encoding="utf-8")
