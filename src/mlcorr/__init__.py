"""Losses and layers for multi-label learning where labels depend on each other.

Parts are imported from here, as functions from :mod:`mlcorr.functional`, scores from :mod:`mlcorr.metrics`, and
assembled systems from :mod:`mlcorr.systems`.
"""

from mlcorr import functional as functional
from mlcorr import metrics as metrics
from mlcorr.grouping import LabelCooccurrence, LabelGroups, SpectralLabelGrouping
from mlcorr.layers import (
    AverageMessageGCN,
    BidirectionalRefiner,
    GroupWiseLinear,
    PurifiedFeatures,
    SpatialPurifiedAttention,
)
from mlcorr.losses import (
    AssumeNegativeLoss,
    AsymmetricLoss,
    BinaryCrossEntropyLoss,
    DualContrastiveLoss,
    HillLoss,
    LargeLoss,
    MLDLoss,
    MultiOrderDependencyLoss,
    PartialAsymmetricLoss,
    PartialBCELoss,
    SPLCLoss,
    WeakAssumeNegativeLoss,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "AssumeNegativeLoss",
    "AsymmetricLoss",
    "AverageMessageGCN",
    "BidirectionalRefiner",
    "BinaryCrossEntropyLoss",
    "DualContrastiveLoss",
    "GroupWiseLinear",
    "HillLoss",
    "LabelCooccurrence",
    "LabelGroups",
    "LargeLoss",
    "MLDLoss",
    "MultiOrderDependencyLoss",
    "PartialAsymmetricLoss",
    "PartialBCELoss",
    "PurifiedFeatures",
    "SPLCLoss",
    "SpatialPurifiedAttention",
    "SpectralLabelGrouping",
    "WeakAssumeNegativeLoss",
]
