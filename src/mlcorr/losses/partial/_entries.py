"""What treatments of unknown labels share: entries as they read them, their two terms, and selection by rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mlcorr._checks import check_floating
from mlcorr._distributed import gather_rows
from mlcorr._precision import compute_dtype
from mlcorr._targets import check_target, labels_and_known


class Entries(NamedTuple):
    """Logits and targets of one dtype, unknown targets 0, and where they are unknown."""

    x: Tensor
    y: Tensor
    unknown: Tensor


def read_entries(input: Tensor, target: Tensor) -> Entries:
    """Check logits (..., C) and targets and return them in the dtype of computation."""
    check_floating("input", input)
    check_target("target", target, "input", input)
    x = input.to(compute_dtype(input))
    y, known = labels_and_known(target, x.dtype)
    return Entries(x, y, ~known)


def log_losses(x: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return −log p and −log(1 − p), each with ε/2 of its weight given to the other."""
    positive, negative = -F.logsigmoid(x), -F.logsigmoid(-x)
    if label_smoothing == 0:
        return positive, negative
    share = label_smoothing / 2
    return (1 - share) * positive + share * negative, (1 - share) * negative + share * positive


def either(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """Return ``yes`` where ``condition`` is true and ``no`` elsewhere, in the dtype of ``like``, or its largest."""
    most = torch.finfo(like.dtype).max  # beyond which it refuses a number
    return torch.where(condition, like.new_full((), min(yes, most)), like.new_full((), min(no, most)))


def largest(scores: Tensor, among: Tensor, count: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return where the ``count`` largest of ``scores`` are of those ``among``; of equal ones the first come first.

    With a group, they are the largest of all ranks, each of which is told which of its own are among them.
    """
    candidates = torch.where(among, scores.detach(), -torch.inf).flatten()
    # Not top-k, which leaves open which of equal ones it takes.
    found, order = candidates.sort(descending=True, stable=True)
    own: Tensor | int = count if group is None else _own_share(found[:count], count, group)
    chosen = torch.arange(order.numel(), device=order.device) < own
    return torch.zeros_like(chosen).scatter(0, order, chosen).view(among.shape) & among


def _own_share(found: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
    """Return how many of the ``count`` largest of all ranks are the rank's own; each passes its largest, sorted."""
    rank = dist.get_rank(group)
    ranks = gather_rows(torch.full_like(found, rank, dtype=torch.int64), group)
    order = gather_rows(found, group).sort(descending=True, stable=True).indices
    return (ranks[order[:count]] == rank).sum()
