"""Contrastive losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlcorr import losses
from mlcorr.ops import contrast
from tests.contract.entries.entry import (
    FACTOR,
    FLAG,
    LABELS,
    ROWS,
    SHARE,
    WIDTH,
    Good,
    constructor,
    forward,
    function,
    labels,
    normal,
)


def embeddings() -> Good:
    return {
        "z": [normal(ROWS, LABELS, WIDTH), normal(ROWS, LABELS, WIDTH).double()],
        "prototypes": [normal(LABELS, WIDTH), normal(LABELS, WIDTH).half()],
        "targets": [labels(ROWS, LABELS), labels(ROWS, LABELS).float(), labels(ROWS, LABELS) > 0],
    }


def dual_settings() -> Good:
    return {
        "num_labels": [LABELS],
        "dim": [WIDTH],
        "temperature": [0.2, 1],
        "prototype_temperature": [0.07, 1],
        "sample_weight": FACTOR,
        "prototype_weight": FACTOR,
        "bank": ["per_label", "global", None],
        "bank_size": [3, 1],
        "bank_threshold": SHARE,
        "bank_warmup_steps": [0, 2],
        "max_active": [None, 3],
        "group": [None],
        "own_prototypes": FLAG,
    }


def scored_embeddings() -> Good:
    return {**embeddings(), "scores": [normal(ROWS, LABELS).sigmoid(), None]}


FEATURES = {"z": "B L D", "prototypes": "L D", "targets": "B L", "scores": "B L"}
DUAL: tuple[Callable[[], Any], ...] = (
    lambda: losses.DualContrastiveLoss(LABELS, WIDTH, bank_size=3),
    lambda: losses.DualContrastiveLoss(LABELS, WIDTH, bank="global", max_active=4, own_prototypes=False),
)
CONTRASTS = [
    function(
        "sample_contrastive_loss",
        lambda: {
            "x": [normal(6, WIDTH), normal(6, WIDTH).double()],
            "labels": [labels(6), labels(6).int(), labels(6).byte()],
            "keys": [normal(3, WIDTH), None],
            "key_labels": [labels(3), None],
            "num_labels": [None, LABELS, 1],
            "temperature": [0.2, 1],
            "block_size": [1024, 2],
            "backend": list(contrast.BACKENDS),
        },
        "x labels",
        shapes={"x": "A D", "labels": "A", "keys": "M D", "key_labels": "M"},
        result=lambda arguments: "",  # noqa: ARG005
    ),
    function(
        "prototype_contrastive_loss",
        lambda: {**embeddings(), "temperature": [0.07, 1], "normalize_by": ["positives", "classes", "sum"]},
        "z prototypes targets",
        shapes=FEATURES,
        result=lambda arguments: "",  # noqa: ARG005
    ),
    constructor(
        "DualContrastiveLoss",
        losses.DualContrastiveLoss,
        dual_settings,
        scored_embeddings(),
        required=("num_labels", "dim"),
    ),
    *(
        forward(
            "DualContrastiveLoss",
            make,
            scored_embeddings,
            "z targets",
            what=what,
            call=(lambda thing, **given: thing(**given))
            if what == "forward"
            else (lambda thing, **given: thing.terms(**given)),
            shapes=FEATURES,
            sizes={"L": LABELS, "D": WIDTH},
            share=2,
        )
        for make in DUAL
        for what in ("forward", "terms")
    ),
]
