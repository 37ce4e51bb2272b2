"""Triton kernels of the streamed similarities: no more of them than a tile of each program is there, or a few blocks.

A program takes a tile of rows and goes over the columns, or over a share of them where there are too few rows to fill a
GPU. Shares are put together in a fixed order, so that every run gives the same bits. Where rows are compared with one
another both halves of the symmetric similarities are computed: to hand a tile's sums over to its columns would take
either atomics or the sums of every tile in memory.

The gradient is a matrix of weights times what stands at the other side. To rows, to columns, or to rows that are both
it is one kernel: weights have a term of the row's log-sum-exp, one of the column's, or the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlcorr.ops.launching import dense, on_device

# Rows, columns and dimensions of a tile, and warps: the largest of which nothing is spilled on Hopper
# (benchmarks/results/kernels.jsonl). Three products of TF32 take each operand twice.
_PRODUCTS = {torch.float32: (64, 64, 32, 4), torch.float64: (64, 64, 16, 8)}
_GRADIENT = {torch.float32: (64, 32, 16, 8), torch.float64: (64, 32, 16, 8)}

# Dimensions of the gradient that a program holds beside its tile: all of them, or the similarities would be computed
# anew for every such chunk. Of more, products cost so much that it pays to take the weights through memory.
_WIDTH = {torch.float32: 256, torch.float64: 64}

# Before 3.5, Triton has no product of float64: small tiles of sums then.
_SUMS = tuple(int(number) for number in triton.__version__.split(".")[:2]) < (3, 5)
if _SUMS:
    _PRODUCTS[torch.float64] = _GRADIENT[torch.float64] = (16, 16, 16, 4)
    _WIDTH[torch.float64] = 32

# Rows are padded to a multiple of it.
_STEP = 32

# Programs of a launch, if rows and columns suffice: enough for a GPU at a few of them for each multiprocessor.
_PROGRAMS = 1024

# Bytes of all shares of a result, of a block of weights, and of a block of columns that are left out in part.
_SCRATCH = 2**26
_HEIGHT = 4096  # of a block of weights, at most


def statistics(
    rows: Tensor,
    columns: Tensor | None,
    row_labels: Tensor,
    column_labels: Tensor | None,
    scale: float,
    positives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of every row, log Σ exp(s) over its columns, Σ s over those of its label, and their number.

    Args:
        rows: (R, D), float32 or float64.
        columns: (C, D), or None: the rows, each without itself.
        row_labels: (R,) int64.
        column_labels: (C,) int64; < 0 where a column is left out.
        scale: s is ``scale`` times the inner product.
        positives: whether the sum and the number are asked for; else they are empty.
    """
    rows = _aligned(rows)
    other, other_labels = _other(rows, columns, row_labels, column_labels)
    number = len(rows)
    tile = _tile(_PRODUCTS, rows)
    blocks = triton.cdiv(number, tile["ROWS"])
    each, shares = _shares(blocks, triton.cdiv(len(other), tile["COLUMNS"]), 3 * 8 * number)
    lse = rows.new_empty(shares, number)
    asked = (shares, number) if positives else (shares, 0)
    positive, count = rows.new_empty(asked), row_labels.new_empty(asked)
    if number:
        with on_device(rows):
            _sum_statistics[blocks, shares](
                rows, other, dense(row_labels), dense(other_labels), rows.new_full((1,), scale),
                lse, positive if positives else None, count if positives else None,
                number, len(other), rows.shape[1], each,
                SELF=columns is None, PRECISION=_precision(rows), **tile,
            )  # fmt: skip
    if shares == 1:
        return lse[0], positive[0], count[0]
    return lse.logsumexp(dim=0), positive.sum(dim=0), count.sum(dim=0)


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
) -> tuple[Tensor, Tensor]:
    """Return the gradients to rows and columns; what is not asked for, and that to columns of None, is empty.

    ``lse`` may be over more columns than these; −inf stands for a row without any.
    """
    dims, rows = rows.shape[1], _aligned(rows)
    other, other_labels = _other(rows, columns, row_labels, column_labels)
    upstream = (dense(lse), dense(grad_lse), None if grad_positive is None else dense(grad_positive))
    same = columns is None
    sides = (rows, other, dense(row_labels), dense(other_labels))
    asked = (to_rows, to_columns and not same)
    if rows.shape[1] > _WIDTH[rows.dtype]:
        of_rows, of_columns = _wide_gradient(*sides, upstream, scale, same, *asked)
    else:
        of_rows, of_columns = rows.new_empty(0), rows.new_empty(0)
        if asked[0]:
            of_rows = _gradient(*sides, upstream, upstream if same else _NOTHING, scale, same)
        if asked[1]:
            of_columns = _gradient(*sides[1::-1], *sides[:1:-1], _NOTHING, upstream, scale, same)
    return dense(of_rows[..., :dims]), dense(of_columns[..., :dims])


