"""Losses of a student and a teacher, and what chooses their implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mlcorr import losses
from mlcorr.ops import contrast, norder
from mlcorr.systems.mdkd import MDKDObjective
from tests.contract.entries.entry import (
    FACTOR,
    FLAG,
    LABELS,
    REDUCTION,
    ROWS,
    Entry,
    Good,
    constructor,
    forward,
    function,
    labels,
    mask,
    normal,
    own_base_loss,
    shape_of_loss,
)


def student_and_teacher() -> Good:
    return {
        "student": [normal(ROWS, LABELS), normal(ROWS, LABELS).double(), normal(ROWS, LABELS).bfloat16()],
        "teacher": [normal(ROWS, LABELS, seed=1), normal(ROWS, LABELS).double()],
        "mask": [None, mask(ROWS, LABELS)],
    }


def mld_settings() -> Good:
    return {
        "temperature": [2.0, 1, 0.5],
        "weight": [None, normal(LABELS).abs()],
        "inputs": ["logits"],
        "reduction": REDUCTION,
    }


def orders() -> list[Any]:
    bad = [(), (1,), (2, 2), (2, 99), {2: float("nan")}, {2: -1}, "23", [[2]], {2: {}}, {"2": 1}]
    return [(2, 3, 4), [2], {2: 1.0, 3: 0.5}, {5: 0}, range(2, 4), *bad]


def order_settings() -> Good:
    return {
        "orders": orders(),
        "level": list(norder.LEVELS),
        "delta": [1.0, 0.3, 5, float("inf"), 1e-3],
        "batch_dependency": list(norder.BATCH_DEPENDENCIES),
        "normalization": list(norder.NORMALIZATIONS),
        "inputs": ["logits", "probabilities"],
        "reduction": REDUCTION,
        "samples": [None, 3, 1],
        "backend": list(norder.BACKENDS),
        "group": [None],
    }


OF_PAIR = {"student": "* C", "teacher": "* C", "mask": "* C", "weight": "~student"}
NO_GROUP = ("generator",)


def dependency(name: str) -> dict[str, Any]:
    after = {argument: values[0] for argument, values in student_and_teacher().items()}
    return after if name == "MultiOrderDependencyLoss" else {**after, "target": labels(ROWS, LABELS)}


def objective_settings() -> Good:
    given = order_settings()
    kept = ("orders", "level", "delta", "batch_dependency", "normalization", "samples", "backend", "group")
    return {
        **{name: given[name] for name in kept},
        "mld_weight": FACTOR,
        "dependency_weight": FACTOR,
        "temperature": [1.0, 2.0],
        "base_loss": [None, losses.AsymmetricLoss()],
    }


def paired(what: str) -> list[Entry]:
    """Return the entries of a method of the two modules of label dependencies."""
    makes: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("MultiOrderDependencyLoss", lambda: losses.MultiOrderDependencyLoss((2, 5), delta=0.4, samples=4)),
        ("MDKDObjective", MDKDObjective),
        ("MDKDObjective", lambda: MDKDObjective((2,), level="instance", temperature=2.0, base_loss=losses.HillLoss())),
    )
    call = (lambda thing, **given: thing(**given)) if what == "forward" else None
    return [
        forward(
            name,
            make,
            lambda name=name: {  # type: ignore[misc]
                **student_and_teacher(),
                **({"generator": [None, torch.Generator()]} if name == "MultiOrderDependencyLoss" else {}),
                **({"target": [labels(ROWS, LABELS), normal(ROWS, LABELS)]} if name == "MDKDObjective" else {}),
            },
            "student teacher" + (" target" if name == "MDKDObjective" else ""),
            what=what,
            call=call or (lambda thing, **given: getattr(thing, what)(**given)),
            shapes={**OF_PAIR, "target": "* C"},
            also=("orders", "input"),
        )
        for name, make in makes
        if what != "gradient_norms" or name == "MDKDObjective"
    ]


PAIRS = [
    function(
        "mld_loss",
        lambda: {**student_and_teacher(), **mld_settings()},
        "student teacher",
        shapes=OF_PAIR,
        result=shape_of_loss,
    ),
    constructor(
        "MLDLoss",
        losses.MLDLoss,
        mld_settings,
        {name: values[:1] for name, values in student_and_teacher().items()},
        shapes={"weight": "~4 5"},
    ),
    forward(
        "MLDLoss",
        lambda: losses.MLDLoss(reduction="none", temperature=2),
        student_and_teacher,
        "student teacher",
        shapes=OF_PAIR,
        result=lambda arguments: "* C",  # noqa: ARG005
    ),
    function(
        "multi_order_dependency_loss",
        lambda: {**student_and_teacher(), **order_settings(), "generator": [None, torch.Generator()]},
        "student teacher",
        shapes=OF_PAIR,
        result=lambda arguments: "*" if arguments.get("reduction") == "none" else "",
        share=12,
    ),
    *(
        Entry(
            name=name,
            what="constructor",
            call=lambda _, kind=kind, name=name, **given: kind(**given)(**dependency(name)),
            good=settings,
            also=("student",),
            share=6,
            skip=own_base_loss,
        )
        for name, kind, settings in (
            (
                "MultiOrderDependencyLoss",
                losses.MultiOrderDependencyLoss,
                order_settings,
            ),
            ("MDKDObjective", MDKDObjective, objective_settings),
        )
    ),
    *(entry for what in ("forward", "terms", "gradient_norms") for entry in paired(what)),
    Entry(
        name="norder.select_backend",
        call=lambda _, **given: norder.select_backend(**given),
        good=lambda: {
            "level": ["instance", "batch"],
            "batch_size": [4, 0, 1000],
            "orders": orders(),
            "delta": [1.0, 0.5],
            "batch_dependency": list(norder.BATCH_DEPENDENCIES),
            "samples": [None, 3],
            "backend": list(norder.BACKENDS),
            "device": ["cpu", torch.device("cpu"), "cuda", "cuda:1", "mps"],
            "masked": FLAG,
        },
        required=("level", "batch_size"),
        share=6,
    ),
    Entry(
        name="contrast.select_backend",
        call=lambda _, **given: contrast.select_backend(**given),
        good=lambda: {"backend": list(contrast.BACKENDS), "device": ["cpu", torch.device("cpu"), "cuda", "meta"]},
        share=3,
    ),
]
