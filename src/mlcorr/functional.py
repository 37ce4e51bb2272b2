"""The public functions: each is the mathematics of the module of the same name."""

from mlcorr.losses.asymmetric import asymmetric_loss
from mlcorr.losses.binary_cross_entropy import binary_cross_entropy_loss
from mlcorr.losses.mld import mld_loss
from mlcorr.losses.multi_order_dependency import multi_order_dependency_loss

__all__ = ["asymmetric_loss", "binary_cross_entropy_loss", "mld_loss", "multi_order_dependency_loss"]
