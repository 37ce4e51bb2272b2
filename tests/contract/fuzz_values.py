"""Values that may stand in an argument's place: of another type, near a good value, or nested out of such.

Everything is drawn by a :class:`Source`, a sequence of choices: of a seeded generator, or of the bytes of a fuzzer.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Named = tuple[str, Any]  # what a report calls a value, and the value
NAN, INF = float("nan"), float("inf")


class Source(Protocol):
    """A sequence of choices."""

    def below(self, count: int) -> int:
        """Return a number in [0, count)."""


class Seeded:
    """Choices that follow from a seed."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))

    def below(self, count: int) -> int:
        return self._random.randrange(count)


class Bytes:
    """Choices that follow from bytes, two for each; 0 where there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        taken = self._data[self._at : self._at + 2]
        self._at += 2
        return int.from_bytes(taken, "little") % count


def pick(source: Source, options: Sequence[Any]) -> Any:
    return options[source.below(len(options))]


# ------------------------------------------------------------------------------------------------- of another type

DTYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
    *(torch.complex64, torch.complex128),
)


class Odd:
    """Something whose every representation fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no representation")


OBJECTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "str": lambda: "abc",
    "empty str": lambda: "",
    "digits": lambda: "1",
    "bytes": lambda: b"abc",
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "2.5": lambda: 2.5,
    "complex": lambda: 1 + 2j,
    "nan": lambda: NAN,
    "inf": lambda: INF,
    "-inf": lambda: -INF,
    "-0.0": lambda: -0.0,
    "10**30": lambda: 10**30,
    "-10**30": lambda: -(10**30),
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "2**63": lambda: 2**63,
    "Fraction": lambda: Fraction(1, 3),
    "huge Fraction": lambda: Fraction(10**400, 3),
    "Decimal": lambda: Decimal("0.5"),
    "Decimal nan": lambda: Decimal("nan"),
    "array": lambda: np.zeros((4, 5)),
    "integer array": lambda: np.zeros(5, dtype=np.int64),
    "array of objects": lambda: np.array([None, "a"], dtype=object),
    "array of strings": lambda: np.array(["a", "b"]),
    "array of dates": lambda: np.zeros((4, 5), dtype="datetime64[s]"),
    "array of complex": lambda: np.zeros((4, 5), dtype=complex),
    "array of half precision": lambda: np.zeros((4, 5), dtype=np.float16),
    "array of long doubles": lambda: np.zeros((4, 5), dtype=np.longdouble),
    "record array": lambda: np.zeros(4, dtype=[("a", float), ("b", int)]),
    "array of another byte order": lambda: np.zeros((4, 5), dtype=">f4"),
    "array turned round": lambda: np.zeros((4, 5))[::-1],
    "array read-only": lambda: _read_only(np.zeros((4, 5))),
    "array of no dimension": lambda: np.array(0.5),
    "np.float32": lambda: np.float32(0.5),
    "np.float64 nan": lambda: np.float64("nan"),
    "np.int64": lambda: np.int64(1),
    "np.uint8": lambda: np.uint8(1),
    "np.bool_": lambda: np.bool_(True),
    "np.str_": lambda: np.str_("mean"),
    "empty list": list,
    "list": lambda: [0.5, 0.5],
    "nested list": lambda: [[1, 0], [0, 1]],
    "ragged list": lambda: [[1, 0], [0], [[1]]],
    "list of tensors": lambda: [torch.zeros(4, 5)],
    "empty tuple": tuple,
    "tuple": lambda: (1, 2, 3),
    "empty dict": dict,
    "dict": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "object": object,
    "no representation": Odd,
    "class": lambda: nn.Linear,
    "type": lambda: int,
    "generator": lambda: (number for number in (1, 2, 3)),
    "range": lambda: range(3),
    "lambda": lambda: lambda *args, **kwargs: None,  # noqa: ARG005
    "module": lambda: nn.Linear(2, 2),
    "torch.Size": lambda: torch.Size((4, 5)),
    "torch.dtype": lambda: torch.float32,
    "torch.device": lambda: torch.device("cpu"),
    "cuda": lambda: "cuda",
    "no device": lambda: "nope",
    "cpu": lambda: "cpu",
    "torch.Generator": torch.Generator,
    "Exception": lambda: ValueError("abc"),
    "nul": lambda: "a\0b",
    "surrogate": lambda: "\ud800",
}

