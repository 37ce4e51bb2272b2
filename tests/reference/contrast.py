"""SADCL's contrastive losses as the paper's sums: every anchor, every positive, every negative (Eqs. 4 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def unit(z: Tensor) -> Tensor:
    """z / max(|z|, 1e-6)."""
    norm = torch.sqrt(sum((value * value for value in z), z.new_zeros(())))
    return z / norm if norm > 1e-6 else z / 1e-6


def log_sum_exp(values: Sequence[Tensor]) -> Tensor:
    highest = max(float(value.detach()) for value in values)
    return highest + torch.log(sum((torch.exp(value - highest) for value in values), torch.zeros_like(values[0])))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return sum((p * q for p, q in zip(unit(a), unit(b), strict=True)), a.new_zeros(()))


def sample_contrastive(
    x: Tensor, labels: Tensor, keys: Tensor | None, key_labels: Tensor | None, temperature: float
) -> Tensor:
    """Eq. 4, the mean over the anchors that have a positive."""
    items = [(x[i], int(labels[i])) for i in range(len(x)) if labels[i] >= 0]
    bank = [] if keys is None else [(keys[k], int(key_labels[k])) for k in range(len(keys)) if key_labels[k] >= 0]
    losses = []
    for a, (anchor, label) in enumerate(items):
        others = [item for k, item in enumerate(items) if k != a] + bank
        similarities = [(cosine(anchor, key) / temperature, key_label) for key, key_label in others]
        positives = [s for s, key_label in similarities if key_label == label]
        if positives:
            denominator = log_sum_exp([s for s, _ in similarities])
            losses.append(-sum(s - denominator for s in positives) / len(positives))
    return sum(losses, 0.0 * x.sum()) / max(1, len(losses))


def prototype_contrastive(
    z: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, normalize_by: str = "positives"
) -> Tensor:
    """Eq. 6, over the classes with a positive."""
    losses, positives = [], 0
    for j in range(z.shape[1]):
        near = [cosine(prototypes[j], z[b, j]) / temperature for b in range(len(z)) if targets[b, j] == 1]
        known = [cosine(prototypes[j], z[b, j]) / temperature for b in range(len(z)) if targets[b, j] in (0, 1)]
        positives += len(near)
        if near:
            losses.append(log_sum_exp(known) - log_sum_exp(near))
    divisor = {"positives": positives, "classes": len(losses), "sum": 1}[normalize_by]
    return sum(losses, 0.0 * (z.sum() + prototypes.sum())) / max(1, divisor)


def by_hand() -> tuple[Tensor, Tensor, float]:
    """Four unit vectors of two labels at right angles, temperature 1, and the loss worked out on paper.

    Each anchor has one positive at cosine 1 and two negatives at cosine 0: its loss is log(e + 2) − 1.
    """
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.5]], dtype=torch.float64)
    return x, torch.tensor([0, 0, 1, 1]), math.log(math.e + 2) - 1
