"""The result of a grouping: which label is in which group, for both relations, with the labels' names."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from mlcorr._checks import check_choice, check_data, check_integer, check_number, check_sequence, check_tensor, kind_of

Relation: TypeAlias = Literal["co", "dis"]
RELATIONS: tuple[Relation, ...] = ("co", "dis")
_FORMAT = "mlcorr.LabelGroups"
_VERSION = 1
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SHOWN = 3  # names that an error message quotes


@dataclass(frozen=True, eq=False)
class LabelGroups:
    """Groups of labels that stand together ("co") and of labels that do not ("dis").

    Two are equal if they put the same labels, by number and name, into the same groups; how they were found does not
    matter to that.

    Attributes:
        co: (C,) int64 in [0, num_groups), the co-occurrence group of each label.
        dis: (C,) int64 in [0, num_groups), the dis-occurrence group of each label.
        names: The labels' names in the order of ``co`` and ``dis``, or None. Groups without names are only safe as long
            as nobody sorts the labels: the published groups of MS-COCO come in two orders.
        num_groups: T, the same for both relations. A group may be empty.
        tau: The exponent's divisor of the affinity; see :func:`mlcorr.grouping.affinity`.
        method: How the groups were found, for a reader.
        ncut_co: Normalised cut of ``co``; nan where it is not known.
        ncut_dis: Normalised cut of ``dis``; nan where it is not known.

    Raises:
        TypeError: A field is of another type.
        ValueError: A group is outside [0, num_groups), or lengths differ, or a name comes twice.

    Example:
        >>> import torch
        >>> from mlcorr import LabelGroups
        >>> groups = LabelGroups(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), ("cup", "fork", "car"), num_groups=2)
        >>> groups.members("co")
        [['cup', 'fork'], ['car']]
        >>> groups.num_labels
        3
    """

    co: Tensor
    dis: Tensor
    names: tuple[str, ...] | None
    num_groups: int
    tau: float = 2.0
    method: str = "given"
    ncut_co: float = math.nan
    ncut_dis: float = math.nan

    def __post_init__(self) -> None:
        check_integer("num_groups", self.num_groups, minimum=1)
        check_number("tau", self.tau, minimum=0.0, exclusive=True)
        for relation in RELATIONS:
            object.__setattr__(self, relation, _checked(relation, getattr(self, relation), self.num_groups))
        if self.co.shape != self.dis.shape:
            raise ValueError(f"dis: expected the shape of co, {tuple(self.co.shape)}, got {tuple(self.dis.shape)}")
        object.__setattr__(self, "names", check_names("names", self.names, self.num_labels))
        if not isinstance(self.method, str):
            raise TypeError(f"method: expected a string, got {type(self.method).__name__}")
        for name in ("ncut_co", "ncut_dis"):
            if not isinstance(getattr(self, name), float):
                raise TypeError(f"{name}: expected a float, got {type(getattr(self, name)).__name__}")

    @property
    def num_labels(self) -> int:
        """C, the number of labels."""
        return len(self.co)

    def members(self, relation: Relation = "co") -> list[list[str]]:
        """Return the names of the labels of each group, or their numbers as strings where there are no names."""
        check_choice("relation", relation, RELATIONS)
        found: list[list[str]] = [[] for _ in range(self.num_groups)]
        for label, group in enumerate(getattr(self, relation).tolist()):
            found[group].append(self.names[label] if self.names else str(label))
        return found

    def reorder(self, names: Sequence[str]) -> LabelGroups:
        """Return the same groups, of the same numbers, with the labels in the order of ``names``.

        Raises:
            ValueError: These groups have no names, or others than ``names``.
        """
        wanted = check_names("names", names, None) or ()
        if self.names is None:
            raise ValueError("names: the groups have none, so that labels cannot be told apart; expected names=None")
        if set(wanted) != set(self.names):
            lacking = sorted(set(wanted) - set(self.names))[:_SHOWN]
            foreign = sorted(set(self.names) - set(wanted))[:_SHOWN]
            raise ValueError(
                f"names: expected the names of the {self.num_labels} labels in the groups, got {len(wanted)} names; "
                f"without a group: {lacking or 'none'}, not asked for: {foreign or 'none'}"
            )
        place = {name: label for label, name in enumerate(self.names)}
        order = self.co.new_tensor([place[name] for name in wanted])
        found = (self.num_groups, self.tau, self.method, self.ncut_co, self.ncut_dis)
        return LabelGroups(self.co[order], self.dis[order], wanted, *found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, as a whole or, if that fails, not at all."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "num_groups": self.num_groups,
            "tau": self.tau,
            "method": self.method,
            "ncut_co": None if math.isnan(self.ncut_co) else self.ncut_co,
            "ncut_dis": None if math.isnan(self.ncut_dis) else self.ncut_dis,
            "names": self.names,
            "co": self.co.tolist(),
            "dis": self.dis.tolist(),
        }
        path = _path("path", path).resolve()  # a link stays one
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        file = open(temporary, "x", encoding="utf-8")  # noqa: SIM115  (with the rights of any new file)
        try:
            with file:
                json.dump(content, file, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())  # a crash must not leave the new name without the content
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        *,
        dis: str | os.PathLike[str] | None = None,
        file_names: Sequence[str] | None = None,
    ) -> LabelGroups:
        """Read a file of :meth:`save`, or two of the published format, one for each relation.

        The published format is a JSON list of T objects ``{label number: position in the group}``. It holds one
        relation and no names.

        Args:
            path: The file; of the published format that of the co-occurrence groups.
            names: The names of the labels in the order in which the caller has them. Where the file has the same names
                in another order, the groups are re-ordered by name. None keeps the file's order.
            dis: The dis-occurrence groups, where ``path`` is of the published format.
            file_names: The names in the order of the published files, which say nothing of it: the same groups were
                published for labels in alphabetical order and for MS-COCO's own. None takes that of ``names``.

        Raises:
            ValueError: The file is of neither format, or for other labels than ``names``.
            OSError: It cannot be read.
        """
        content = _read("path", path)
        if isinstance(content, list):
            if dis is None:
                raise ValueError(f"dis: {path} holds one relation; expected the file of the dis-occurrence groups too")
            other = _read("dis", dis)
            parts = [_published("path", path, content), _published("dis", dis, other)]
            count = max(len(content), len(other))
            own = check_names("file_names", names if file_names is None else file_names, len(parts[0]))
            groups = cls(parts[0], parts[1], own, count, method="published")
        else:
            if dis is not None or file_names is not None:
                raise ValueError(f"dis, file_names: expected None, since {path} is not of the published format")
            try:
                groups = cls(**_own(path, content))
            except TypeError as error:
                raise ValueError(f"path: {path}: {error}") from error
        if names is None:
            return groups
        if groups.names is not None:
            return groups.reorder(names)
        given = check_names("names", names, groups.num_labels)
        found = (groups.num_groups, groups.tau, groups.method, groups.ncut_co, groups.ncut_dis)
        return cls(groups.co, groups.dis, given, *found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelGroups):
            return NotImplemented
        same = self.num_groups == other.num_groups and self.names == other.names
        return same and torch.equal(self.co, other.co) and torch.equal(self.dis, other.dis)

    def __hash__(self) -> int:
        return hash((self.num_groups, self.num_labels, self.names))


def check_names(name: str, names: Sequence[str] | None, num_labels: int | None) -> tuple[str, ...] | None:
    """Return ``names`` as a tuple of ``num_labels`` different strings."""
    if names is None:
        return None
    given = tuple(str(each) if isinstance(each, str) else each for each in check_sequence(name, names))
    for each in given:
        if not isinstance(each, str):
            raise TypeError(f"{name}: expected strings, got {kind_of(each)}")
    if num_labels is not None and len(given) != num_labels:
        raise ValueError(f"{name}: expected {num_labels} names, one a label, got {len(given)}")
    if len(set(given)) != len(given):
        twice = next(each for each, number in Counter(given).items() if number > 1)
        raise ValueError(f"{name}: expected different names, got {twice!r} twice")
    return given


def _checked(relation: str, groups: object, num_groups: int) -> Tensor:
    tensor = check_data(relation, check_tensor(relation, groups))
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{relation}: expected an integer tensor, got {tensor.dtype}")
    if tensor.dim() != 1 or len(tensor) == 0:
        raise ValueError(f"{relation}: expected the shape (C,), C >= 1, got {tuple(tensor.shape)}")
    tensor = tensor.detach().to("cpu", torch.int64, copy=True)
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= num_groups:
        raise ValueError(f"{relation}: expected groups in [0, {num_groups}), got {low if low < 0 else high}")
    return tensor


def _path(name: str, path: object) -> Path:
    """Return ``path`` if it can be one of a file."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {type(path).__name__}")
    try:
        found = Path(path)
        os.fsencode(found)
    except (TypeError, ValueError) as error:  # of bytes, or of what is no character
        raise ValueError(f"{name}: expected a path, got {path!r}: {error}") from error
    if "\0" in str(found):
        raise ValueError(f"{name}: expected a path, got {path!r}")
    return found


