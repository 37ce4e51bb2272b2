"""The treatments of unknown labels that a linear head can be trained with, by the names on the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from mlcorr import (
    AssumeNegativeLoss,
    AsymmetricLoss,
    BinaryCrossEntropyLoss,
    HillLoss,
    LargeLoss,
    PartialAsymmetricLoss,
    PartialBCELoss,
    SPLCLoss,
    WeakAssumeNegativeLoss,
)

EPOCH_DEPENDENT = (SPLCLoss, LargeLoss)  # called with the number of epochs done

# The defaults, which are the papers', but for: a mean, which AdamW does not tell from a sum; a label of 0, which here
# is known to be absent; and what was chosen there for data of 80 labels and more.
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "ignore": partial(BinaryCrossEntropyLoss, reduction="mean"),
    "partial_bce": PartialBCELoss,
    "assume_negative": AssumeNegativeLoss,
    "weak_assume_negative": WeakAssumeNegativeLoss,
    "hill": partial(HillLoss, trust_negatives=True, reduction="mean"),
    "splc": partial(SPLCLoss, trust_negatives=True, reduction="mean"),
    "partial_asymmetric": partial(PartialAsymmetricLoss, likelihood_topk=1, reduction="mean"),
    "large_loss": partial(LargeLoss, relative_share=0.005),  # the most that its program offers: few epochs
    # As the base loss of a latent context; unknown labels are ignored.
    "asymmetric": partial(AsymmetricLoss, gamma_neg=4.0, gamma_pos=0.0, clip=0.05, reduction="mean"),
}
