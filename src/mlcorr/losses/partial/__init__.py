"""Losses for partial labels: one for each of the field's usual treatments of unknown labels, which are −1.

The treatment "ignore", to learn from known labels only, is :class:`mlcorr.BinaryCrossEntropyLoss`; every other loss of
this library that has targets does the same. The losses here use unknown labels, or make up for them.
"""

from mlcorr.losses.binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy_loss
from mlcorr.losses.partial.assume_negative import AssumeNegativeLoss, assume_negative_loss
from mlcorr.losses.partial.hill import HillLoss, hill_loss
from mlcorr.losses.partial.large_loss import LargeLoss, correct_large_losses, large_loss
from mlcorr.losses.partial.partial_asymmetric import PartialAsymmetricLoss, partial_asymmetric_loss
from mlcorr.losses.partial.partial_bce import PartialBCELoss, partial_bce_loss
from mlcorr.losses.partial.splc import SPLCLoss, splc_loss
from mlcorr.losses.partial.weak_assume_negative import WeakAssumeNegativeLoss, weak_assume_negative_loss

__all__ = [
    "AssumeNegativeLoss",
    "BinaryCrossEntropyLoss",
    "HillLoss",
    "LargeLoss",
    "PartialAsymmetricLoss",
    "PartialBCELoss",
    "SPLCLoss",
    "WeakAssumeNegativeLoss",
    "assume_negative_loss",
    "binary_cross_entropy_loss",
    "correct_large_losses",
    "hill_loss",
    "large_loss",
    "partial_asymmetric_loss",
    "partial_bce_loss",
    "splc_loss",
    "weak_assume_negative_loss",
]
