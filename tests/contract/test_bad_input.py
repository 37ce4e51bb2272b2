"""Whatever the arguments are: a result that follows from them, or an error that names one and changes nothing.

Some thousands of calls, the same each time; ``python -m tests.contract.fuzz`` makes as many as one likes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contract.case import each_case
from tests.contract.cases import CASES
from tests.contract.entries import ENTRIES
from tests.contract.entries.entry import Entry
from tests.contract.fuzz import attempt, goods, trial
from tests.contract.fuzz_values import DTYPES, FLAGS, FORMS, SHAPES, TENSORS, Seeded

DRAWN = 60  # calls of a case
NO_TENSOR = "takes no tensor"


@pytest.fixture(autouse=True)
def _kernels_on_devices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the interpreter would take minutes


def of_case(name: str) -> list[Entry]:
    """Return what may be called of a case: the function, or the constructor and methods."""
    return [entry for entry in ENTRIES if entry.name == name.partition(",")[0]]


def tensor_arguments(entry: Entry) -> list[tuple[str, Tensor]]:
    return [(name, values[0]) for name, values in goods(entry).items() if isinstance(values[0], Tensor)]


def call_with(entry: Entry, name: str, value: Any) -> str | None:
    """Return how the contract is violated where one argument has this value and all others are good, else None."""
    given = {other: values[0] for other, values in goods(entry).items() if other in entry.required}
    return attempt(entry, {**given, name: value}, {}).violation


def violations(entries: list[Entry], makes: dict[str, Callable[[Tensor], Any]]) -> Iterator[str]:
    """Yield what is wrong where a tensor argument is replaced by each of what ``makes`` make of it."""
    for entry in entries:
        for argument, tensor in tensor_arguments(entry):
            for what, make in makes.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # prototypes of PyTorch say that they are such
                    try:
                        value = make(tensor)
                    except (RuntimeError, IndexError, NotImplementedError):
                        continue  # there is no such tensor
                found = call_with(entry, argument, value)
                if found:
                    yield f"{entry.title}({argument}: {what}): {found}"


# A setting of another computation changes nothing about its arguments: once for each name is enough.
VARIANTS = {name: "is a setting of the case before the comma" for name in CASES if "," in name}
WITHOUT_TENSORS = {name: NO_TENSOR for name in CASES if not any(map(tensor_arguments, of_case(name)))}


def test_everything_public_is_called() -> None:
    assert {entry.name for entry in ENTRIES} == {name.partition(",")[0] for name in CASES}


@each_case("bad input drawn at random")
def test_arguments_at_random(name: str) -> None:
    entries = of_case(name)
    for number in range(DRAWN):
        done = trial(entries[number % len(entries)], Seeded((name, number)))
        assert done is None or done.violation is None, f"{done.entry.title} of {done.texts}: {done.violation}"


@each_case("tensors of other shapes", but={**VARIANTS, **WITHOUT_TENSORS})
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    found = list(violations(of_case(name), dict(SHAPES)))
    assert not found, "\n".join(found)


@each_case("tensors of other dtypes and forms", but={**VARIANTS, **WITHOUT_TENSORS})
def test_forms_of_tensors(name: str) -> None:
    forms: dict[str, Callable[[Tensor], Any]] = dict(FORMS)
    forms |= {str(dtype): lambda x, dtype=dtype: x.to(dtype) for dtype in DTYPES}  # type: ignore[misc]
    forms |= {what: lambda _, make=make: make() for what, make in TENSORS.items()}  # type: ignore[misc]
    found = list(violations(of_case(name), forms))
    assert not found, "\n".join(found)


# ---------------------------------------------------------------------------------------------- flags and choices


def settings_of(kind: type) -> list[tuple[Entry, str, Any]]:
    """Return the arguments whose good values are all of this type, or None, and one such value."""
    found = []
    for entry in ENTRIES:
        for name, values in goods(entry).items():
            some = [value for value in values if value is not None]
            if some and all(type(value) is kind for value in some):
                found.append((entry, name, some[0]))
    return found


def error_of(entry: Entry, name: str, value: Any) -> Exception:
    given = {other: values[0] for other, values in goods(entry).items() if other in entry.required}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: ") as raised:
        entry.call(entry.make(), **{**given, name: value})
    return raised.value


def test_a_flag_is_true_or_false_and_nothing_that_counts_as_such() -> None:
    flags = settings_of(bool)
    assert {"detach_focal", "trust_negatives", "correct", "final_activation", "residual"} <= {
        name for _, name, _ in flags
    }
    for entry, name, _ in flags:
        for value in FLAGS:
            if value is not None:
                assert isinstance(error_of(entry, name, value), TypeError), (entry.title, name)


def test_a_choice_is_a_string_that_is_written_as_it_is() -> None:
    choices = [each for each in settings_of(str) if each[1] not in ("path", "device", "method", "dis")]
    assert {"reduction", "inputs", "backend", "bank", "fusion", "storage"} <= {name for _, name, _ in choices}
    for entry, name, value in choices:
        for wrong in (value.upper() + " ", [value], {value}, np.array([value, value]), 3, torch.zeros(2), b"a"):
            error_of(entry, name, wrong)


# ------------------------------------------------------------------------------------------------- the checker


def tells(call: Callable[..., Any], **more: Any) -> str:
    entry = Entry(name="x", call=call, good=lambda: {"x": [torch.zeros(4, 5)], "y": [torch.zeros(4, 5)]}, **more)
    given = {"x": torch.zeros(4, 5), "y": torch.zeros(5)}
    return attempt(entry, given, {}, limit=0.2).violation or ""


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def spoiling(thing: nn.Module, x: Tensor, **_: Any) -> None:
    with torch.no_grad():
        thing.weight.add_(1)
    raise ValueError(f"x: expected another shape, got {x.shape}")


def forgetting(_: Any, x: Tensor, **__: Any) -> None:
    x.add_(1)
    raise ValueError("x: expected something else")


def warning(*_: Any, **__: Any) -> None:
    warnings.warn("careful", UserWarning, stacklevel=2)


def test_the_checker_tells() -> None:
    """Else all of this could hold of nothing."""
    assert "RuntimeError" in tells(raising(RuntimeError("x: expected something")))
    assert "ValueError" in tells(raising(ValueError("the tensors do not fit")))
    assert "ValueError" in tells(raising(ValueError("z: expected another argument")))
    assert "TypeError" in tells(raising(TypeError("Input: expected something")))
    assert "longer" in tells(lambda *_, **__: time.sleep(1))
    assert "does not fit" in tells(lambda _, x, y: x + y, shapes={"x": "B C", "y": "B C"})
    assert "broadcast" in tells(lambda _, x, y: x, shapes={"x": "~y"})  # noqa: ARG005
    assert "result has the shape" in tells(lambda _, x, y: x, result=lambda _: "C")  # noqa: ARG005
    assert "not as they were" in tells(spoiling, make=lambda: nn.Linear(2, 2))
    assert "not as they were" in tells(forgetting)
    assert "careful" in tells(warning)
    assert not tells(raising(ValueError("x: expected something")))
    assert not tells(raising(ValueError("x[3].shape: expected something")))
    assert not tells(lambda _, x, y: x + y)
    assert not tells(raising(OSError("no")), errors=(OSError,))


def test_what_is_drawn_is_refused_and_accepted() -> None:
    """Of good and bad arguments alike there are many."""
    entry = next(each for each in ENTRIES if each.title == "asymmetric_loss")
    done = [trial(entry, Seeded(number)) for number in range(200)]
    outcomes = [each.outcome for each in done if each is not None]
    assert outcomes.count("result") > 20
    assert outcomes.count("TypeError") > 20
    assert outcomes.count("ValueError") > 20
    assert trial(replace(entry, skip=lambda _: True), Seeded(0)) is None
