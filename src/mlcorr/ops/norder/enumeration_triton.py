"""The n-order losses by their definition, fused: all label sequences, and none of them in memory.

As in ``enumeration.py`` a sequence (a, k_2 … k_{n−1}, b) is two ends around a middle, and the gradient needs only the
sums of y = clamp(x, −δ, δ) over one end, or over both. Here a middle is a *prefix* k_2 … k_{n−2} and its last label. A
*unit* of work is a prefix and a tile of the ends: it holds D[k_2, a] and the sums over all else of a tile's y in
registers, and goes over the last labels, each of which brings a row D[k_{n−1}, b] and takes its sum over a away.

So that a sequence and its reverse count once, the last label follows k_2 by at most half a turn around the circle of
labels: each prefix then has the same work, where k_2 < k_{n−1} would leave most of it to the low ones.

The units of a matrix are dealt out to a number of programs that depends on shapes alone. Each program adds to a
gradient of its own, and these are summed at the end, so that every run gives the same bits. The sums of the loss carry
along what rounding takes from them, since float32 would lose a term among a billion.
"""

from __future__ import annotations

from math import perm

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlcorr.ops.launching import on_device
from mlcorr.ops.norder import enumeration

# Bytes of the gradients of all programs, unless one for each matrix takes more.
_SCRATCH = 2**28

# Programs for all matrices, which fill a GPU even at one warp each.
_PROGRAMS = 4096

# A tile of the ends. Each lane of a warp has one label b, and its registers hold all labels a.
_ROWS = {torch.float32: 16, torch.float64: 8}
_COLUMNS = 32

# Where there are more labels, memory allows fewer programs: tiles are then four times as wide, for four warps.
_MANY_LABELS = 128


def measure(differences: Tensor, valid: Tensor | None, order: int, delta: float) -> tuple[Tensor, Tensor]:
    """Return the loss (N,) and its gradient (N, C, C), for orders 2 to 6; see ``enumeration.mean_huber``."""
    if order == 2:  # nothing to enumerate
        return enumeration.measure(differences, valid, order, delta)
    matrices, num_labels, _ = differences.shape
    valid, pairs = enumeration.valid_pairs(differences, valid)
    differences = enumeration.symmetric_part(differences, pairs).contiguous()
    each_valid = valid.contiguous().expand(matrices, num_labels)
    edges = order - 1
    limit = torch.full((1,), delta * edges, dtype=differences.dtype, device=differences.device)

    warps = 1 if num_labels <= _MANY_LABELS else 4
    rows, columns = _ROWS[differences.dtype], warps * _COLUMNS
    units = perm(num_labels, max(order - 3, 1)) * triton.cdiv(num_labels, rows) * triton.cdiv(num_labels, columns)
    programs = _programs(matrices, num_labels, units, differences.element_size())
    losses = differences.new_empty(matrices, programs, 2, columns)
    gradients = differences.new_zeros(matrices, programs, num_labels, num_labels)
    with on_device(differences):
        _sum_sequences[(matrices * programs,)](
            differences,
            each_valid,
            limit,
            losses,
            gradients,
            num_labels,
            each_valid.stride(0),
            units,
            programs,
            order,
            rows,
            columns,
            num_warps=warps,
        )
    loss = losses.sum(dim=(1, 2, 3), dtype=torch.float64)
    gradient = gradients.sum(dim=1, dtype=torch.float64)
    gradient = (gradient + gradient.mT) / 2
    loss, gradient = (enumeration.mean_over_sequences(total, valid, order) / edges**2 for total in (loss, gradient))
    return loss.to(differences.dtype), gradient.to(differences.dtype)


