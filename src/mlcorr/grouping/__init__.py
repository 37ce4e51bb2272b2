"""Which labels stand together: counts that are streamed batch by batch, and groups of labels that follow from them."""

from mlcorr.grouping.affinity import affinity, normalized_cut
from mlcorr.grouping.cooccurrence import LabelCooccurrence, LabelCounts
from mlcorr.grouping.label_groups import LabelGroups
from mlcorr.grouping.spectral import SpectralLabelGrouping

__all__ = ["LabelCooccurrence", "LabelCounts", "LabelGroups", "SpectralLabelGrouping", "affinity", "normalized_cut"]
