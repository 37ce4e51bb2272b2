"""Counts, groups of labels and their files."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mlcorr import grouping
from mlcorr.grouping import LabelGroups
from tests.contract.entries.entry import (
    LABELS,
    NAMES,
    ROWS,
    SIZE,
    WIDTH,
    Entry,
    Good,
    labels,
    normal,
)


def groups() -> LabelGroups:
    co = torch.arange(LABELS) % 2
    return LabelGroups(co, co.flip(0), tuple(NAMES), num_groups=2)


def counted() -> Good:
    import scipy.sparse

    sparse = labels(ROWS, LABELS).float()
    return {
        "targets": [
            labels(ROWS, LABELS),
            sparse.to_sparse(),
            sparse.to_sparse_csr(),
            scipy.sparse.csr_array(sparse.numpy()),
            scipy.sparse.coo_array(sparse.numpy()[:, :3]),
            scipy.sparse.csr_array(np.zeros((0, LABELS))),
            scipy.sparse.csr_array(sparse.numpy().astype(complex)),
            SimpleNamespace(tocsr=3),
        ]
    }


def fitted() -> grouping.SpectralLabelGrouping:
    found = grouping.SpectralLabelGrouping(LABELS, 2, restarts=1, names=NAMES)
    found.update(labels(ROWS, LABELS))
    found.assign(groups())
    return found


def unfitted() -> grouping.SpectralLabelGrouping:
    found = grouping.SpectralLabelGrouping(LABELS, 2, restarts=1)
    found.update(labels(8, LABELS))
    return found


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mlcorr-fuzz-")  # which goes with the process


def saved() -> str:
    path = Path(folder().name) / "groups.json"
    if not path.exists():
        groups().save(path)
    return str(path)


def here(given: dict[str, Any]) -> bool:
    """Return whether a path leads into the directory of whoever runs this."""
    path = given.get("path")
    return isinstance(path, (str, Path)) and len(str(path)) < 500 and not str(path).startswith("/")


COUNTS: tuple[Callable[[], Any], ...] = (
    lambda: grouping.LabelCooccurrence(LABELS),
    lambda: grouping.LabelCooccurrence(LABELS, storage="sparse"),
)
TABLE = torch.tensor([[3, 1, 0, 0, 1], [1, 2, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 4]])


def method(
    name: str, what: str, make: Callable[[], Any], good: Callable[[], Good], required: str = "", **more: Any
) -> Entry:
    def run(thing: Any, **given: Any) -> Any:
        return getattr(thing, what)(**given)

    return Entry(
        name=name, what=what, make=make, call=run, good=good, required=tuple(required.split()), **{"share": 1, **more}
    )


GROUPING = [
    Entry(
        name="LabelCooccurrence",
        what="constructor",
        call=lambda _, **given: grouping.LabelCooccurrence(**given).update(labels(ROWS, LABELS)),
        good=lambda: {"num_labels": SIZE, "storage": ["auto", "dense", "sparse"]},
        required=("num_labels",),
        also=("targets",),
        share=2,
    ),
    *(
        entry
        for make in COUNTS
        for entry in (
            method("LabelCooccurrence", "update", make, counted, "targets", share=2, shapes={"targets": "* 5"}),
            method("LabelCooccurrence", "counts", make, lambda: {"sparse": [None, True, False]}),
            method(
                "LabelCooccurrence",
                "conditional",
                make,
                lambda: {"sparse": [None, True, False], "dtype": [torch.float32, torch.float16]},
            ),
            method("LabelCooccurrence", "reduce", make, lambda: {"group": [None]}),
        )
    ),
    Entry(
        name="SpectralLabelGrouping",
        what="constructor",
        call=lambda _, **given: (
            (found := grouping.SpectralLabelGrouping(**given)).update(TABLE[:, :LABELS]) or found.fit()
        ),
        good=lambda: {
            "num_labels": SIZE,
            "num_groups": [2, "auto", 1],
            "tau": [2.0, 1],
            "names": [None, NAMES],
            "restarts": [1],
            "min_group_size": [None, 1, 2],
            "seed": [0, 3],
            "solver": ["auto", "dense", "operator"],
        },
        required=("num_labels", "restarts"),
        also=("targets",),
        share=2,
    ),
    method("SpectralLabelGrouping", "update", unfitted, counted, "targets"),
    method("SpectralLabelGrouping", "fit", unfitted, lambda: {"group": [None]}),
    method("SpectralLabelGrouping", "reduce", unfitted, lambda: {"group": [None]}),
    method("SpectralLabelGrouping", "assign", fitted, lambda: {"groups": [groups()]}, "groups", also=("names",)),
    method(
        "SpectralLabelGrouping",
        "eigenvalues",
        unfitted,
        lambda: {"relation": ["co", "dis"], "count": [3, 1]},
    ),
    *(
        method(
            "SpectralLabelGrouping",
            what,
            fitted,
            lambda name=name, size=size: {  # type: ignore[misc]
                name: [normal(ROWS, size, WIDTH), normal(size, WIDTH), normal(2, ROWS, size, WIDTH).half()],
                "relation": ["co", "dis"],
            },
            name,
            shapes={name: f"* {size} D"},
        )
        for what, name, size in (("forward", "group_features", 2), ("pool", "label_features", LABELS))
    ),
    method(
        "SpectralLabelGrouping", "set_extra_state", fitted, lambda: {"state": [fitted().get_extra_state()]}, "state"
    ),
    Entry(
        name="LabelGroups",
        what="constructor",
        call=lambda _, **given: LabelGroups(**given),
        good=lambda: {
            "co": [torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1], dtype=torch.uint8)],
            "dis": [torch.tensor([0, 0, 1])],
            "names": [None, ("a", "b", "c"), ["a", "b", "c"]],
            "num_groups": [2, 3],
            "tau": [2.0, 1],
            "method": ["given"],
            "ncut_co": [0.5, float("nan")],
            "ncut_dis": [0.5],
        },
        required=("co", "dis", "names", "num_groups"),
        share=4,
    ),
    method("LabelGroups", "members", groups, lambda: {"relation": ["co", "dis"]}),
    method("LabelGroups", "reorder", groups, lambda: {"names": [NAMES[::-1], NAMES]}, "names"),
    method(
        "LabelGroups",
        "save",
        groups,
        lambda: {"path": [Path(folder().name) / "written.json", "/nowhere/x", "a" * 5000, Path(folder().name)]},
        "path",
        errors=(OSError,),
        skip=here,
    ),
    method(
        "LabelGroups",
        "load",
        lambda: LabelGroups,
        lambda: {
            "path": [saved(), Path(saved()), "/nowhere", "/"],
            "names": [None, NAMES, NAMES[::-1]],
            "dis": [None, saved()],
            "file_names": [None, NAMES],
        },
        "path",
        errors=(OSError,),
        share=2,
    ),
    Entry(
        name="affinity",
        call=lambda _, **given: grouping.affinity(**given),
        good=lambda: {
            "counts": [TABLE, TABLE.double(), TABLE.to_sparse(), TABLE.to_sparse_csr()],
            "label_counts": [TABLE.diagonal(), TABLE.clamp(min=1), TABLE.to_sparse(), TABLE.to_sparse_csr()],
            "tau": [2.0, 1],
        },
        required=("counts", "label_counts"),
        shapes={"counts": "C C", "label_counts": "C|C C"},
        share=4,
    ),
    Entry(
        name="normalized_cut",
        call=lambda _, **given: grouping.normalized_cut(**given),
        good=lambda: {
            "affinity": [TABLE.double(), TABLE, TABLE.to_sparse(), TABLE.to_sparse_csr()],
            "groups": [torch.tensor([0, 1, 0, 1, 0]), torch.tensor([0, 1, 0, 1, 0], dtype=torch.uint8)],
        },
        required=("affinity", "groups"),
        shapes={"affinity": "C C", "groups": "C"},
        share=4,
    ),
]
