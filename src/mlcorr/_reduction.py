"""The one reduction that every loss uses."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist

from mlcorr._distributed import global_sum

Reduction: TypeAlias = Literal["none", "mean", "sum", "batchmean"]
REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "sum", "batchmean")


def reduce(
    loss: torch.Tensor, valid: torch.Tensor | None, reduction: Reduction, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Reduce a loss per entry of shape (..., C), whose entries outside ``valid`` are zero already.

    ``"mean"`` divides by the number of valid entries, ``"batchmean"`` by the number of rows (all
    dimensions but the last) with a valid entry, of all ranks. Where there is none, the result is 0.
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return global_sum(loss.sum(), group)
    # Divided before it is summed, so that no sum overflows where its mean does not.
    if valid is None:
        count = loss.numel() if reduction == "mean" else math.prod(loss.shape[:-1])
        if group is None:
            return (loss / max(count, 1)).sum()
        counted = torch.tensor(count, device=loss.device)
    else:
        counted = (valid if reduction == "mean" else valid.any(dim=-1)).sum()
    return global_sum((loss / global_sum(counted, group).clamp(min=1)).sum(), group)
