"""Losses of logits and a target."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mlcorr import losses
from tests.contract.entries.entry import (
    FACTOR,
    FLAG,
    LABELS,
    REDUCTION,
    ROWS,
    SHARE,
    Entry,
    Good,
    constructor,
    forward,
    function,
    labels,
    normal,
    shape_of_loss,
)


def logits_and_target() -> Good:
    return {
        "input": [normal(ROWS, LABELS), normal(LABELS), normal(2, ROWS, LABELS), normal(ROWS, LABELS).double()],
        "target": [labels(ROWS, LABELS), labels(LABELS), labels(2, ROWS, LABELS).float(), labels(ROWS, LABELS) > 0],
    }


PER_LABEL = {"weight": "~input", "pos_weight": "~input", "prior": "C"}


SETTINGS: dict[str, Callable[[], Good]] = {
    "asymmetric_loss": lambda: {
        "gamma_neg": FACTOR,
        "gamma_pos": FACTOR,
        "clip": SHARE,
        "detach_focal": FLAG,
        "inputs": ["logits"],
        "reduction": REDUCTION,
        "weight": [normal(LABELS).abs(), None, normal(ROWS, 1).abs(), normal(ROWS, LABELS).abs()],
        "pos_weight": [normal(LABELS).abs(), None],
    },
    "binary_cross_entropy_loss": lambda: {"reduction": REDUCTION},
    "assume_negative_loss": lambda: {"label_smoothing": SHARE, "reduction": REDUCTION},
    "weak_assume_negative_loss": lambda: {
        "weight": [None, *FACTOR],
        "label_smoothing": SHARE,
        "trust_negatives": FLAG,
        "reduction": REDUCTION,
    },
    "hill_loss": lambda: {
        "lamb": FACTOR,
        "margin": FACTOR,
        "gamma": FACTOR,
        "trust_negatives": FLAG,
        "reduction": REDUCTION,
    },
    "splc_loss": lambda: {
        "tau": SHARE,
        "margin": FACTOR,
        "gamma": FACTOR,
        "correct": FLAG,
        "trust_negatives": FLAG,
        "reduction": REDUCTION,
    },
    "partial_bce_loss": lambda: {
        "alpha": [-4.45, *FACTOR],
        "beta": FACTOR,
        "gamma": [-1, *FACTOR],
        "reduction": REDUCTION,
    },
    "partial_asymmetric_loss": lambda: {
        "gamma_neg": FACTOR,
        "gamma_pos": FACTOR,
        "gamma_unknown": FACTOR,
        "clip": SHARE,
        "alpha_neg": FACTOR,
        "alpha_pos": FACTOR,
        "alpha_unknown": FACTOR,
        "prior": [normal(LABELS).abs(), None],
        "prior_threshold": SHARE,
        "likelihood_topk": [0, 1, 100],
        "detach_focal": FLAG,
        "reduction": REDUCTION,
    },
    "large_loss": lambda: {"share": SHARE, "modification": ["rejection", "correction"], "reduction": REDUCTION},
}

SCHEMES = ["rejection", "temporary_correction", "permanent_correction"]
MODULES: dict[str, tuple[type[nn.Module], Callable[[], Good]]] = {
    "AsymmetricLoss": (losses.AsymmetricLoss, SETTINGS["asymmetric_loss"]),
    "BinaryCrossEntropyLoss": (losses.BinaryCrossEntropyLoss, SETTINGS["binary_cross_entropy_loss"]),
    "AssumeNegativeLoss": (losses.AssumeNegativeLoss, SETTINGS["assume_negative_loss"]),
    "WeakAssumeNegativeLoss": (losses.WeakAssumeNegativeLoss, SETTINGS["weak_assume_negative_loss"]),
    "HillLoss": (losses.HillLoss, SETTINGS["hill_loss"]),
    "SPLCLoss": (
        losses.SPLCLoss,
        lambda: {**{k: v for k, v in SETTINGS["splc_loss"]().items() if k != "correct"}, "change_epoch": [1, 0]},
    ),
    "PartialBCELoss": (losses.PartialBCELoss, SETTINGS["partial_bce_loss"]),
    "PartialAsymmetricLoss": (losses.PartialAsymmetricLoss, SETTINGS["partial_asymmetric_loss"]),
    "LargeLoss": (
        losses.LargeLoss,
        lambda: {"relative_share": SHARE, "modification": SCHEMES, "reduction": REDUCTION},
    ),
}
PAIR = {"input": "* C", "target": "* C"}


def of_logits(name: str) -> Entry:
    return function(
        name,
        lambda: {**logits_and_target(), **SETTINGS[name]()},
        "input target" + (" share" if name == "large_loss" else ""),
        shapes={**PAIR, **PER_LABEL},
        result=shape_of_loss,
    )


def of_module(name: str) -> list[Entry]:
    kind, settings = MODULES[name]
    after = {argument: values[:1] for argument, values in logits_and_target().items()}
    epochs = {"epoch": [1, 0, 100]} if name in ("SPLCLoss", "LargeLoss") else {}
    required = "relative_share" if name == "LargeLoss" else ""
    more = {"relative_share": 0.3} if required else {}
    return [
        constructor(
            name,
            kind,
            settings,
            {**after, **{argument: values[:1] for argument, values in epochs.items()}},
            required=tuple(required.split()),
            shapes={"weight": "~4 5", "pos_weight": "~4 5", "prior": "5"},
        ),
        forward(
            name,
            lambda: kind(reduction="none", **more),
            lambda: {**logits_and_target(), **epochs},
            "input target" + (" epoch" if name == "LargeLoss" else ""),
            shapes=PAIR,
            result=lambda arguments: "* C",  # noqa: ARG005
        ),
    ]


LOGITS = [
    *(of_logits(name) for name in SETTINGS),
    *(entry for name in MODULES for entry in of_module(name)),
    function(
        "correct_large_losses",
        lambda: {**logits_and_target(), "share": SHARE},
        "input target share",
        shapes=PAIR,
        result=lambda arguments: "* C",  # noqa: ARG005
    ),
    forward(
        "LargeLoss",
        lambda: losses.LargeLoss(relative_share=0.3),
        lambda: {"epoch": [1, 0, 3]},
        "epoch",
        what="share",
        call=lambda thing, **given: thing.share(**given),
        share=1,
    ),
]