TENSORS: dict[str, Callable[[], Any]] = {
    "number tensor": lambda: torch.tensor(0.5),
    "integer tensor": lambda: torch.tensor(1),
    "boolean tensor": lambda: torch.tensor(True),
    "empty tensor": lambda: torch.zeros(0),
    "vector": lambda: torch.zeros(5),
    "matrix": lambda: torch.zeros(4, 5),
    "five dimensions": lambda: torch.zeros(1, 2, 1, 4, 5),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(4, 5), 0.1, 0, torch.qint8),
    "sparse COO": lambda: torch.eye(5).to_sparse(),
    "sparse CSR": lambda: torch.eye(5).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(1, 5)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(1, 5)], layout=torch.jagged),
    "parameter": lambda: nn.Parameter(torch.zeros(4, 5)),
    "uninitialized": nn.UninitializedParameter,
    "meta": lambda: torch.zeros(4, 5, device="meta"),
}


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def junk(source: Source) -> Named:
    """Return something that is rarely wanted."""
    pool = OBJECTS if source.below(4) else TENSORS
    name = pick(source, list(pool))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes of PyTorch say that they are such
        return name, pool[name]()


# ------------------------------------------------------------------------------------------------- near a good value

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "without first dimension": lambda x: x.sum(0) if x.dim() else x,
    "without last dimension": lambda x: x.sum(-1) if x.dim() else x,
    "last of size 1": lambda x: x[..., :1],
    "first of size 1": lambda x: x[:1] if x.dim() else x,
    "only the first row": lambda x: x[0] if x.dim() and len(x) else x,
    "with 1 behind": lambda x: x.unsqueeze(-1),
    "with 1 before": lambda x: x.unsqueeze(0),
    "transposed": lambda x: x.mT if x.dim() > 1 else x,
    "permuted": lambda x: x.movedim(0, -1) if x.dim() else x,
    "flat": lambda x: x.reshape(-1),
    "one row more": lambda x: torch.cat([x, x[:1]]) if x.dim() else x,
    "one row less": lambda x: x[1:] if x.dim() else x,
    "one label more": lambda x: torch.cat([x, x[..., :1]], dim=-1) if x.dim() else x,
    "one label less": lambda x: x[..., 1:] if x.dim() else x,
    "no rows": lambda x: x[:0] if x.dim() else x,
    "no labels": lambda x: x[..., :0] if x.dim() else x,
    "of no dimension": lambda x: x.sum(),
    "five dimensions": lambda x: x.reshape((1,) * max(5 - x.dim(), 0) + tuple(x.shape)),
    "with leading dimensions": lambda x: torch.stack([x, x]),
}

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "with NaN": lambda x: torch.where(torch.arange(x.numel()).view(x.shape) < 2, NAN, x).to(x.dtype),
    "with infinity": lambda x: torch.where(torch.arange(x.numel()).view(x.shape) < 2, INF, x).to(x.dtype),
    "huge": lambda x: torch.full_like(x, 1e30) if x.is_floating_point() else torch.full_like(x, 100),
    "negative": lambda x: -torch.ones_like(x),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "not contiguous": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x) if x.dim() and len(x) else x,
    "on meta": lambda x: x.to("meta"),
    "sparse COO": lambda x: x.to_sparse(),
    "sparse CSR": lambda x: x.to_sparse_csr(),
    "hybrid": lambda x: x.to_sparse(1),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "parameter": lambda x: nn.Parameter(x),
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "conjugate view": lambda x: torch.complex(x.float(), x.float()).conj(),
}


