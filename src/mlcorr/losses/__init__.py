"""Losses: for each a function (the mathematics) and a module (its configuration)."""

from mlcorr.losses.asymmetric import AsymmetricLoss, asymmetric_loss
from mlcorr.losses.binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy_loss
from mlcorr.losses.dual_contrastive import DualContrastiveLoss
from mlcorr.losses.mld import MLDLoss, mld_loss
from mlcorr.losses.multi_order_dependency import MultiOrderDependencyLoss, multi_order_dependency_loss
from mlcorr.losses.prototype_contrastive import prototype_contrastive_loss
from mlcorr.losses.sample_contrastive import sample_contrastive_loss

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropyLoss",
    "DualContrastiveLoss",
    "MLDLoss",
    "MultiOrderDependencyLoss",
    "asymmetric_loss",
    "binary_cross_entropy_loss",
    "mld_loss",
    "multi_order_dependency_loss",
    "prototype_contrastive_loss",
    "sample_contrastive_loss",
]