def _programs(matrices: int, num_labels: int, units: int, element_size: int) -> int:
    """Return the number of programs for each matrix."""
    in_scratch = _SCRATCH // max(1, matrices * num_labels * num_labels * element_size)
    return max(1, min(units, in_scratch, _PROGRAMS // max(1, matrices)))


@triton.jit(do_not_specialize=["num_labels", "valid_stride", "units", "programs"])
def _sum_sequences(
    differences,  # (N, C, C), symmetric, 0 on the diagonal and where a label is not valid
    valid,  # (N, C)
    limit,  # (1,) δ·(n − 1): the kernel works with sums along a sequence, not means
    losses,  # (N, P, 2, columns) sums, and what rounding took from them
    gradients,  # (N, P, C, C)
    num_labels,
    valid_stride,
    units,
    programs,
    order: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    share = program % programs
    matrix = program // programs
    width = num_labels.to(tl.int64)  # labels are 32 bits wide, offsets 64
    differences += matrix * width * width
    valid += matrix * valid_stride
    losses += program * 2 * columns + tl.arange(0, columns)
    gradients += program * width * width

    delta = tl.load(limit)
    loss = tl.zeros([columns], dtype=delta.dtype)
    lost = tl.zeros([columns], dtype=delta.dtype)
    tiles_down = tl.cdiv(num_labels, rows)
    tiles_across = tl.cdiv(num_labels, columns)
    for turn in range(tl.cdiv(units - share, programs)):
        unit = share + turn * programs
        a = (unit // tiles_across % tiles_down * rows).to(tl.int32) + tl.arange(0, rows)
        b = (unit % tiles_across * columns).to(tl.int32) + tl.arange(0, columns)

        # The prefix: always three labels, some of them the same; D[k, k] = 0 is then no edge. Order 3 has no prefix:
        # its middle label counts as the prefix and as the last label at once.
        rank = unit // (tiles_across * tiles_down)
        third = (rank % width).to(tl.int32)
        second = third
        first = third
        if order == 5:
            first = _past((rank // width).to(tl.int32), third)
        elif order == 6:
            second = _past((rank // width % (width - 1)).to(tl.int32), third)
            first = (rank // width // (width - 1)).to(tl.int32)
            first = _past(_past(first, tl.minimum(second, third)), tl.maximum(second, third))

        if tl.load(valid + first) & tl.load(valid + second) & tl.load(valid + third):
            is_a = tl.load(valid + a, mask=a < num_labels, other=0) & (a != first) & (a != second) & (a != third)
            is_b = tl.load(valid + b, mask=b < num_labels, other=0) & (b != first) & (b != second) & (b != third)
            # Clamping to nothing takes out the ends that do not fit, at no cost for each sequence.
            bound = tl.where(is_a[:, None] & is_b[None, :] & (a[:, None] != b[None, :]), delta, 0.0)
            inner = tl.load(differences + first * width + second)
            inner += tl.load(differences + second * width + third)
            to_a = inner + tl.load(differences + first * width + a, mask=a < num_labels, other=0.0)
            along_b = tl.zeros([rows, columns], dtype=delta.dtype)
            for step in range(0 if order == 3 else 1, 1 if order == 3 else num_labels // 2 + 1):
                last = first + step
                last = tl.where(last >= num_labels, last - num_labels, last)
                counts = tl.load(valid + last)
                if order != 3:
                    # Half a turn on, where labels are even in number, a middle meets its reverse.
                    counts &= (last != second) & (last != third) & ((2 * step < num_labels) | (first < last))
                if counts:
                    to_b = tl.load(differences + last * width + b, mask=b < num_labels, other=0.0)
                    to_b += tl.load(differences + third * width + last)
                    x = to_a[:, None] + to_b[None, :]
                    y = tl.where((a != last)[:, None], _clamp(x, bound), 0.0)
                    # A label b that is the last one is left out of the sums, where that costs less than in each y.
                    fits = b != last
                    term = tl.where(fits, tl.sum(y * (x - 0.5 * y), axis=0), 0.0)
                    total = loss + term
                    added = total - loss
                    lost += (loss - (total - added)) + (term - added)
                    loss = total

                    along_b += y * tl.where(fits, 1.0, 0.0).to(y.dtype)[None, :]
                    along_a = tl.where(fits, tl.sum(y, axis=0), 0.0)
                    of_b = gradients + last * width + b
                    # Within a unit no step comes back to an entry of another, so that none has to wait.
                    tl.store(of_b, tl.load(of_b, mask=b < num_labels, other=0.0) + along_a, mask=b < num_labels)
                    if order != 3:
                        of_edge = gradients + third * width + last
                        tl.store(of_edge, tl.load(of_edge) + tl.sum(along_a))

            tl.debug_barrier()
            of_a = gradients + first * width + a
            along_b = tl.sum(along_b, axis=1)
            tl.store(of_a, tl.load(of_a, mask=a < num_labels, other=0.0) + along_b, mask=a < num_labels)
            if order >= 5:
                tl.debug_barrier()
                of_edge = gradients + first * width + second
                tl.store(of_edge, tl.load(of_edge) + tl.sum(along_b))
            if order == 6:
                of_edge = gradients + second * width + third
                tl.store(of_edge, tl.load(of_edge) + tl.sum(along_b))
            tl.debug_barrier()

    tl.store(losses, loss)
    tl.store(losses + columns, lost)


@triton.jit
def _past(digit, taken):
    """Return the ``digit``-th of the integers that differ from ``taken``, or for the larger of two from both."""
    return digit + (digit >= taken)


@triton.jit
def _clamp(x, bound):
    if x.dtype == tl.float64:  # the other form, one instruction on Hopper, is there not compiled for float64
        return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))
    return tl.clamp(x, -bound, bound, propagate_nan=tl.PropagateNan.ALL)
