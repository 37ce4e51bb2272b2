"""Triton kernels of the instance level, alone or with BCE and MLD: one pass over the logits, one over the gradient.

Notation as in ``closed_form.py``. A program takes a few rows of at most ``BLOCK`` labels. Longer rows are several
chunks, each reduced about its own means; ``_combine`` shifts their sums to the means of the whole row, as in parallel
formulas for the variance, so that nothing cancels. The sums Σu²v and Σuv² are kept because the gradient must be centred
over labels and they give its mean: the backward then is elementwise, however long a row is.

A row's results are its ``terms`` (instance loss, Σ BCE, 1 if a target is known, Σ MLD; both sums in ``UNIT``) and its
``statistics`` (n, mean u, mean v, Σuv, Σu², Σv², Σu²v, Σuv², over its n valid labels and, but for the means, centred).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlcorr._precision import compute_dtype
from mlcorr.ops.launching import dense, on_device, readable, stored, strides
from mlcorr.ops.norder.launching import UNIT
from mlcorr.ops.norder.probabilities_triton import entries, probabilities

TERMS = 4
STATISTICS = 8
_PARTIALS = 12

# Entries of a program's tile in float32, and of a thread: with these, no register is spilled
# (benchmarks/results/kernels.jsonl).
_TILE = 2048
_FORWARD, _BACKWARD = 8, 4

_PER_UNIT = tl.constexpr(1 / UNIT)


def rows_forward(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    target: Tensor | None,
    plan: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    logits: bool,
    mld: bool,
) -> tuple[Tensor, Tensor]:
    """Return terms (rows, 4) and statistics (rows, 8) of student and teacher (rows, C).

    ``plan`` (rows, 3) are α, β, γ of each row; without it those of the arguments are every row's.
    """
    rows, labels = student.shape
    dtype = compute_dtype(student, teacher)
    terms = student.new_empty(rows, TERMS, dtype=dtype)
    statistics = student.new_empty(rows, STATISTICS, dtype=dtype)
    if rows == 0:
        return terms, statistics
    tile = _tile(labels, dtype, _FORWARD)
    chunks = triton.cdiv(labels, tile["BLOCK"])
    partials = None if chunks == 1 else student.new_empty(rows, _PARTIALS, chunks, dtype=dtype)
    plan = _exact(plan, student, dtype, alpha, beta, gamma)
    scalars = (*strides(plan), alpha, beta, gamma)
    tensors = [readable(x) for x in (student, teacher, mask, target)]
    with on_device(student):
        _forward[triton.cdiv(rows, tile["ROWS"]), chunks](
            *tensors,
            plan,
            terms,
            statistics,
            partials,
            rows,
            labels,
            *(stride for x in tensors for stride in strides(x)),
            *scalars,
            LOGITS=logits,
            MLD=mld,
            DOUBLE=dtype == torch.float64,
            **tile,
        )
        if partials is not None:
            width = triton.next_power_of_2(chunks)
            _combine[rows,](
                partials,
                plan,
                terms,
                statistics,
                chunks,
                *scalars,
                CHUNKS=width,
                num_warps=min(max(width // 128, 1), 8),
            )
    return terms, statistics


def rows_backward(
    grad_terms: Tensor,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    target: Tensor | None,
    plan: Tensor | None,
    statistics: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    logits: bool,
    mld: bool,
    to_student: bool,
    to_teacher: bool,
) -> tuple[Tensor, Tensor]:
    """Return Σ over terms of ``grad_terms`` (rows, 4) times their gradients to student and teacher, each (rows, C).

    What is not asked for is an empty tensor.
    """
    rows, labels = student.shape
    dtype, statistics = statistics.dtype, dense(statistics)
    results = [
        x.new_empty(x.shape if asked else 0, dtype=stored(x, dtype))
        for x, asked in ((student, to_student), (teacher, to_teacher))
    ]
    if rows == 0:
        return results[0].to(student.dtype), results[1].to(teacher.dtype)
    tile = _tile(labels, dtype, _BACKWARD)
    plan = _exact(plan, student, dtype, alpha, beta, gamma)
    tensors = [readable(x) for x in (student, teacher, mask, target)]
    with on_device(student):
        _backward[triton.cdiv(rows, tile["ROWS"]), triton.cdiv(labels, tile["BLOCK"])](
            *tensors,
            plan,
            grad_terms,
            statistics,
            results[0] if to_student else None,
            results[1] if to_teacher else None,
            rows,
            labels,
            *(stride for x in tensors for stride in strides(x)),
            *strides(plan),
            *strides(grad_terms),
            alpha,
            beta,
            gamma,
            LOGITS=logits,
            MLD=mld,
            DOUBLE=dtype == torch.float64,
            **tile,
        )
    return results[0].to(student.dtype), results[1].to(teacher.dtype)


def _tile(labels: int, dtype: torch.dtype, of_thread: int) -> dict[str, int]:
    of_thread //= 1 if dtype == torch.float32 else 2
    whole = _TILE * of_thread // _FORWARD
    block = min(triton.next_power_of_2(labels), max(whole, 1))
    lines = max(512 // block, 1)
    return {"ROWS": lines, "BLOCK": block, "num_warps": min(max(lines * block // (32 * of_thread), 1), 8)}


def _exact(
    plan: Tensor | None, like: Tensor, dtype: torch.dtype, alpha: float, beta: float, gamma: float
) -> Tensor | None:
    """Return the plan as a tensor where Triton, which takes a Python number as float32, would round it."""
    if plan is not None or dtype == torch.float32:
        return plan
    numbers = [like.new_full((1,), number, dtype=dtype) for number in (alpha, beta, gamma)]
    return torch.cat(numbers).expand(like.shape[0], 3)


@triton.jit
def _log1p(e):
    """log(1 + e) for 0 <= e <= 1 as 2·artanh(e/(2 + e)), with every digit where e is small."""
    z = tl.div_rn(e, 2.0 + e) if e.dtype == tl.float32 else e / (2.0 + e)
    square = z * z
    terms: tl.constexpr = 17 if e.dtype == tl.float64 else 8
    series = tl.zeros_like(e)
    for k in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - 1 - k) + 1)
    return 2.0 * z * series


@triton.jit
def _positive(x):
    return tl.where(x > 0, x, 0.0)


@triton.jit
def _coefficients(plan, row, row_stride, stride, alpha, beta, gamma, inside):
    if plan is not None:
        place = plan + row * row_stride
        alpha = tl.load(place, mask=inside, other=0)
        beta = tl.load(place + stride, mask=inside, other=0)
        gamma = tl.load(place + 2 * stride, mask=inside, other=0)
    return alpha, beta, gamma


@triton.jit
def _forward(
    student, teacher, mask, target, plan, terms, statistics, partials, rows, labels,
    student_row, student_label, teacher_row, teacher_label, mask_row, mask_label, target_row, target_label,
    plan_row, plan_term, alpha, beta, gamma,
    LOGITS: tl.constexpr, MLD: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    label = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
    in_rows = row < rows
    inside = in_rows[:, None] & (label < labels)
    x = entries(student, row[:, None], label, student_row, student_label, inside).to(compute)
    z = entries(teacher, row[:, None], label, teacher_row, teacher_label, inside).to(compute)
    valid = inside
    if mask is not None:
        valid = inside & (entries(mask, row[:, None], label, mask_row, mask_label, inside) != 0)
    x_small, s, _, z_small, t, t_other, v = probabilities(x, z, LOGITS)

    count = tl.sum(valid.to(compute), axis=1)
    size = tl.where(count > 0, count, 1.0)
    u, v = tl.where(valid, t + s, 0.0), tl.where(valid, v, 0.0)
    u_mean, v_mean = tl.sum(u, axis=1) / size, tl.sum(v, axis=1) / size
    u, v = tl.where(valid, u - u_mean[:, None], 0.0), tl.where(valid, v - v_mean[:, None], 0.0)
    w = u * v
    w1, w2 = tl.sum(w, axis=1), tl.sum(w * w, axis=1)
    u2, v2 = tl.sum(u * u, axis=1), tl.sum(v * v, axis=1)
    uw, vw = tl.sum(u * w, axis=1), tl.sum(v * w, axis=1)

    base = tl.zeros_like(count)
    known = tl.zeros_like(count)
    divergence = tl.zeros_like(count)
    if LOGITS and (MLD or target is not None):
        x_log = _log1p(x_small)
        if target is not None:
            y = entries(target, row[:, None], label, target_row, target_label, inside).to(compute)
            is_known = inside & (y >= 0)
            loss = (1.0 - y) * _positive(x) + y * _positive(-x) + x_log
            base = tl.sum(tl.where(is_known, loss * _PER_UNIT, 0.0), axis=1)
            known = tl.max(is_known.to(tl.int32), axis=1).to(compute)
        if MLD:
            loss = x_log - _log1p(z_small)
            loss += t_other * (_positive(x) - _positive(z)) + t * (_positive(-x) - _positive(-z))
            divergence = tl.sum(tl.where(valid, loss * _PER_UNIT, 0.0), axis=1)

    if partials is None:
        alpha, beta, gamma = _coefficients(plan, row, plan_row, plan_term, alpha, beta, gamma, in_rows)
        instance = alpha * w2 + beta * w1 * w1 + gamma * u2 * v2
        _store4(terms + row * 4, 1, instance, base, known, divergence, in_rows)
        _store4(statistics + row * 8, 1, count, u_mean, v_mean, w1, in_rows)
        _store4(statistics + row * 8 + 4, 1, u2, v2, uw, vw, in_rows)
    else:
        chunks = tl.num_programs(1)
        place = partials + row * 12 * chunks + tl.program_id(1)
        _store4(place, chunks, count, u_mean, v_mean, w1, in_rows)
        _store4(place + 4 * chunks, chunks, u2, v2, uw, vw, in_rows)
        _store4(place + 8 * chunks, chunks, w2, base, known, divergence, in_rows)


@triton.jit
def _store4(place, stride, a, b, c, d, inside):
    tl.store(place, a, mask=inside)
    tl.store(place + stride, b, mask=inside)
    tl.store(place + 2 * stride, c, mask=inside)
    tl.store(place + 3 * stride, d, mask=inside)


@triton.jit
def _combine(
    partials, plan, terms, statistics, chunks, plan_row, plan_term, alpha, beta, gamma, CHUNKS: tl.constexpr
):  # fmt: skip
    """Make one row of its chunks, each about its own means: n, means, Σuv, Σu², Σv², Σu²v, Σuv², Σu²v², terms."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    inside = chunk < chunks
    place = partials + row * 12 * chunks + chunk
    count = tl.load(place, mask=inside, other=0)
    u_means = tl.load(place + chunks, mask=inside, other=0)
    v_means = tl.load(place + 2 * chunks, mask=inside, other=0)
    w1 = tl.load(place + 3 * chunks, mask=inside, other=0)
    u2 = tl.load(place + 4 * chunks, mask=inside, other=0)
    v2 = tl.load(place + 5 * chunks, mask=inside, other=0)
    uw = tl.load(place + 6 * chunks, mask=inside, other=0)
    vw = tl.load(place + 7 * chunks, mask=inside, other=0)
    w2 = tl.load(place + 8 * chunks, mask=inside, other=0)

    total = tl.sum(count, axis=0)
    size = tl.where(total > 0, total, 1.0)
    u_mean, v_mean = tl.sum(count * u_means, axis=0) / size, tl.sum(count * v_means, axis=0) / size
    # Of (u + a)ⁱ(v + b)ʲ, where a and b are the chunk's means about the row's, and u and v sum to 0.
    a, b = tl.where(inside, u_means - u_mean, 0.0), tl.where(inside, v_means - v_mean, 0.0)
    w2 += 2 * (b * uw + a * vw) + b * b * u2 + a * a * v2 + 4 * a * b * w1 + count * a * a * b * b
    uw += b * u2 + 2 * a * w1 + count * a * a * b
    vw += a * v2 + 2 * b * w1 + count * a * b * b
    w1 += count * a * b
    u2 += count * a * a
    v2 += count * b * b

    of_w1, of_w2, of_u2, of_v2 = tl.sum(w1, axis=0), tl.sum(w2, axis=0), tl.sum(u2, axis=0), tl.sum(v2, axis=0)
    base = tl.sum(tl.load(place + 9 * chunks, mask=inside, other=0), axis=0)
    known = tl.max(tl.load(place + 10 * chunks, mask=inside, other=0), axis=0)
    divergence = tl.sum(tl.load(place + 11 * chunks, mask=inside, other=0), axis=0)
    alpha, beta, gamma = _coefficients(plan, row, plan_row, plan_term, alpha, beta, gamma, row >= 0)
    instance = alpha * of_w2 + beta * of_w1 * of_w1 + gamma * of_u2 * of_v2
    _store4(terms + row * 4, 1, instance, base, known, divergence, row >= 0)
    _store4(statistics + row * 8, 1, total, u_mean, v_mean, of_w1, row >= 0)
    _store4(statistics + row * 8 + 4, 1, of_u2, of_v2, tl.sum(uw, axis=0), tl.sum(vw, axis=0), row >= 0)


