"""Label co-occurrence: counts that are streamed batch by batch."""

from mlcorr.grouping.cooccurrence import LabelCooccurrence, LabelCounts

__all__ = ["LabelCooccurrence", "LabelCounts"]
