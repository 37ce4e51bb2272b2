"""No module and no class of the library keeps something that calls change, so that threads have nothing in common."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import types
import typing
from collections import namedtuple
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mlcorr

IMMUTABLE = (
    *(bool, int, float, complex, str, bytes, range, slice, type(None), type(Ellipsis), Fraction, Path),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, types.MappingProxyType),
    *(type, ModuleType, types.BuiltinFunctionType, types.GenericAlias, types.UnionType, typing.TypeVar),
    type(namedtuple("_", "field").field),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType),
)
TABLE = "a table of constants, which is read and never written"
MAY_BE = {
    "mlcorr._selfcheck._MODULES": TABLE,
    "mlcorr.grouping.figures._TITLES": TABLE,
    "mlcorr.grouping.partition._OF_THE_PROCESS": "a lock, which is there for threads",
    "mlcorr.ops.contrast.streamed._WIDEST": TABLE,
    "mlcorr.ops.contrast.streamed_triton._PRODUCTS": TABLE,
    "mlcorr.ops.contrast.streamed_triton._GRADIENT": TABLE,
    "mlcorr.ops.contrast.streamed_triton._WIDTH": TABLE,
    "mlcorr.ops.norder.enumeration_triton._ROWS": TABLE,
    "mlcorr.ops.norder.closed_form_triton._PER_UNIT": "a number of kernels",
    "mlcorr.ops.registration._LIBRARY": "PyTorch's register of operators, written while the library is imported",
}


def modules() -> Iterator[ModuleType]:
    yield mlcorr
    for info in pkgutil.walk_packages(mlcorr.__path__, "mlcorr."):
        if not info.name.endswith("__main__"):  # which runs a program
            try:
                yield importlib.import_module(info.name)
            except ImportError:
                if not info.name.endswith(("_triton", "_torchmetrics", "figures")):  # extras
                    raise


def immutable(value: object) -> bool:
    """Return whether nothing can be kept in a value, as far as its type tells."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(immutable, value))
    if isinstance(value, property):
        return all(map(immutable, (value.fget, value.fset, value.fdel)))
    if isinstance(value, (staticmethod, classmethod)):
        return immutable(value.__func__)
    if inspect.isfunction(value):
        kept = {name: each for name, each in vars(value).items() if not name.startswith("__")}  # such as __wrapped__
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return not kept and all(map(immutable, (value.__defaults__, *(value.__kwdefaults__ or {}).values(), *closed)))
    if isinstance(value, types.MethodType):
        return isinstance(value.__self__, torch.no_grad)  # of which a decorated function makes a new one at each call
    return isinstance(value, IMMUTABLE) or type(value).__module__ in ("typing", "__future__")


def made_by_python(owner: object, name: str) -> bool:
    """Return whether a name is one that a module, a NamedTuple, a dataclass, a Protocol or a metaclass brings."""
    if name == "__repr__" and dataclasses.is_dataclass(owner):
        return True  # it knows which objects it is about to show
    if name in ("_abc_impl", "_field_defaults", "_fields", "_is_protocol", "_is_runtime_protocol"):
        return inspect.isclass(owner)
    return name.startswith("__") and name.endswith("__") and not inspect.isfunction(vars(owner)[name])


def kept_by(owner: object, path: str) -> Iterator[str]:
    """Yield the dotted names of what may be changed in a module, or in a class of it."""
    for name, value in vars(owner).items():
        if made_by_python(owner, name) or isinstance(value, ModuleType):
            continue
        own = getattr(value, "__module__", None) == (
            owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        )
        if inspect.isclass(value):
            if own:
                yield from kept_by(value, f"{path}.{name}")
        elif (own or not inspect.isfunction(value)) and not immutable(value):
            yield f"{path}.{name}"


def is_kernel(name: str) -> bool:
    """Return whether it is Triton's, which keeps compiled kernels and guards them itself."""
    owner, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(owner), last, None) if owner.endswith("_triton") else None
    return type(value).__module__.startswith("triton.runtime")


def test_modules_and_classes_keep_nothing() -> None:
    found = {name for module in modules() for name in kept_by(module, module.__name__) if not is_kernel(name)}
    assert found <= MAY_BE.keys(), sorted(found - MAY_BE.keys())


def test_nothing_is_explained_that_is_not_there() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("matplotlib")
    assert {name for module in modules() for name in kept_by(module, module.__name__)} >= MAY_BE.keys()


def written_tables(tree: ast.AST, tables: set[str]) -> Iterator[str]:
    """Yield where a function rebinds or changes what stands at module level."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
    for node in (each for function in functions for each in ast.walk(function)):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"
        owner = getattr(node, "value", None)
        if not isinstance(owner, ast.Name) or owner.id not in tables:
            continue
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield f"line {node.lineno}: an entry of {owner.id}"
        if isinstance(node, ast.Attribute) and node.attr not in ("get", "items", "keys", "values"):
            yield f"line {node.lineno}: {owner.id}.{node.attr}"


def test_no_code_writes_at_module_level() -> None:
    tables = {name.rpartition(".")[2] for name, why in MAY_BE.items() if why == TABLE}
    for path in Path(mlcorr.__file__).parent.rglob("*.py"):
        found = list(written_tables(ast.parse(path.read_text(encoding="utf-8")), tables))
        assert not found, f"{path}: {found}"


def test_what_is_kept_is_found() -> None:
    """Else the walk could find nothing anywhere."""
    module = ModuleType("sample")
    code = """
import contextvars, functools, threading, torch
from collections import Counter
ONE = (1, "a", torch.float32)
LIST, SET, BYTES, COUNTS, TENSOR = [], set(), bytearray(), Counter(), torch.zeros(1)
LOCK, LOCAL, CONTEXT, IN_TUPLE = threading.Lock(), threading.local(), contextvars.ContextVar("x"), ([],)
@functools.lru_cache
def cached(): ...
def default(x=[]): ...
def plain(x=1): ...
def counting(): ...
counting.calls = 0
def _closure():
    seen = {}
    return lambda: seen
closure = _closure()
class Kept:
    numbers = {}
    def method(self, into=[]): ...
"""
    exec(code, vars(module))
    assert set(kept_by(module, "sample")) == {
        *(f"sample.{name}" for name in ("LIST", "SET", "BYTES", "COUNTS", "TENSOR", "LOCK", "LOCAL", "CONTEXT")),
        *(f"sample.{name}" for name in ("IN_TUPLE", "cached", "default", "counting", "closure")),
        *("sample.Kept.numbers", "sample.Kept.method"),
    }
    assert list(
        written_tables(ast.parse("def f():\n    global x\n    T[0] = 1\n    T.pop()\n    T.get(1)"), {"T"})
    ) == [
        "line 2: global x",
        "line 3: an entry of T",
        "line 4: T.pop",
    ]
