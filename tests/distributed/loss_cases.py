"""Every public loss in a form that can be spread over processes: how to build it, and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr import functional, losses
from mlcorr.systems.mdkd import MDKDObjective
from mlcorr.systems.oprl import OPRL

LABELS, WIDTH = 5, 8
Group = dist.ProcessGroup | None
Arguments = dict[str, Any]


class Case(NamedTuple):
    """A loss, and arguments for a number of rows, of which the first is what a network gives."""

    build: Callable[[Group], Callable[..., Tensor]]
    draw: Callable[[int], Arguments]
    constant: tuple[str, ...] = ()  # arguments that every process has whole


def generator(rows: int) -> torch.Generator:
    return torch.Generator().manual_seed(rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(sum(shape) + 100 * seed))


def targets(rows: int) -> Tensor:
    return torch.randint(-1, 2, (rows, LABELS), generator=generator(rows + 1))


def mask(rows: int) -> Tensor:
    valid = torch.rand(rows, LABELS, generator=generator(rows + 2)) < 0.7
    valid[:1] = False  # a row without anything
    return valid


def entries(rows: int, **more: Any) -> Arguments:
    return {"input": normal(rows, LABELS), "target": targets(rows), **more}


def pair(rows: int) -> Arguments:
    return {"student": normal(rows, LABELS), "teacher": normal(rows, LABELS, seed=1), "mask": mask(rows)}


def vectors(rows: int) -> Arguments:
    return {
        "x": normal(3 * rows, WIDTH),
        "labels": torch.randint(-1, LABELS, (3 * rows,), generator=generator(rows)),
        "keys": normal(7, WIDTH, seed=1),
        "key_labels": torch.arange(7) % LABELS,
    }


def features(rows: int) -> Arguments:
    return {
        "z": normal(rows, LABELS, WIDTH),
        "prototypes": normal(LABELS, WIDTH, seed=1),
        "targets": targets(rows),
    }


class OPRLLoss(nn.Module):
    """The objective of OPRL over given places, some of which are padding."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.system = OPRL(nn.Identity(), WIDTH, LABELS, encoder_width=16, encoder_dropout=0.0, group=group).double()

    def forward(self, tokens: Tensor, valid: Tensor, target: Tensor) -> Tensor:
        return self.system.objective(self.system(tokens, valid), target)


def places(rows: int) -> Arguments:
    valid = torch.rand(rows, 6, generator=generator(rows)) < 0.8
    valid[:1] = False
    return {"tokens": normal(rows, 6, WIDTH), "valid": valid, "target": targets(rows)}


def per_entry() -> Iterator[tuple[str, Case]]:
    """Yield the losses that are reduced from entries, in each reduction that has one value."""
    factor, positive = normal(LABELS).exp(), normal(LABELS, seed=1).exp()
    prior = torch.linspace(0.01, 0.1, LABELS, dtype=torch.float64)
    weights = {"weight": factor, "pos_weight": positive}
    of_logits: list[tuple[Callable[..., Any], Arguments, Arguments]] = [
        (functional.asymmetric_loss, weights, {}),
        (losses.AsymmetricLoss, weights, {}),
        (functional.binary_cross_entropy_loss, {}, {}),
        (losses.BinaryCrossEntropyLoss, {}, {}),
        (functional.assume_negative_loss, {"label_smoothing": 0.1}, {}),
        (losses.AssumeNegativeLoss, {"label_smoothing": 0.1}, {}),
        (functional.weak_assume_negative_loss, {"trust_negatives": True}, {}),
        (losses.WeakAssumeNegativeLoss, {}, {}),
        (functional.hill_loss, {"trust_negatives": True}, {}),
        (losses.HillLoss, {}, {}),
        (functional.splc_loss, {"trust_negatives": True}, {}),
        (losses.SPLCLoss, {}, {"epoch": 1}),
        (functional.partial_bce_loss, {}, {}),
        (losses.PartialBCELoss, {}, {}),
        (functional.partial_asymmetric_loss, {"likelihood_topk": 1}, {}),
        (losses.PartialAsymmetricLoss, {"likelihood_topk": 1, "prior": prior}, {}),
        (functional.large_loss, {"share": 0.3}, {}),
        (functional.large_loss, {"share": 0.2, "modification": "correction"}, {}),
        (losses.LargeLoss, {"relative_share": 0.1}, {"epoch": 2}),
    ]
    for reduction in ("mean", "batchmean", "sum"):
        for loss, options, more in of_logits:
            chosen = {**options, "reduction": reduction}
            yield (
                f"{loss.__name__} {len(options)} {reduction} {options.get('modification')}",
                Case(partial(built, loss, chosen), partial(entries, **more), tuple(more)),
            )
        for loss in (functional.mld_loss, losses.MLDLoss):
            yield (
                f"{loss.__name__} {reduction}",
                Case(partial(built, loss, {"temperature": 2.0, "weight": factor, "reduction": reduction}), pair),
            )


