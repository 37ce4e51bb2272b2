"""The cases of the losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mlcorr import functional, losses
from mlcorr.systems.mdkd import MDKDObjective
from tests.contract.case import Arguments, Case, Drawn, Sizes, Thing, seeded


def of_logits(make: Callable[[], Thing], *, probabilities: bool = False, **more: Any) -> Case:
    """Return the case of a loss of input and target, and of constant further arguments."""

    def draw(sizes: Sizes) -> Arguments:
        drawn, shape = Drawn(sizes), (*sizes.leading, sizes.rows, sizes.labels)
        logits = drawn.normal(*shape)
        return {"input": logits.sigmoid() if probabilities else logits, "target": drawn.targets(*shape), **more}

    return Case(
        kind="loss",
        make=lambda sizes: make(),  # noqa: ARG005
        draw=draw,
        floating={"input": "probabilities" if probabilities else "logits"},
        leaves=("input",),
        leading=True,
    )


def of_pair(make: Callable[[], Thing], *, leading: bool = True, target: bool = False, **more: bool) -> Case:
    """Return the case of a loss of student and teacher, with ``mask=False`` without a mask."""
    probabilities = more.get("probabilities", False)

    def draw(sizes: Sizes) -> Arguments:
        drawn, shape = Drawn(sizes), (*sizes.leading, sizes.rows, sizes.labels)
        student, teacher = drawn.normal(*shape), drawn.normal(*shape)
        pair = {"student": student, "teacher": teacher}
        if probabilities:
            pair = {name: value.sigmoid() for name, value in pair.items()}
        if target:
            pair["target"] = drawn.targets(*shape)
        return {**pair, "mask": drawn.mask(*shape) if more.get("mask", True) else None}

    values = "probabilities" if probabilities else "logits"
    return Case(
        kind="loss",
        make=lambda sizes: make(),  # noqa: ARG005
        draw=draw,
        floating={"student": values, "teacher": values},
        leaves=("student", "teacher"),
        leading=leading,
    )


def features_with_labels(sizes: Sizes) -> Arguments:
    drawn = Drawn(sizes)
    labels = torch.arange(3 * sizes.rows) % sizes.labels
    keys = torch.arange(2 * sizes.rows) % sizes.labels
    return {
        "x": drawn.normal(3 * sizes.rows, sizes.width),
        "labels": torch.where(drawn.mask(3 * sizes.rows), labels, -1),
        "keys": drawn.normal(2 * sizes.rows, sizes.width),
        "key_labels": keys,
        "num_labels": sizes.labels,
    }


def features_of_labels(sizes: Sizes, *, scores: bool = False, name: str = "z") -> Arguments:
    drawn = Drawn(sizes)
    arguments: Arguments = {
        name: drawn.normal(sizes.rows, sizes.labels, sizes.width),
        "prototypes": drawn.normal(sizes.labels, sizes.width),
        "targets": drawn.targets(sizes.rows, sizes.labels),
    }
    return {**arguments, "scores": drawn.normal(sizes.rows, sizes.labels).sigmoid()} if scores else arguments


def dual(**options: Any) -> Case:
    return Case(
        kind="loss",
        make=seeded(
            lambda sizes: losses.DualContrastiveLoss(sizes.labels, sizes.width, **{"bank_size": 3, **options}),
        ),
        draw=partial(features_of_labels, scores=True),
        floating={"z": "features", "prototypes": "features", "scores": "probabilities"},
        leaves=("z", "prototypes"),
    )


def own_prototypes() -> Case:
    case = dual(bank="global", max_active=4)
    return replace(
        case,
        draw=lambda sizes: {name: value for name, value in case.draw(sizes).items() if name != "prototypes"},
        floating={name: of for name, of in case.floating.items() if name != "prototypes"},
        leaves=("z",),
    )


norder_loss = functional.multi_order_dependency_loss

LOSSES: dict[str, Case] = {
    "asymmetric_loss": of_logits(lambda: functional.asymmetric_loss),
    "asymmetric_loss, probabilities": of_logits(
        lambda: partial(functional.asymmetric_loss, inputs="probabilities"), probabilities=True
    ),
    "asymmetric_loss, none": of_logits(lambda: partial(functional.asymmetric_loss, reduction="none")),
    "asymmetric_loss, factors with gradient": of_logits(
        lambda: partial(functional.asymmetric_loss, detach_focal=False)
    ),
    "AsymmetricLoss": of_logits(losses.AsymmetricLoss),
    "binary_cross_entropy_loss": of_logits(lambda: functional.binary_cross_entropy_loss),
    "BinaryCrossEntropyLoss": of_logits(losses.BinaryCrossEntropyLoss),
    "assume_negative_loss": of_logits(lambda: functional.assume_negative_loss),
    "AssumeNegativeLoss": of_logits(lambda: losses.AssumeNegativeLoss(label_smoothing=0.1)),
    "weak_assume_negative_loss": of_logits(lambda: functional.weak_assume_negative_loss),
    "WeakAssumeNegativeLoss": of_logits(lambda: losses.WeakAssumeNegativeLoss(label_smoothing=0.1)),
    "hill_loss": of_logits(lambda: functional.hill_loss),
    "HillLoss": of_logits(losses.HillLoss),
    "splc_loss": of_logits(lambda: functional.splc_loss),
    "SPLCLoss": of_logits(losses.SPLCLoss, epoch=1),
    "partial_bce_loss": of_logits(lambda: functional.partial_bce_loss),
    "PartialBCELoss": of_logits(losses.PartialBCELoss),
    "partial_asymmetric_loss": of_logits(lambda: functional.partial_asymmetric_loss),
    "PartialAsymmetricLoss": of_logits(lambda: losses.PartialAsymmetricLoss(likelihood_topk=1)),
    "large_loss": of_logits(lambda: partial(functional.large_loss, share=0.3)),
    "LargeLoss": of_logits(lambda: losses.LargeLoss(relative_share=0.3, modification="temporary_correction"), epoch=1),
    "mld_loss": of_pair(lambda: functional.mld_loss),
    "mld_loss, probabilities": of_pair(
        lambda: partial(functional.mld_loss, inputs="probabilities"), probabilities=True
    ),
    "mld_loss, no mask": of_pair(lambda: functional.mld_loss, mask=False),
    "MLDLoss": of_pair(lambda: losses.MLDLoss(temperature=2.0), mask=False),
    "multi_order_dependency_loss": of_pair(lambda: norder_loss, leading=False, mask=False),
    "multi_order_dependency_loss, masked": of_pair(lambda: norder_loss, leading=False),
    "multi_order_dependency_loss, instance": of_pair(lambda: partial(norder_loss, level="instance"), mask=False),
    "multi_order_dependency_loss, rows": of_pair(
        lambda: partial(norder_loss, orders=(2, 3, 5), level="instance", reduction="none"), mask=False
    ),
    "multi_order_dependency_loss, small delta": of_pair(lambda: partial(norder_loss, delta=0.1), leading=False),
    "multi_order_dependency_loss, square of sums": of_pair(
        lambda: partial(norder_loss, level="batch", batch_dependency="square_of_sums"), leading=False
    ),
    "multi_order_dependency_loss, probabilities": of_pair(
        lambda: partial(norder_loss, inputs="probabilities"), leading=False, mask=False, probabilities=True
    ),
    "MultiOrderDependencyLoss": of_pair(
        lambda: losses.MultiOrderDependencyLoss({2: 1.0, 3: 0.5}), leading=False, mask=False
    ),
    "MDKDObjective": of_pair(MDKDObjective, leading=False, target=True),
    "MDKDObjective, no mask": of_pair(MDKDObjective, leading=False, target=True, mask=False),
    "sample_contrastive_loss": Case(
        kind="loss",
        make=lambda sizes: functional.sample_contrastive_loss,  # noqa: ARG005
        draw=features_with_labels,
        floating={"x": "features", "keys": "features"},
        leaves=("x", "keys"),
    ),
    "sample_contrastive_loss, compared": Case(
        kind="loss",
        make=lambda sizes: functional.sample_contrastive_loss,  # noqa: ARG005
        draw=lambda sizes: {k: v for k, v in features_with_labels(sizes).items() if k != "num_labels"},
        floating={"x": "features", "keys": "features"},
        leaves=("x", "keys"),
    ),
    "prototype_contrastive_loss": Case(
        kind="loss",
        make=lambda sizes: functional.prototype_contrastive_loss,  # noqa: ARG005
        draw=features_of_labels,
        floating={"z": "features", "prototypes": "features"},
        leaves=("z", "prototypes"),
    ),
    "DualContrastiveLoss": dual(),
    "DualContrastiveLoss, no bank": dual(bank=None),
    "DualContrastiveLoss, bounded": dual(bank="global", max_active=4),
    "DualContrastiveLoss, own prototypes": own_prototypes(),
    "correct_large_losses": Case(
        kind="loss",
        make=lambda sizes: partial(functional.correct_large_losses, share=0.3),  # noqa: ARG005
        draw=of_logits(lambda: None).draw,
        floating={"input": "logits"},
        leading=True,
    ),
}