# Log-sum-exp of a side and the gradients to it and to the sum of positives; of a side without any, absent.
_Upstream = tuple[Tensor | None, Tensor | None, Tensor | None]
_NOTHING = (None, None, None)


def _gradient(
    rows: Tensor,
    columns: Tensor,
    row_labels: Tensor,
    column_labels: Tensor,
    of_rows: _Upstream,
    of_columns: _Upstream,
    scale: float,
    same: bool,
) -> Tensor:
    """Return weights · columns (R, D), the weights by what came down to rows, to columns, or to both."""
    number, dims = rows.shape
    tile = _tile(_GRADIENT, rows)
    width = min(max(triton.next_power_of_2(dims), 16), _WIDTH[rows.dtype])
    blocks = triton.cdiv(number, tile["ROWS"])
    size = number * dims * rows.element_size()
    each, shares = _shares(blocks, triton.cdiv(len(columns), tile["COLUMNS"]), size)
    result = rows.new_empty(shares, number, dims)
    if result.numel():
        with on_device(rows):
            _sum_gradient[blocks, shares](
                rows, columns, row_labels, column_labels, rows.new_full((1,), scale), *of_rows, *of_columns, result,
                number, len(columns), dims, each,
                SELF=same, PRECISION=_precision(rows), WIDTH=width, **tile,
            )  # fmt: skip
    return result[0] if shares == 1 else result.sum(dim=0)


