"""Triton kernels of the batch level around its matrix products: what goes into them, and what becomes of them.

Notation as in ``closed_form.py``. The products are the vendor's. A row's means come from the kernels of
``closed_form_triton.py``, and the gradient's mean over labels from a product with a vector, so that both kernels are
elementwise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlcorr.ops.launching import dense, on_device, stored, strides
from mlcorr.ops.norder.launching import BLOCK_OF_ROWS
from mlcorr.ops.norder.probabilities_triton import entries, probabilities, sigmoid

_LABELS = 128  # of a program's tile


def centred(student: Tensor, teacher: Tensor, statistics: Tensor, logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return u and v (B, C), and B·g in summands (blocks of rows, C)."""
    rows, labels = student.shape
    dtype, statistics = statistics.dtype, dense(statistics)
    blocks = triton.cdiv(rows, BLOCK_OF_ROWS)
    u, v = (student.new_empty(rows, labels, dtype=dtype) for _ in range(2))
    sums = student.new_empty(blocks, labels, dtype=dtype)
    if rows:
        with on_device(student):
            _centred[triton.cdiv(labels, _LABELS), blocks](
                student, teacher, statistics, u, v, sums, rows, labels, *strides(student), *strides(teacher),
                LOGITS=logits, DOUBLE=dtype == torch.float64, ROWS=BLOCK_OF_ROWS, LABELS=_LABELS, num_warps=8,
            )  # fmt: skip
    return u, v, sums


def batch_gradient(
    product: Tensor, u: Tensor, v: Tensor, of_g: Tensor, means: Tensor, probability: Tensor, logits: bool, sign: int
) -> Tensor:
    """Return (product + of_g∘(v + sign·u) − means), times p(1 − p) if the ``probability`` is given by logits.

    ``product``, u and v are (B, C), ``of_g`` is (C,), ``means`` (B,) and the result of the dtype of ``probability``.
    """
    rows, labels = u.shape
    u, v, of_g, means = (dense(x) for x in (u, v, of_g, means))
    result = probability.new_empty(rows, labels, dtype=stored(probability, u.dtype))
    if rows:
        with on_device(u):
            _gradient[triton.cdiv(labels, _LABELS), triton.cdiv(rows, BLOCK_OF_ROWS)](
                product, u, v, of_g, means, probability, result, rows, labels, *strides(product),
                *strides(probability), sign,
                LOGITS=logits, DOUBLE=u.dtype == torch.float64, ROWS=BLOCK_OF_ROWS, LABELS=_LABELS, num_warps=8,
            )  # fmt: skip
    return result.to(probability.dtype)


@triton.jit
def _centred(
    student, teacher, statistics, u_out, v_out, sums, rows, labels,
    student_row, student_label, teacher_row, teacher_label,
    LOGITS: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    block = tl.program_id(1).to(tl.int64)
    row = (block * ROWS + tl.arange(0, ROWS))[:, None]
    label = tl.program_id(0).to(tl.int64) * LABELS + tl.arange(0, LABELS)
    in_rows, in_labels = row < rows, label < labels
    inside = in_rows & in_labels[None, :]
    x = entries(student, row, label[None, :], student_row, student_label, inside).to(compute)
    z = entries(teacher, row, label[None, :], teacher_row, teacher_label, inside).to(compute)
    _, s, _, _, t, _, v = probabilities(x, z, LOGITS)
    u = tl.where(inside, (t + s) - tl.load(statistics + row * 8 + 1, mask=in_rows, other=0), 0.0)
    v = tl.where(inside, v - tl.load(statistics + row * 8 + 2, mask=in_rows, other=0), 0.0)
    tl.store(u_out + row * labels + label[None, :], u, mask=inside)
    tl.store(v_out + row * labels + label[None, :], v, mask=inside)
    tl.store(sums + block * labels + label, tl.sum(u * v, axis=0), mask=in_labels)


@triton.jit
def _gradient(
    product, u_in, v_in, of_g, means, probability, result, rows, labels, product_row, product_label,
    probability_row, probability_label, sign,
    LOGITS: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    compute: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = (tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    label = (tl.program_id(0).to(tl.int64) * LABELS + tl.arange(0, LABELS))[None, :]
    inside = (row < rows) & (label < labels)
    place = row * labels + label
    turned = tl.load(v_in + place, mask=inside, other=0) + sign * tl.load(u_in + place, mask=inside, other=0)
    gradient = entries(product, row, label, product_row, product_label, inside)
    gradient += tl.load(of_g + label, mask=label < labels, other=0) * turned
    gradient -= tl.load(means + row, mask=row < rows, other=0)
    if LOGITS:
        _, p, other = sigmoid(entries(probability, row, label, probability_row, probability_label, inside).to(compute))
        gradient *= p * other
    tl.store(result + place, gradient.to(result.dtype.element_ty), mask=inside)
