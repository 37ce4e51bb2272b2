"""Losses and layers for multi-label learning where labels depend on each other.

Parts are imported from here, as functions from :mod:`mlcorr.functional`, scores from :mod:`mlcorr.metrics`, and
assembled systems from :mod:`mlcorr.systems`.
"""

from mlcorr.grouping import LabelCooccurrence, LabelGroups, SpectralLabelGrouping
from mlcorr.layers import (
    AverageMessageGCN,
    BidirectionalRefiner,
    GroupWiseLinear,
    PurifiedFeatures,
    SpatialPurifiedAttention,
)
from mlcorr.losses import (
    AsymmetricLoss,
    BinaryCrossEntropyLoss,
    DualContrastiveLoss,
    MLDLoss,
    MultiOrderDependencyLoss,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "AsymmetricLoss",
    "AverageMessageGCN",
    "BidirectionalRefiner",
    "BinaryCrossEntropyLoss",
    "DualContrastiveLoss",
    "GroupWiseLinear",
    "LabelCooccurrence",
    "LabelGroups",
    "MLDLoss",
    "MultiOrderDependencyLoss",
    "PurifiedFeatures",
    "SpatialPurifiedAttention",
    "SpectralLabelGrouping",
]
