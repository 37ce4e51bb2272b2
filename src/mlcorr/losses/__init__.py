"""Losses: for each a function (the mathematics) and a module (its configuration)."""

from mlcorr.losses.asymmetric import AsymmetricLoss, asymmetric_loss
from mlcorr.losses.binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy_loss
from mlcorr.losses.dual_contrastive import DualContrastiveLoss
from mlcorr.losses.mld import MLDLoss, mld_loss
from mlcorr.losses.multi_order_dependency import MultiOrderDependencyLoss, multi_order_dependency_loss
from mlcorr.losses.partial.assume_negative import AssumeNegativeLoss, assume_negative_loss
from mlcorr.losses.partial.hill import HillLoss, hill_loss
from mlcorr.losses.partial.large_loss import LargeLoss, correct_large_losses, large_loss
from mlcorr.losses.partial.partial_asymmetric import PartialAsymmetricLoss, partial_asymmetric_loss
from mlcorr.losses.partial.partial_bce import PartialBCELoss, partial_bce_loss
from mlcorr.losses.partial.splc import SPLCLoss, splc_loss
from mlcorr.losses.partial.weak_assume_negative import WeakAssumeNegativeLoss, weak_assume_negative_loss
from mlcorr.losses.prototype_contrastive import prototype_contrastive_loss
from mlcorr.losses.sample_contrastive import sample_contrastive_loss

__all__ = [
    "AssumeNegativeLoss",
    "AsymmetricLoss",
    "BinaryCrossEntropyLoss",
    "DualContrastiveLoss",
    "HillLoss",
    "LargeLoss",
    "MLDLoss",
    "MultiOrderDependencyLoss",
    "PartialAsymmetricLoss",
    "PartialBCELoss",
    "SPLCLoss",
    "WeakAssumeNegativeLoss",
    "assume_negative_loss",
    "asymmetric_loss",
    "binary_cross_entropy_loss",
    "correct_large_losses",
    "hill_loss",
    "large_loss",
    "mld_loss",
    "multi_order_dependency_loss",
    "partial_asymmetric_loss",
    "partial_bce_loss",
    "prototype_contrastive_loss",
    "sample_contrastive_loss",
    "splc_loss",
    "weak_assume_negative_loss",
]