@triton.jit
def _backward(
    student, teacher, mask, target, plan, grad_terms, statistics, to_student, to_teacher, rows, labels,
    student_row, student_label, teacher_row, teacher_label, mask_row, mask_label, target_row, target_label,
    plan_row, plan_term, grad_row, grad_term, alpha, beta, gamma,
    LOGITS: tl.constexpr, MLD: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    label = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
    in_rows = row < rows
    inside = in_rows & (label < labels)
    x = entries(student, row, label, student_row, student_label, inside).to(compute)
    z = entries(teacher, row, label, teacher_row, teacher_label, inside).to(compute)
    valid = inside
    if mask is not None:
        valid = inside & (entries(mask, row, label, mask_row, mask_label, inside) != 0)
    _, s, s_other, _, t, t_other, difference = probabilities(x, z, LOGITS)

    place = statistics + row * 8
    count = tl.load(place, mask=in_rows, other=1)
    size = tl.where(count > 0, count, 1.0)
    u = (t + s) - tl.load(place + 1, mask=in_rows, other=0)
    v = difference - tl.load(place + 2, mask=in_rows, other=0)
    w1 = tl.load(place + 3, mask=in_rows, other=0)
    u2 = tl.load(place + 4, mask=in_rows, other=0)
    v2 = tl.load(place + 5, mask=in_rows, other=0)
    uw_mean = tl.load(place + 6, mask=in_rows, other=0) / size
    vw_mean = tl.load(place + 7, mask=in_rows, other=0) / size
    alpha, beta, gamma = _coefficients(plan, row, plan_row, plan_term, alpha, beta, gamma, in_rows)
    place = grad_terms + row * grad_row
    of_instance = 2.0 * tl.load(place, mask=in_rows, other=0)
    # Of α·W2 + β·W1² + γ·U2·V2, halved and centred over labels: u and v sum to 0, u·v² and u²·v do not.
    to_u = alpha * (u * v * v - vw_mean) + beta * w1 * v + gamma * v2 * u
    to_v = alpha * (u * u * v - uw_mean) + beta * w1 * u + gamma * u2 * v
    of_divergence = tl.load(place + 3 * grad_term, mask=in_rows, other=0) * _PER_UNIT

    if to_student is not None:
        gradient = of_instance * (to_u - to_v)
        if LOGITS:
            gradient *= s * s_other
        if MLD:
            gradient -= of_divergence * difference
        gradient = tl.where(valid, gradient, 0.0)
        if target is not None:
            y = entries(target, row, label, target_row, target_label, inside).to(compute)
            of_base = tl.load(place + grad_term, mask=in_rows, other=0) * _PER_UNIT
            gradient += tl.where(inside & (y >= 0), of_base * ((1.0 - y) * s - y * s_other), 0.0)
        tl.store(to_student + row * labels + label, gradient.to(to_student.dtype.element_ty), mask=inside)
    if to_teacher is not None:
        gradient = of_instance * (to_u + to_v)
        if LOGITS:
            gradient *= t * t_other
        if MLD:
            # Halved, the difference of logits does not overflow; and t is flat where it is large.
            gradient += (t * t_other * (0.5 * z - 0.5 * x)) * (2.0 * of_divergence)
        gradient = tl.where(valid, gradient, 0.0).to(to_teacher.dtype.element_ty)
        tl.store(to_teacher + row * labels + label, gradient, mask=inside)
