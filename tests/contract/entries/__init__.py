"""Everything public that may be called, with good values to go from."""

from __future__ import annotations

from tests.contract.entries.backbones import BACKBONES
from tests.contract.entries.contrasts import CONTRASTS
from tests.contract.entries.entry import Entry
from tests.contract.entries.grouping import GROUPING
from tests.contract.entries.layers import LAYERS
from tests.contract.entries.logits import LOGITS
from tests.contract.entries.metrics import METRICS
from tests.contract.entries.pairs import PAIRS
from tests.contract.entries.systems import SYSTEMS

ENTRIES: list[Entry] = [
    *LOGITS,
    *PAIRS,
    *CONTRASTS,
    *LAYERS,
    *SYSTEMS,
    *BACKBONES,
    *GROUPING,
    *METRICS,
]
