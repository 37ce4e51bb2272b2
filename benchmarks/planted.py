"""Targets of labels that were put into groups beforehand, streamed in sparse batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def planted_groups(num_labels: int, num_groups: int, seed: int = 0) -> Tensor:
    """Return the hidden group (C,) of each label; the groups differ in size by one label at most."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_labels, generator=generator) % num_groups


def planted_targets(
    groups: Tensor, rows: int, *, labels_per_row: int = 5, noise: float = 0.1, batch: int = 100_000, seed: int = 0
) -> Iterator[Tensor]:
    """Yield sparse COO targets (batch, C) of uint8: each row has labels of one hidden group, some of any by noise.

    Args:
        groups: (C,) hidden groups, none of them empty.
        rows: N, in all batches together.
        labels_per_row: Draws for each row; a label that is drawn twice is there once.
        noise: Share of draws that are of all labels instead of the row's group.
        batch: Most rows in a batch.
        seed: What the draws follow from; the global random state is not read.
    """
    generator = torch.Generator().manual_seed(seed)
    num_labels, sizes = len(groups), groups.bincount()
    by_group = groups.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    for start in range(0, rows, batch):
        shape = (min(batch, rows - start), labels_per_row)
        group = torch.randint(len(sizes), (shape[0], 1), generator=generator)
        place = (torch.rand(shape, generator=generator, dtype=torch.float64) * sizes[group]).long()
        label = by_group[first[group] + place]
        stray = torch.rand(shape, generator=generator) < noise
        label = torch.where(stray, torch.randint(num_labels, shape, generator=generator), label)
        row = torch.arange(shape[0]).repeat_interleave(labels_per_row)
        key = (row * num_labels + label.flatten()).unique()
        index = torch.stack([key // num_labels, key % num_labels])
        ones = torch.ones(len(key), dtype=torch.uint8)
        yield torch.sparse_coo_tensor(index, ones, (shape[0], num_labels), is_coalesced=True, check_invariants=False)
