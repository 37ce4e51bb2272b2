"""The public functions: each is the mathematics of the module of the same name, or of a part of one."""

from mlcorr.layers.average_message_gcn import average_message
from mlcorr.layers.group_wise_linear import group_wise_linear
from mlcorr.layers.spatial_purified_attention import purify, quantile_mask, spatial_aware_logits
from mlcorr.losses.asymmetric import asymmetric_loss
from mlcorr.losses.binary_cross_entropy import binary_cross_entropy_loss
from mlcorr.losses.mld import mld_loss
from mlcorr.losses.multi_order_dependency import multi_order_dependency_loss
from mlcorr.losses.prototype_contrastive import prototype_contrastive_loss
from mlcorr.losses.sample_contrastive import sample_contrastive_loss

__all__ = [
    "asymmetric_loss",
    "average_message",
    "binary_cross_entropy_loss",
    "group_wise_linear",
    "mld_loss",
    "multi_order_dependency_loss",
    "prototype_contrastive_loss",
    "purify",
    "quantile_mask",
    "sample_contrastive_loss",
    "spatial_aware_logits",
]
