"""Layers that refine one feature vector per label: for each a function (the mathematics) and a module."""

from mlcorr.layers.average_message_gcn import AverageMessageGCN, average_message
from mlcorr.layers.bidirectional_refiner import BidirectionalRefiner
from mlcorr.layers.group_wise_linear import GroupWiseLinear, group_wise_linear
from mlcorr.layers.spatial_purified_attention import (
    PurifiedFeatures,
    SpatialPurifiedAttention,
    purify,
    quantile_mask,
    spatial_aware_logits,
)

__all__ = [
    "AverageMessageGCN",
    "BidirectionalRefiner",
    "GroupWiseLinear",
    "PurifiedFeatures",
    "SpatialPurifiedAttention",
    "average_message",
    "group_wise_linear",
    "purify",
    "quantile_mask",
    "spatial_aware_logits",
]
