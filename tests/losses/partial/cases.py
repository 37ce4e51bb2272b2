"""Every treatment of unknown labels, as a function and as the module of the same configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlcorr.losses.partial import (
    AssumeNegativeLoss,
    HillLoss,
    LargeLoss,
    PartialAsymmetricLoss,
    PartialBCELoss,
    SPLCLoss,
    WeakAssumeNegativeLoss,
    assume_negative_loss,
    hill_loss,
    large_loss,
    partial_asymmetric_loss,
    partial_bce_loss,
    splc_loss,
    weak_assume_negative_loss,
)

LABELS = 4
PRIOR = torch.tensor([0.9, 0.01, 0.2, 0.02])


class Case(NamedTuple):
    name: str
    function: Callable[..., Tensor]
    module: Callable[..., nn.Module]
    default_reduction: str
    epoch: tuple[int, ...] = ()
    by_rank: bool = False  # looks at the whole batch at once
    by_row: bool = False
    detached: bool = False  # the gradient is not the derivative


def case(name: str, function: Callable[..., Tensor], module: type[nn.Module], reduction: str, **keywords) -> Case:
    flags = {key: keywords.pop(key) for key in ("by_rank", "by_row", "detached") if key in keywords}
    return Case(name, partial(function, **keywords), partial(module, **keywords), reduction, **flags)


def large(name: str, modification: str, scheme: str) -> Case:
    function = partial(large_loss, share=0.3, modification=modification)
    module = partial(LargeLoss, relative_share=0.15, modification=scheme)
    return Case(name, function, module, "mean", epoch=(2,), by_rank=True)


CASES = [
    case("partial_bce", partial_bce_loss, PartialBCELoss, "batchmean", by_row=True),
    case("partial_bce_mean", partial_bce_loss, PartialBCELoss, "batchmean", by_row=True, alpha=1, beta=0, gamma=-1),
    case("an", assume_negative_loss, AssumeNegativeLoss, "mean"),
    case("an_ls", assume_negative_loss, AssumeNegativeLoss, "mean", label_smoothing=0.1),
    case("wan", weak_assume_negative_loss, WeakAssumeNegativeLoss, "mean"),
    case(
        "wan_trust",
        weak_assume_negative_loss,
        WeakAssumeNegativeLoss,
        "mean",
        weight=0.1,
        label_smoothing=0.2,
        trust_negatives=True,
    ),
    case("hill", hill_loss, HillLoss, "sum"),
    case("hill_trust", hill_loss, HillLoss, "sum", lamb=0.7, margin=0.0, gamma=0.3, trust_negatives=True),
    case("splc", splc_loss, SPLCLoss, "sum"),
    case("splc_trust", splc_loss, SPLCLoss, "sum", tau=0.3, margin=0.5, gamma=0.3, trust_negatives=True),
    case(
        "p_asl",
        partial_asymmetric_loss,
        PartialAsymmetricLoss,
        "sum",
        by_rank=True,
        detached=True,
        prior=PRIOR,
        likelihood_topk=1,
    ),
    case(
        "p_asl_clip",
        partial_asymmetric_loss,
        PartialAsymmetricLoss,
        "sum",
        by_rank=True,
        detach_focal=False,
        gamma_pos=0.3,
        gamma_neg=1.5,
        gamma_unknown=0.4,
        clip=0.05,
        alpha_unknown=0.5,
        likelihood_topk=1,
    ),
    large("ll_r", "rejection", "rejection"),
    large("ll_ct", "correction", "temporary_correction"),
]
