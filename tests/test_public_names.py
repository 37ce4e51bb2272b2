"""Every public name is typed, documented with an example, in the API pages and in the changelog.

What is met in an example of something else needs none: a record (a NamedTuple, a dataclass or a Protocol), and "What
:func:`f` returns".
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import mlcorr
import mlcorr.functional
import mlcorr.grouping
import mlcorr.layers
import mlcorr.losses
import mlcorr.losses.partial
import mlcorr.ops.contrast
import mlcorr.ops.norder
import mlcorr.systems

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/api"
LISTED = (mlcorr, mlcorr.functional, mlcorr.grouping, mlcorr.layers, mlcorr.losses, mlcorr.losses.partial)

Lack = tuple[str, str]


def public_modules() -> Iterator[ModuleType]:
    """Yield the modules whose public names are what they define: the metrics and the systems."""
    metrics = (m.name for m in pkgutil.iter_modules(mlcorr.__path__, "mlcorr.") if m.name.startswith("mlcorr.metrics"))
    systems = (m.name for m in pkgutil.iter_modules(mlcorr.systems.__path__, "mlcorr.systems."))
    for name in (*metrics, *systems):
        if not name.rpartition(".")[2].startswith("_"):
            try:
                yield importlib.import_module(name)
            except ImportError:
                # A module that needs an optional package is named after it.
                if importlib.util.find_spec(name.rpartition("_")[2]):
                    raise


def defined_in(module: ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None)
    return listed or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and value.__module__ == module.__name__
    ]


@functools.cache
def public_names() -> dict[str, object]:
    """Return every public thing by the first name that it is public under."""
    names = [(module, name) for module in LISTED for name in module.__all__]
    names += [(module, name) for module in public_modules() for name in defined_in(module)]
    names += [(module, "select_backend") for module in (mlcorr.ops.norder, mlcorr.ops.contrast)]
    found: dict[int, tuple[str, object]] = {}
    for module, name in names:
        value = getattr(module, name)
        found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


def is_record(value: object) -> bool:
    return inspect.isclass(value) and (
        issubclass(value, tuple) or dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False)
    )


def members_of(value: type) -> Iterator[tuple[str, object]]:
    """Yield the public methods and properties of a class, its constructor too, that this package wrote."""
    for base in value.__mro__:
        if base.__module__.partition(".")[0] != "mlcorr":
            continue
        for name, member in vars(base).items():
            if name != "__init__" and (name.startswith("_") or name in getattr(base, "_fields", ())):
                continue
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function) and function.__module__.partition(".")[0] == "mlcorr":
                yield name, function


def without_type(function: Callable[..., object]) -> Iterator[str]:
    """Yield the parameters without an annotation, and "the return value"."""
    signature = inspect.signature(function)
    first = next(iter(signature.parameters), None)
    for name, parameter in signature.parameters.items():
        if parameter.annotation is parameter.empty and not (name == first and name in ("self", "cls")):
            yield name
    if signature.return_annotation is signature.empty:
        yield "the return value"


def untyped() -> Iterator[Lack]:
    for name, value in public_names().items():
        functions = members_of(value) if inspect.isclass(value) else [("", value)]
        for member, function in functions:
            for what in without_type(function):
                yield f"{name}.{member}".rstrip("."), f"has no type for {what}"


def undocumented() -> Iterator[Lack]:
    for name, value in public_names().items():
        text = value.__doc__ or ""
        # A NamedTuple and a dataclass without a docstring are given their signature for one.
        if not text or text.startswith(f"{name.rpartition('.')[2]}("):
            yield name, "has no docstring"
        elif not (">>>" in text or is_record(value) or text.startswith("What :func:")):
            yield name, "has no example in its docstring"
        if inspect.isclass(value):
            for member, _ in members_of(value):
                said = inspect.getdoc(getattr(value, member)) or re.search(rf"^ +{member}: ", text, re.MULTILINE)
                if member != "__init__" and not said:
                    yield f"{name}.{member}", "has no docstring"


def meanings(dotted: str) -> list[object]:
    """Return what a dotted name may stand for: more than one thing where a function is named as its module is."""
    parts = dotted.split(".")
    found = []
    for count in range(1, len(parts) + 1):
        with contextlib.suppress(ImportError, AttributeError):
            found.append(pkgutil.resolve_name(".".join(parts[:count]) + ":" + ".".join(parts[count:])))
    return found


def on_the_pages() -> Iterator[tuple[Path, str]]:
    """Yield page and dotted name of every ``.. auto…::`` of the API pages and of the members that it lists."""
    for page in sorted(PAGES.rglob("*.rst")):
        text = page.read_text(encoding="utf-8") + "\n"
        for match in re.finditer(r"^\.\. auto\w+:: *(\S+)\n((?: +:.*\n)*)", text, re.MULTILINE):
            yield page, match[1]
            for members in re.findall(r":members:(.*)", match[2]):
                yield from ((page, f"{match[1]}.{member.strip()}") for member in members.split(",") if member.strip())


def outside_the_pages() -> Iterator[Lack]:
    shown = {id(meaning) for _, name in on_the_pages() for meaning in meanings(name)}
    for name, value in public_names().items():
        if id(value) not in shown:
            yield name, f"is on no page of {PAGES.relative_to(ROOT)}"


def invented() -> Iterator[Lack]:
    for page, name in on_the_pages():
        if not meanings(name):
            yield name, f"is on {page.relative_to(ROOT)} and does not exist"


def outside_the_changelog() -> Iterator[Lack]:
    code = " ".join(re.findall(r"`[^`]+`", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    for name in public_names():
        # Two modules have a `select_backend`, so that it takes more than its last part to name one.
        wanted = name if name.startswith("mlcorr.ops.") else name.rpartition(".")[2]
        if not re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", code):
            yield name, "is not in CHANGELOG.md"


@pytest.mark.parametrize("lacks", [untyped, undocumented, invented, outside_the_pages, outside_the_changelog])
def test_every_public_name_is(lacks: Callable[[], Iterable[Lack]]) -> None:
    found = sorted(set(lacks()))
    assert not found, "\n" + "\n".join(f"{name} {what}" for name, what in found)


def test_names_are_found() -> None:
    names = public_names()
    assert {
        "mlcorr.MultiOrderDependencyLoss",
        "mlcorr.functional.purify",
        "mlcorr.grouping.affinity",
        "mlcorr.metrics.multilabel_scores",
        "mlcorr.systems.mdkd.MDKDObjective",
        "mlcorr.ops.norder.select_backend",
    } <= set(names)
    for module in LISTED:
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert id(getattr(module, name)) in set(map(id, names.values()))


def test_a_lack_is_told() -> None:
    def typed(x: int, *, y: str = "") -> None: ...
    def careless(x, *others, y: int = 0): ...

    assert not list(without_type(typed))
    assert list(without_type(careless)) == ["x", "others", "the return value"]
