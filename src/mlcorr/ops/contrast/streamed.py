"""Similarities block by block, in PyTorch: at no time more than a few blocks of them are in memory.

Where rows are compared with one another, a block above the diagonal serves the one below it too: half of the products,
and in the gradient both directions in one.

Vectors are of length one, so that s lies between −scale and scale. Unless that is wide, exponentials of s − scale
neither overflow nor vanish, and their sums need no running maximum; what e^(s − log-sum-exp) is in the gradient is then
the product of one block and a number for each row. A block costs two passes besides its products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Up to this scale e^(−2·scale) is a normal number, and its inverse times a large gradient does not overflow.
_WIDEST = {torch.float32: 30.0, torch.float64: 300.0}


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
        rows: (R, D), float32 or float64, of length one or 0.
        columns: (C, D), or None: the rows, each without itself.
        row_labels: (R,) int64; < 0 where a row does not count, whatever stands in its results.
        column_labels: (C,) int64; < 0 where a column is left out.
        scale: s is ``scale`` times the inner product.
        positives: whether the sum and the number are asked for; else they are empty.
        block_size: of rows and of columns.
    """
    lse = rows.new_full((len(rows),), -torch.inf)
    total = rows.new_zeros(len(rows))
    positive = rows.new_zeros(len(rows) if positives else 0)
    count = row_labels.new_zeros(len(rows) if positives else 0)
    narrow = scale <= _WIDEST[rows.dtype]
    for block in _blocks(rows, columns, row_labels, column_labels, scale, block_size, scale if narrow else 0.0):
        i, j, s = block.rows, block.columns, block.similarities
        if positives:
            alike = block.alike()
            of_alike = torch.where(alike, s + scale if narrow else s, 0.0)
            positive[i] += of_alike.sum(dim=1)
            count[i] += alike.sum(dim=1)
            if block.mirrored:
                positive[j] += of_alike.sum(dim=0)
                count[j] += alike.sum(dim=0)
        if narrow:
            e = block.without_itself(s.exp_(), 0.0)
            total[i] += e @ block.column_counts
            if block.mirrored:
                total[j] += block.row_counts @ e
        else:
            s = block.without_itself(s, -torch.inf)
            lse[i] = torch.logaddexp(lse[i], (s + block.column_counts.log()).logsumexp(dim=1))
            if block.mirrored:
                lse[j] = torch.logaddexp(lse[j], (s + block.row_counts.log().unsqueeze(1)).logsumexp(dim=0))
    return total.log() + scale if narrow else lse, positive, count


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
    same = columns is None
    to_columns = to_columns and not same
    of_rows = rows.new_zeros(rows.shape if to_rows else 0)
    of_columns = rows.new_zeros(columns.shape if columns is not None and to_columns else 0)
    narrow = scale <= _WIDEST[rows.dtype]
    shift = scale if narrow else 0.0
    # Of a row without columns there is no gradient.
    factor = grad_lse * (shift - lse).exp().masked_fill_(lse == -torch.inf, 0.0) if narrow else grad_lse
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    for block in _blocks(rows, columns, row_labels, column_labels, scale, block_size, shift):
        i, j, s = block.rows, block.columns, block.similarities
        if narrow:
            by_row = factor[i].unsqueeze(1)
            weights = s.exp_().mul_(by_row + factor[j] if same else by_row)
        else:
            # No share is above 1. An s rounds otherwise where row and column change places, and a large one by much: a
            # row's log-sum-exp is of its own.
            weights = (s - lse[i].unsqueeze(1)).clamp_(max=0).exp_().mul_(grad_lse[i].unsqueeze(1))
            if block.own:
                weights = weights + weights.mT
            elif same:
                weights += s.sub_(lse[j]).clamp_(max=0).exp_().mul_(grad_lse[j])
        weights = block.without_itself(weights, 0.0)
        if grad_positive is not None:
            of_alike = grad_positive[i].unsqueeze(1)
            weights += (of_alike + grad_positive[j] if same else of_alike) * block.alike()
        if to_rows:
            of_rows[i].addmm_(weights, block.right, alpha=scale)
        if to_columns:
            of_columns[j].addmm_(weights.mT, block.left, alpha=scale)
        elif to_rows and block.mirrored:
            of_rows[j].addmm_(weights.mT, block.left, alpha=scale)
    if to_rows and same:
        of_rows.masked_fill_((row_labels < 0).unsqueeze(1), 0.0)
    if to_columns and column_labels is not None:
        of_columns.masked_fill_((column_labels < 0).unsqueeze(1), 0.0)
    return of_rows, of_columns


class _Block(NamedTuple):
    """Similarities of some rows and columns, those of what does not count being of zeros."""

    rows: slice
    columns: slice
    left: Tensor
    right: Tensor
    similarities: Tensor
    row_labels: Tensor
    column_labels: Tensor
    row_counts: Tensor  # 1.0, or 0.0
    column_counts: Tensor
    own: bool  # on the diagonal
    mirrored: bool  # stands for the block below the diagonal too

    def alike(self) -> Tensor:
        """Return where row and column have one label."""
        unknown = self.column_labels < 0
        alike = self.row_labels.unsqueeze(1) == self.column_labels.masked_fill(unknown, torch.iinfo(torch.int64).min)
        return self.without_itself(alike, False)

    def without_itself(self, x: Tensor, value: float) -> Tensor:
        """Return ``x``, changed in place, with ``value`` where a row is its own column."""
        return x.fill_diagonal_(value) if self.own else x


def _blocks(
    rows: Tensor,
    columns: Tensor | None,
    row_labels: Tensor,
    column_labels: Tensor | None,
    scale: float,
    block_size: int,
    shift: float,
) -> Iterator[_Block]:
    """Yield the blocks, ``shift`` subtracted from their similarities."""
    same = columns is None
    row_counts = (row_labels >= 0).to(rows.dtype)
    if columns is None or column_labels is None:
        rows = other = _without_left_out(rows, row_labels)
        other_labels, other_counts = row_labels, row_counts
    else:
        other, other_labels = _without_left_out(columns, column_labels), column_labels
        other_counts = (column_labels >= 0).to(rows.dtype)
    offset = rows.new_full((1,), -shift)
    for first in range(0, len(rows), block_size):
        i = slice(first, first + block_size)
        for second in range(first if same else 0, len(other), block_size):
            j = slice(second, second + block_size)
            s = torch.addmm(offset, rows[i], other[j].mT, alpha=scale)
            own = same and first == second
            yield _Block(
                i, j, rows[i], other[j], s, row_labels[i], other_labels[j], row_counts[i], other_counts[j],
                own, same and not own,
            )  # fmt: skip


def _without_left_out(x: Tensor, labels: Tensor) -> Tensor:
    return x.masked_fill((labels < 0).unsqueeze(1), 0.0)
