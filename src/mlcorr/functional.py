"""The public functions: each is the mathematics of the module of the same name, or of a part of one."""

from mlcorr.layers.average_message_gcn import average_message
from mlcorr.layers.group_wise_linear import group_wise_linear
from mlcorr.layers.spatial_purified_attention import purify, quantile_mask, spatial_aware_logits
from mlcorr.losses.asymmetric import asymmetric_loss
from mlcorr.losses.binary_cross_entropy import binary_cross_entropy_loss
from mlcorr.losses.mld import mld_loss
from mlcorr.losses.multi_order_dependency import multi_order_dependency_loss
from mlcorr.losses.partial.assume_negative import assume_negative_loss
from mlcorr.losses.partial.hill import hill_loss
from mlcorr.losses.partial.large_loss import correct_large_losses, large_loss
from mlcorr.losses.partial.partial_asymmetric import partial_asymmetric_loss
from mlcorr.losses.partial.partial_bce import partial_bce_loss
from mlcorr.losses.partial.splc import splc_loss
from mlcorr.losses.partial.weak_assume_negative import weak_assume_negative_loss
from mlcorr.losses.prototype_contrastive import prototype_contrastive_loss
from mlcorr.losses.sample_contrastive import sample_contrastive_loss

__all__ = [
    "assume_negative_loss",
    "asymmetric_loss",
    "average_message",
    "binary_cross_entropy_loss",
    "correct_large_losses",
    "group_wise_linear",
    "hill_loss",
    "large_loss",
    "mld_loss",
    "multi_order_dependency_loss",
    "partial_asymmetric_loss",
    "partial_bce_loss",
    "prototype_contrastive_loss",
    "purify",
    "quantile_mask",
    "sample_contrastive_loss",
    "spatial_aware_logits",
    "splc_loss",
    "weak_assume_negative_loss",
]