def built(loss: Callable[..., Any], options: Arguments, group: Group) -> Callable[..., Tensor]:
    made = loss(**options, group=group) if isinstance(loss, type) else partial(loss, **options, group=group)
    return made


def dual(options: Arguments, group: Group) -> losses.DualContrastiveLoss:
    # Without prototypes of its own, which would wait for a gradient.
    return losses.DualContrastiveLoss(LABELS, WIDTH, own_prototypes=False, **options, group=group)


CASES: dict[str, Case] = {
    **dict(per_entry()),
    **{
        f"{loss.__name__} {level} {delta} {reduction}": Case(
            partial(built, loss, {"level": level, "delta": delta, "reduction": reduction}), pair
        )
        for loss in (functional.multi_order_dependency_loss, losses.MultiOrderDependencyLoss)
        for level, delta, reduction in (("both", 1.0, "mean"), ("both", 0.2, "mean"), ("instance", 1.0, "sum"))
    },
    "MDKDObjective": Case(
        partial(built, MDKDObjective, {"orders": (2, 3)}), lambda rows: {**pair(rows), "target": targets(rows)}
    ),
    "MDKDObjective, own base loss": Case(
        lambda group: MDKDObjective((2, 3), base_loss=losses.AsymmetricLoss(group=group), group=group),
        lambda rows: {**pair(rows), "target": targets(rows)},
    ),
    "MDKDObjective, global base loss": Case(
        # One that has the group though the objective has none: no pass may be shared with it.
        lambda group: MDKDObjective(
            (2, 3), level="instance", mld_weight=0.0, dependency_weight=0.0,
            base_loss=losses.BinaryCrossEntropyLoss(group=group),
        ),
        lambda rows: {**pair(rows), "mask": None, "target": targets(rows)},
    ),
    "OPRL": Case(OPRLLoss, places),
    **{
        f"sample_contrastive_loss {options}": Case(
            partial(built, functional.sample_contrastive_loss, options), vectors, ("keys", "key_labels")
        )
        for options in ({}, {"num_labels": LABELS})
    },
    "sample_contrastive_loss, no keys": Case(
        partial(built, functional.sample_contrastive_loss, {"temperature": 1.0}),
        lambda rows: {name: x for name, x in vectors(rows).items() if not name.startswith("key")},
    ),
    **{
        f"prototype_contrastive_loss {by}": Case(
            partial(built, functional.prototype_contrastive_loss, {"normalize_by": by}), features, ("prototypes",)
        )
        for by in ("positives", "classes", "sum")
    },
    **{
        f"DualContrastiveLoss {options}": Case(
            partial(dual, options),
            features,
            ("prototypes",),
        )
        for options in ({"bank_size": 3}, {"bank": "global", "max_active": 30}, {"bank": None})
    },
}  # fmt: skip