def _wide_gradient(
    rows: Tensor,
    columns: Tensor,
    row_labels: Tensor,
    column_labels: Tensor,
    upstream: _Upstream,
    scale: float,
    same: bool,
    to_rows: bool,
    to_columns: bool,
) -> tuple[Tensor, Tensor]:
    """Return both gradients of rows too long for a program: weights go through memory, a block of them at a time.

    They are computed once for both gradients, and the products with them are the vendor's.
    """
    of_rows, of_columns = (x.new_zeros(x.shape if to else 0) for x, to in ((rows, to_rows), (columns, to_columns)))
    entries = _SCRATCH // rows.element_size()
    height = max(min(len(rows), _HEIGHT), 1)
    width = min(entries // height, entries // rows.shape[1])
    width = max(min(len(columns), width // _STEP * _STEP or width), 1)  # blocks begin at aligned addresses
    scratch = rows.new_empty(height * width if to_rows or to_columns else 0)
    tile, factor = _tile(_PRODUCTS, rows), rows.new_full((1,), scale)
    for first in range(0, len(rows) if len(scratch) else 0, height):
        i = slice(first, first + height)
        x, of_x = rows[i], [None if of is None else of[i] for of in upstream]
        for second in range(0, len(columns), width):
            j = slice(second, second + width)
            y, of_y = columns[j], [None if of is None else of[j] for of in (upstream if same else _NOTHING)]
            weights = scratch[: len(x) * len(y)].view(len(x), len(y))
            with on_device(rows):
                _store_weights[triton.cdiv(len(x), tile["ROWS"]), triton.cdiv(len(y), tile["COLUMNS"])](
                    x, y, row_labels[i], column_labels[j], factor, *of_x, *of_y, weights,
                    len(x), len(y), rows.shape[1], first - second,
                    SELF=same, PRECISION=_precision(rows), **tile,
                )  # fmt: skip
            if to_columns:
                of_columns[j].addmm_(weights.mT, x, alpha=scale)
            if to_rows:
                if not same:  # 0 times what is left out need not be 0
                    y = y.masked_fill((column_labels[j] < 0).unsqueeze(1), 0.0)
                of_rows[i].addmm_(weights, y, alpha=scale)
    return of_rows, of_columns


def _tile(tiles: dict[torch.dtype, tuple[int, int, int, int]], x: Tensor) -> dict[str, int]:
    return dict(zip(("ROWS", "COLUMNS", "DEPTH", "num_warps"), tiles[x.dtype], strict=True))


def _other(
    rows: Tensor, columns: Tensor | None, row_labels: Tensor, column_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    return (rows, row_labels) if columns is None or column_labels is None else (_aligned(columns), column_labels)


def _aligned(x: Tensor) -> Tensor:
    """Return ``x`` row after row, each a whole number of steps: kernels need no mask, which would take registers."""
    missing = -x.shape[1] % _STEP
    return torch.nn.functional.pad(x, (0, missing)) if missing else dense(x)


def _shares(programs: int, tiles: int, size: int) -> tuple[int, int]:
    """Return how many tiles of columns a share has, and the number of shares, of ``size`` bytes each."""
    shares = max(min(_PROGRAMS // max(programs, 1), _SCRATCH // max(size, 1), tiles), 1)
    each = triton.cdiv(tiles, shares)
    return each, max(triton.cdiv(tiles, max(each, 1)), 1)


def _precision(x: Tensor) -> str:
    """Return how products are made: of float32, on NVIDIA's tensor cores, three of TF32 keep nearly all digits."""
    if x.dtype == torch.float64:
        return "sums" if _SUMS else "ieee"
    if x.device.type != "cuda" or torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if torch.cuda.get_device_capability(x.device) >= (8, 0) else "ieee"


@triton.jit
def _product(x, y, sums, PRECISION: tl.constexpr):
    if PRECISION == "sums":
        result = sums + tl.sum(x[:, :, None] * y[None, :, :], axis=1)
    else:
        result = tl.dot(x, y, sums, input_precision=PRECISION, out_dtype=sums.dtype)
    return result


@triton.jit
def _similarities(
    rows, columns, row, column, in_rows, in_columns, dims, PRECISION: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """Return the inner products of a tile, over ``DEPTH`` dimensions at a time."""
    products = tl.zeros((row.shape[0], column.shape[0]), rows.dtype.element_ty)
    dim = tl.arange(0, DEPTH)
    rows += row.to(tl.int64)[:, None] * dims + dim[None, :]
    columns += column.to(tl.int64)[None, :] * dims + dim[:, None]
    for first in range(0, dims, DEPTH):
        x = tl.load(rows + first, mask=in_rows[:, None], other=0)
        y = tl.load(columns + first, mask=in_columns[None, :], other=0)
        products = _product(x, y, products, PRECISION)
    return products


@triton.jit(do_not_specialize=["row_number", "column_number", "each"])
def _sum_statistics(
    rows, columns, row_labels, column_labels, scale, lse, positive, count, row_number, column_number, dims, each,
    SELF: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = row < row_number
    factor = tl.load(scale)
    top = tl.full((ROWS,), float("-inf"), rows.dtype.element_ty)
    total = tl.zeros((ROWS,), rows.dtype.element_ty)
    alike_total = tl.zeros((ROWS,), rows.dtype.element_ty)
    alike_number = tl.zeros((ROWS,), tl.int32)
    first = tl.program_id(1) * each
    for tile in range(first, tl.minimum(first + each, tl.cdiv(column_number, COLUMNS))):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        in_columns = column < column_number
        # What is left out is not read either: it may be anything.
        kept = tl.load(column_labels + column, mask=in_columns, other=-1) >= 0
        s = factor * _similarities(rows, columns, row, column, in_rows, kept, dims, PRECISION, DEPTH)
        # Read anew, and not before: labels would take the registers of the product.
        tl.debug_barrier()
        label = tl.load(column_labels + column, mask=in_columns, other=-1)
        valid = (label >= 0)[None, :]
        if SELF:
            valid &= row[:, None] != column[None, :]
        if positive is not None:
            row_label = tl.load(row_labels + row, mask=in_rows, other=-1)
            alike = valid & (row_label[:, None] == label[None, :])
            alike_total += tl.sum(tl.where(alike, s, 0.0), axis=1)
            alike_number += tl.sum(alike.to(tl.int32), axis=1)
        s = tl.where(valid, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no column yet
        total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[:, None]), axis=1)
        top = new_top
    place = tl.program_id(1).to(tl.int64) * row_number + row
    none = total == 0
    tl.store(lse + place, tl.where(none, float("-inf"), top + tl.log(tl.where(none, 1.0, total))), mask=in_rows)
    if positive is not None:
        tl.store(positive + place, alike_total, mask=in_rows)
        tl.store(count + place, alike_number.to(tl.int64), mask=in_rows)


@triton.jit
def _term(s, valid, alike, lse, grad, grad_positive, item, inside):
    """Return, by what came down to some rows or columns, grad·e^(s − lse) and more where labels are alike."""
    base = tl.load(lse + item, mask=inside, other=float("inf"))
    base = tl.where(base == float("-inf"), float("inf"), base)  # e^(s − ∞) is 0 where there was no log-sum-exp
    of_lse = tl.load(grad + item, mask=inside, other=0)
    exponent = tl.where(valid, s, float("-inf")) - base
    weights = of_lse * tl.exp(tl.where(exponent > 0, 0.0, exponent))  # a large s rounds otherwise from the other side
    if grad_positive is not None:
        weights += tl.where(alike, tl.load(grad_positive + item, mask=inside, other=0), 0.0)
    return tl.where(valid, weights, 0.0)


@triton.jit
def _read(column_labels, column, in_columns, column_lse):
    """Return which columns are read: what is left out may be anything, but is no column where it is a row too."""
    read = in_columns
    if column_lse is None:
        read = tl.load(column_labels + column, mask=in_columns, other=-1) >= 0
    return read


@triton.jit
def _weights(
    s, row_labels, column_labels, row_lse, row_grad, row_positive, column_lse, column_grad, column_positive,
    row, column, in_rows, in_columns, shift, SELF: tl.constexpr,
):  # fmt: skip
    tl.debug_barrier()  # see _sum_statistics
    row_label = tl.load(row_labels + row, mask=in_rows, other=-1)[:, None]
    label = tl.load(column_labels + column, mask=in_columns, other=-1)[None, :]
    apart = in_rows[:, None] & in_columns[None, :]
    if SELF:
        apart &= row[:, None] + shift != column[None, :]
    alike = row_label == label
    weights = tl.zeros_like(s)
    if row_lse is not None:
        valid = apart & (label >= 0)
        weights += _term(s, valid, alike, row_lse, row_grad, row_positive, row[:, None], in_rows[:, None])
    if column_lse is not None:
        valid = apart & (row_label >= 0)
        weights += _term(
            s, valid, alike, column_lse, column_grad, column_positive, column[None, :], in_columns[None, :]
        )
    return weights


@triton.jit(do_not_specialize=["row_number", "column_number", "each"])
def _sum_gradient(
    rows, columns, row_labels, column_labels, scale, row_lse, row_grad, row_positive,
    column_lse, column_grad, column_positive, result, row_number, column_number, dims, each,
    SELF: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = row < row_number
    factor = tl.load(scale)
    dim = tl.arange(0, WIDTH)
    in_dims = dim < dims
    sums = tl.zeros((ROWS, WIDTH), rows.dtype.element_ty)
    first = tl.program_id(1) * each
    for tile in range(first, tl.minimum(first + each, tl.cdiv(column_number, COLUMNS))):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        in_columns = column < column_number
        read = _read(column_labels, column, in_columns, column_lse)
        s = factor * _similarities(rows, columns, row, column, in_rows, read, dims, PRECISION, DEPTH)
        weights = _weights(
            s, row_labels, column_labels, row_lse, row_grad, row_positive, column_lse, column_grad, column_positive,
            row, column, in_rows, in_columns, 0, SELF,
        )  # fmt: skip
        place = columns + column.to(tl.int64)[:, None] * dims + dim[None, :]
        y = tl.load(place, mask=read[:, None] & in_dims[None, :], other=0)
        sums = _product(weights, y, sums, PRECISION)
    place = result + (tl.program_id(1).to(tl.int64) * row_number + row)[:, None] * dims + dim[None, :]
    tl.store(place, factor * sums, mask=in_rows[:, None] & in_dims[None, :])


@triton.jit(do_not_specialize=["row_number", "column_number", "shift"])
def _store_weights(
    rows, columns, row_labels, column_labels, scale, row_lse, row_grad, row_positive,
    column_lse, column_grad, column_positive, result, row_number, column_number, dims, shift,
    SELF: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Leave the weights of a block, but for ``scale``; its row 0 is where column ``shift`` is, if they are the same."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = row < row_number, column < column_number
    read = _read(column_labels, column, in_columns, column_lse)
    s = tl.load(scale) * _similarities(rows, columns, row, column, in_rows, read, dims, PRECISION, DEPTH)
    weights = _weights(
        s, row_labels, column_labels, row_lse, row_grad, row_positive, column_lse, column_grad, column_positive,
        row, column, in_rows, in_columns, shift, SELF,
    )  # fmt: skip
    place = result + row.to(tl.int64)[:, None] * column_number + column[None, :]
    tl.store(place, weights, mask=in_rows[:, None] & in_columns[None, :])
