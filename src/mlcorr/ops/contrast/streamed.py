"""Similarities block by block, in PyTorch: at no time more than a few blocks of them are in memory.

Where rows are compared with one another, a block above the diagonal serves the one below it too: half of the products,
and in the gradient both directions in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


def statistics(
    rows: Tensor,
    columns: Tensor | None,
    row_labels: Tensor,
    column_labels: Tensor | None,
    scale: float,
    positives: bool,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of every row, log Σ exp(s) over its columns, Σ s over those of its label, and their number.

    Args:
        rows: (R, D), float32 or float64.
        columns: (C, D), or None: the rows, each without itself.
        row_labels: (R,) int64; < 0 where a row does not count, whatever stands in its results.
        column_labels: (C,) int64; < 0 where a column is left out.
        scale: s is ``scale`` times the inner product.
        positives: whether the sum and the number are asked for; else they are empty.
        block_size: of rows and of columns.
    """
    lse = rows.new_full((len(rows),), -torch.inf)
    positive = rows.new_zeros(len(rows) if positives else 0)
    count = row_labels.new_zeros(len(rows) if positives else 0)
    for block in _blocks(rows, columns, row_labels, column_labels, scale, block_size):
        i, j, s = block.rows, block.columns, block.similarities
        lse[i] = torch.logaddexp(lse[i], s.logsumexp(dim=1))
        if block.mirrored:
            lse[j] = torch.logaddexp(lse[j], s.logsumexp(dim=0))
        if positives:
            alike = block.alike()
            s = s.masked_fill_(~alike, 0.0)
            positive[i] += s.sum(dim=1)
            count[i] += alike.sum(dim=1)
            if block.mirrored:
                positive[j] += s.sum(dim=0)
                count[j] += alike.sum(dim=0)
    return lse, positive, count


def gradient(
    grad_lse: Tensor,
    grad_positive: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    row_labels: Tensor,
    column_labels: Tensor | None,
    lse: Tensor,
    scale: float,
    to_rows: bool,
    to_columns: bool,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to rows and columns; what is not asked for, and that to columns of None, is empty.

    ``lse`` may be over more columns than these; −inf stands for a row without any.
    """
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # exp(s − lse) is 0 then
    to_columns = to_columns and columns is not None
    of_rows = torch.zeros_like(rows if to_rows else rows[:0])
    of_columns = torch.zeros_like(columns) if columns is not None and to_columns else rows.new_zeros(0)
    other = rows if columns is None else columns
    for block in _blocks(rows, columns, row_labels, column_labels, scale, block_size):
        i, j, s = block.rows, block.columns, block.similarities
        weights = (s - lse[i].unsqueeze(1)).exp_().mul_(grad_lse[i].unsqueeze(1))
        if columns is None:
            weights += s.sub_(lse[j]).exp_().mul_(grad_lse[j])
        if grad_positive is not None:
            of_alike = grad_positive[i].unsqueeze(1)
            of_alike = of_alike + grad_positive[j] if columns is None else of_alike
            weights += of_alike * block.alike()
        if to_rows:
            of_rows[i].addmm_(weights, other[j], alpha=scale)
        if to_columns:
            of_columns[j].addmm_(weights.mT, rows[i], alpha=scale)
        elif to_rows and block.mirrored:
            of_rows[j].addmm_(weights.mT, rows[i], alpha=scale)
    return of_rows if to_rows else rows.new_zeros(0), of_columns


class _Block(NamedTuple):
    """Similarities of some rows and columns, −inf where a column is left out (or a row, where rows are columns)."""

    rows: slice
    columns: slice
    similarities: Tensor
    row_labels: Tensor
    column_labels: Tensor
    own: bool  # on the diagonal
    mirrored: bool  # stands for the block below the diagonal too

    def alike(self) -> Tensor:
        """Return where row and column have one label."""
        unknown = self.column_labels < 0
        alike = self.row_labels.unsqueeze(1) == self.column_labels.masked_fill(unknown, torch.iinfo(torch.int64).min)
        return alike.fill_diagonal_(False) if self.own else alike


def _blocks(
    rows: Tensor,
    columns: Tensor | None,
    row_labels: Tensor,
    column_labels: Tensor | None,
    scale: float,
    block_size: int,
) -> Iterator[_Block]:
    same = columns is None
    other, other_labels = (rows, row_labels) if columns is None or column_labels is None else (columns, column_labels)
    left_out = torch.zeros_like(other[:, 0]).masked_fill_(other_labels < 0, -torch.inf)
    for first in range(0, len(rows), block_size):
        i = slice(first, first + block_size)
        scaled = rows[i] * scale
        for second in range(first if same else 0, len(other), block_size):
            j = slice(second, second + block_size)
            s = torch.addmm(left_out[j], scaled, other[j].mT)
            own = same and first == second
            if same:
                s += left_out[i].unsqueeze(1)
            if own:
                s.fill_diagonal_(-torch.inf)
            yield _Block(i, j, s, row_labels[i], other_labels[j], own, same and not own)
