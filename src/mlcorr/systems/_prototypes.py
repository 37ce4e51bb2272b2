"""Prototypes from data: for each label the mean feature of its positives that the model is sure of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import is_collection
from mlcorr._distributed import global_sum
from mlcorr._precision import compute_dtype
from mlcorr._targets import check_target

_NAMED = 20  # labels that a warning names


class PrototypeMeans:
    """Sums and counts over batches, of the sure positives and of all positives of each label.

    Args:
        like: (L, d), whose shape and device they have.
        threshold: A positive is sure whose probability is at least this.
    """

    def __init__(self, like: Tensor, threshold: float) -> None:
        self.threshold = threshold
        self.dtype = torch.float32 if like.device.type == "mps" else torch.float64  # no float64 there
        self.sums = torch.zeros(2, *like.shape, dtype=self.dtype, device=like.device)
        self.counts = torch.zeros(2, len(like), dtype=torch.int64, device=like.device)

    def update(self, features: Tensor, logits: Tensor, target: Tensor) -> None:
        """Add a batch: (B, L, d), (B, L) and (B, L)."""
        target = check_target("target", target, "logits", logits)
        positive = target == 1
        sure = positive & (logits.to(compute_dtype(logits)).sigmoid() >= self.threshold)
        chosen = torch.stack([sure, positive])
        features = torch.where(positive.unsqueeze(-1), features, 0.0)  # a NaN elsewhere is nobody's business
        self.sums += torch.einsum("kbl,bld->kld", chosen.to(self.dtype), features.to(self.dtype))
        self.counts += chosen.sum(dim=1)

    def result(self, prototypes: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """Return the prototypes over all ranks; a label without any positive keeps its direction in ``prototypes``."""
        sums, counts = global_sum(self.sums, group), global_sum(self.counts, group)
        if not counts[1].any():
            raise ValueError("batches: expected at least one label with a positive, got none")
        if not sums.isfinite().all():
            raise ValueError("batches: expected finite label features of them, got NaN or infinity")
        means = sums / counts.clamp(min=1).unsqueeze(-1)
        unsure, absent = counts[0] == 0, counts[1] == 0
        found = torch.where(unsure.unsqueeze(-1), means[1], means[0])
        length = found[~absent].mean(dim=0).norm()
        directions = torch.nn.functional.normalize(prototypes.to(self.dtype), dim=-1)
        _report(unsure & ~absent, f"no positive of a probability of {self.threshold:g}, and take the mean of them all")
        _report(absent, "no positive at all, and start at random")
        return torch.where(absent.unsqueeze(-1), length * directions, found)


def _report(labels: Tensor, what: str) -> None:
    """Warn of these labels, if there are any."""
    indices = labels.nonzero().flatten().tolist()
    if indices:
        named = ", ".join(map(str, indices[:_NAMED])) + (", …" if len(indices) > _NAMED else "")
        warnings.warn(f"prototypes: {len(indices)} of {len(labels)} labels have {what}: {named}", stacklevel=4)


def check_batches(batches: object) -> Iterator[Sequence[Tensor]]:
    """Yield the batches, each a pair or a triple."""
    if not is_collection(batches):
        raise TypeError(f"batches: expected pairs (images, target), got {type(batches).__name__}")
    for batch in batches:
        if not isinstance(batch, (tuple, list)):
            raise TypeError(
                f"batches: expected pairs (images, target) or triples with valid, got {type(batch).__name__}"
            )
        if len(batch) not in (2, 3):
            raise ValueError(f"batches: expected pairs (images, target) or triples with valid, got {len(batch)} in one")
        yield batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part is in the mode it was in."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