def _read(name: str, path: object) -> Any:
    file = _path(name, path)
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all
        raise ValueError(f"{name}: {path} is no JSON file: {error}") from error


def _own(path: str | os.PathLike[str], content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"path: {path} holds no label groups, neither of this library nor of the published format")
    if content.get("version") != _VERSION:
        raise ValueError(f"path: {path} is of version {content.get('version')!r}, expected {_VERSION}")
    fields = ("co", "dis", "names", "num_groups", "tau", "method", "ncut_co", "ncut_dis")
    lacking = [field for field in fields if field not in content]
    if lacking:
        raise ValueError(f"path: {path} lacks {', '.join(lacking)}")
    found = {field: content[field] for field in fields}
    for relation in RELATIONS:
        found[relation] = _tensor(path, found[relation])
    for cut in ("ncut_co", "ncut_dis"):
        found[cut] = math.nan if found[cut] is None else found[cut]
    return found


def _published(name: str, path: str | os.PathLike[str], content: Any) -> Tensor:
    """Groups (C,) of the published format."""
    if not isinstance(content, list) or not all(isinstance(group, dict) for group in content):
        raise ValueError(f"{name}: {path} holds no label groups of the published format, a list of objects")
    try:
        pairs = [(int(label), number) for number, group in enumerate(content) for label in group]
    except ValueError as error:
        raise ValueError(f"{name}: {path}: expected label numbers as keys: {error}") from error
    groups = dict(pairs)
    if not pairs or len(groups) != len(pairs) or set(groups) != set(range(len(pairs))):
        raise ValueError(f"{name}: {path}: expected every label from 0 to C - 1 in exactly one group")
    return torch.tensor([groups[label] for label in range(len(pairs))], device="cpu")


def _tensor(path: str | os.PathLike[str], values: Any) -> Tensor:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"path: {path}: expected lists of whole numbers as groups")
    if not all(0 <= value < 2**63 for value in values):
        raise ValueError(f"path: {path}: expected numbers of groups, got {min(values)} to {max(values)}")
    return torch.tensor(values, dtype=torch.int64, device="cpu")
