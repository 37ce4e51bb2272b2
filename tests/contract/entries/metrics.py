"""Metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mlcorr import metrics
from tests.contract.entries.entry import (
    LABELS,
    ROWS,
    SIZE,
    Entry,
    Good,
    labels,
    normal,
)


def scored() -> Good:
    score = normal(ROWS, LABELS).sigmoid()
    return {
        "scores": [score, score.numpy(), score.double(), score.half()],
        "targets": [labels(ROWS, LABELS), labels(ROWS, LABELS).numpy(), labels(ROWS, LABELS).float()],
    }


def options() -> Good:
    return {
        "inputs": ["probabilities", "logits"],
        "rule": ["threshold", "topk", "topk_threshold", "prevalence"],
        "threshold": [0.5, torch.full((LABELS,), 0.5), np.full(LABELS, 0.5), 0],
        "top_k": [3, 1, 100],
        "prevalence": [None, torch.full((LABELS,), 0.5), np.full(LABELS, 0.5)],
        "empty": ["skip", "zero", "nan"],
    }


def torchmetric(name: str, *given: Any) -> Callable[[], Any]:
    def make() -> Any:
        from mlcorr import metrics_torchmetrics

        return getattr(metrics_torchmetrics, name)(*given)

    return make


def scoring(name: str) -> Callable[..., Any]:
    def run(_: object, **given: Any) -> Any:
        from mlcorr import metrics_torchmetrics

        metric = getattr(metrics_torchmetrics, name)(**given)
        metric.update(torch.zeros(ROWS, LABELS), torch.zeros(ROWS, LABELS))
        return metric.compute()

    return run


SCORED = {"scores": "N C", "targets": "N C", "threshold": "C", "prevalence": "C"}
SCORE_NAMES = ["mAP", "OP", "OR", "OF1", "CP", "CR", "CF1", "CF1_mean"]
METRICS = [
    Entry(
        name="multilabel_scores",
        call=lambda _, **given: metrics.multilabel_scores(**given),
        good=lambda: {**scored(), **options()},
        required=("scores", "targets"),
        shapes=SCORED,
    ),
    Entry(
        name="average_precision",
        call=lambda _, **given: metrics.average_precision(**given),
        good=scored,
        required=("scores", "targets"),
        shapes=SCORED,
        result=lambda arguments: "C",  # noqa: ARG005
    ),
    Entry(
        name="best_thresholds",
        call=lambda _, **given: metrics.best_thresholds(**given),
        good=lambda: {**scored(), "inputs": ["probabilities", "logits"]},
        required=("scores", "targets"),
        shapes=SCORED,
        result=lambda arguments: "C",  # noqa: ARG005
    ),
    *(
        entry
        for name in ("MultilabelScores", "MultilabelScore")
        for entry in (
            Entry(
                name=name,
                what="constructor",
                call=scoring(name),
                good=lambda name=name: {  # type: ignore[misc]
                    "num_labels": SIZE,
                    **options(),
                    **({"score": SCORE_NAMES} if name == "MultilabelScore" else {}),
                },
                required=("num_labels",),
                also=("scores",),
                foreign=("torchmetrics/metric.py",),
                share=2,
            ),
            *(
                Entry(
                    name=name,
                    what=what,
                    make=torchmetric(name, LABELS),
                    call=lambda thing, what=what, **given: getattr(thing, what)(**given),
                    good=lambda: {
                        argument: [v for v in values if torch.is_tensor(v)] for argument, values in scored().items()
                    },
                    required=("scores", "targets"),
                    shapes={"scores": "N 5", "targets": "N 5"},
                    share=2,
                )
                for what in ("update", "forward")
            ),
        )
    ),
]