def near_tensor(source: Source, tensor: Tensor) -> Named:
    """Return a tensor of another shape, dtype or form; what cannot be made of this one stays as it is."""
    kind = source.below(8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind < 4:
                name = pick(source, list(SHAPES))
                return name, SHAPES[name](tensor)
            if kind < 6:
                dtype = pick(source, DTYPES)
                return str(dtype), tensor.to(dtype)
            name = pick(source, list(FORMS))
            return name, FORMS[name](tensor)
    except (RuntimeError, IndexError, TypeError, NotImplementedError, ValueError):
        return "as it was", tensor


STRINGS: tuple[Callable[[str], Any], ...] = (
    str.upper,
    str.title,
    lambda word: word + " ",
    lambda word: " " + word,
    lambda word: word[:-1],
    lambda word: word + "s",
    lambda word: word.replace("_", "-"),
    lambda word: [word],
    lambda word: (word,),
    lambda word: {word},
    lambda word: {word: 1.0},
    lambda word: word.encode(),
    lambda word: np.str_(word),
    lambda word: np.array(word),
    lambda word: np.array([word, word]),
)

NUMBERS: tuple[Callable[[float], Any], ...] = (
    *(lambda _, other=other: other for other in (0, 1, 2, -1, 0.5, 1 + 2**-52, 2**-1074, -(2**-1074), 1e308)),  # type: ignore[misc]
    lambda number: -number,
    lambda number: number + 1,
    lambda number: number - 1,
    float,
    str,
    lambda number: Fraction(str(number)) if math.isfinite(number) else number,
    np.float32,
    np.array,
    torch.tensor,
    complex,
    lambda number: [number],
)

FLAGS: tuple[Any, ...] = (0, 1, "yes", "", None, torch.tensor(True), np.bool_(False), [], 1.0, torch.zeros(2))

ENTRIES: tuple[Callable[[list[Any]], Any], ...] = (
    lambda entries: entries[:-1],
    lambda entries: [*entries, *entries[:1]],
    lambda entries: [*entries, 99],
    lambda entries: [*entries, None],
    lambda entries: [*entries, [1]],
    lambda entries: [*entries, {}],
    lambda entries: [*entries, "abc"],
    lambda entries: [*entries, NAN],
    lambda entries: [*entries, torch.zeros(2)],
    lambda entries: [*entries, np.zeros(2)],
    lambda entries: entries[:0],
    lambda entries: (entry for entry in entries),
    lambda entries: iter(entries),
    lambda entries: set(map(str, entries)),
    lambda entries: dict.fromkeys(map(str, entries), 1.0),
    lambda entries: {entry: -1 for entry in entries if isinstance(entry, int)},
    lambda entries: {entry: NAN for entry in entries if isinstance(entry, int)},
    lambda entries: {entry: "a" for entry in entries if isinstance(entry, int)},
    lambda entries: {entry: 10**400 for entry in entries if isinstance(entry, int)},
    lambda entries: entries[0] if entries else 0,
    lambda entries: [entries],
    lambda entries: np.array(entries, dtype=object),
    lambda entries: entries[::-1],
)


def near(source: Source, value: Any) -> Named:
    """Return something near a good value, as its type suggests."""
    if isinstance(value, Tensor):
        return near_tensor(source, value)
    if isinstance(value, bool):
        changed = pick(source, FLAGS)
    elif isinstance(value, str):
        changed = pick(source, STRINGS)(value)
    elif isinstance(value, (int, float)):
        changed = pick(source, NUMBERS)(value)
    elif isinstance(value, tuple) and hasattr(value, "_replace"):
        field = pick(source, value._fields)
        name, changed = near(source, getattr(value, field)) if source.below(2) else junk(source)
        return f"{field}: {name}", value._replace(**{field: changed})
    elif isinstance(value, (list, tuple, dict)):
        changes = pick(source, ENTRIES)
        try:
            changed = changes(list(value))
        except ValueError:  # NumPy makes no array of tensors of several shapes
            changed = list(value)
    else:
        return junk(source)
    return described(changed), changed


def described(value: Any) -> str:
    try:
        return f"{type(value).__name__} {str(value)[:60]!r}"
    except Exception:
        return type(value).__name__


# ----------------------------------------------------------------------------------------------------------- nested


def nested(source: Source, depth: int = 3) -> Any:
    """Return lists, tuples, dicts and arrays in one another, with numbers, strings and odd things in them."""
    kind = source.below(8 if depth else 3)
    if kind == 0:
        return pick(source, (0, 1, 2, 3, -1, 99, 0.5, NAN, INF, 2**63, 10**30, True, None))
    if kind == 1:
        return pick(source, ("", "mean", "auto", "co", "cooccurrence", "representation", "a", "\ud800", "1"))
    if kind == 2:
        return junk(source)[1]
    entries = [nested(source, depth - 1) for _ in range(source.below(4))]
    if kind == 3:
        return entries
    if kind == 4:
        return tuple(entries)
    if kind == 5:
        return iter(entries)
    keys = [pick(source, (2, 3, 4, 5, "a", "2", 2.0, None, True, (1,), 10**30, "names")) for _ in entries]
    if kind == 6:
        return dict(zip(keys, entries, strict=True))
    return [dict(zip(keys, entries, strict=True))]


def nested_json(source: Source, depth: int = 3) -> Any:
    """Return what a file of JSON may hold."""
    kind = source.below(5 if depth else 3)
    if kind == 0:
        return pick(source, (0, 1, 2, -1, 99, 0.5, NAN, INF, 2**63, 10**30, 10**400, True, False, None))
    if kind == 1:
        return pick(source, ("", "cup", "co", "1", "0", "-1", "1_0", "١", "mlcorr.LabelGroups"))
    if kind == 2:
        return pick(source, ([0, 0, 1], [0, 1], ["cup", "fork", "car"], [], {}, {"0": 0, "1": 1}))
    if kind == 3:
        return [nested_json(source, depth - 1) for _ in range(source.below(4))]
    keys = ("0", "1", "2", "co", "dis", "names", "num_groups", "version", "format", "tau", "x")
    return {pick(source, keys): nested_json(source, depth - 1) for _ in range(source.below(4))}
