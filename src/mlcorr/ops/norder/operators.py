"""The kernels as operators of PyTorch: schemas, shapes (fake kernels) and rules for vmap, free of Triton.

Their derivatives are those of the ``autograd.Function`` above them (``fused.py``, ``enumeration.py``). Triton is
imported when the first kernel is launched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlcorr._precision import compute_dtype
from mlcorr.ops.norder.launching import BLOCK_OF_ROWS
from mlcorr.ops.registration import define_operator

_SETTINGS = "float alpha, float beta, float gamma, bool logits, bool mld"
_ROWS = "Tensor student, Tensor teacher, Tensor? mask, Tensor? target, Tensor? plan"


def _flatten_rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _rows(*args: Any) -> tuple[Tensor, Tensor]:
    from mlcorr.ops.norder import closed_form_triton

    return closed_form_triton.rows_forward(*args)


def _rows_fake(student: Tensor, teacher: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(student, teacher)
    rows = student.shape[0]
    return student.new_empty(rows, 4, dtype=dtype), student.new_empty(rows, 8, dtype=dtype)


def _rows_backward(*args: Any) -> tuple[Tensor, Tensor]:
    from mlcorr.ops.norder import closed_form_triton

    return closed_form_triton.rows_backward(*args)


def _rows_backward_fake(_: Tensor, student: Tensor, teacher: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    to_student, to_teacher = rest[-2:]
    return (
        student.new_empty(student.shape if to_student else 0),
        teacher.new_empty(teacher.shape if to_teacher else 0),
    )


def _centred(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from mlcorr.ops.norder import batch_triton

    return batch_triton.centred(*args)


def _centred_fake(student: Tensor, teacher: Tensor, statistics: Tensor, logits: bool) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    rows, labels = student.shape
    u, v = (student.new_empty(rows, labels, dtype=statistics.dtype) for _ in range(2))
    return u, v, student.new_empty(-(-rows // BLOCK_OF_ROWS), labels, dtype=statistics.dtype)


def _batch_gradient(*args: Any) -> Tensor:
    from mlcorr.ops.norder import batch_triton

    return batch_triton.batch_gradient(*args)


def _batch_gradient_fake(*args: Any) -> Tensor:
    probability: Tensor = args[5]
    return probability.new_empty(probability.shape)


def _enumerated(*args: Any) -> tuple[Tensor, Tensor]:
    from mlcorr.ops.norder import enumeration_triton

    return enumeration_triton.measure(*args)


def _enumerated_fake(differences: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return differences.new_empty(differences.shape[0]), torch.empty_like(
        differences, memory_format=torch.contiguous_format
    )


define_operator(f"norder_rows({_ROWS}, {_SETTINGS}) -> (Tensor, Tensor)", _rows, _rows_fake, _flatten_rows)
define_operator(
    f"norder_rows_backward(Tensor grad_terms, {_ROWS}, Tensor statistics, {_SETTINGS}, "
    "bool to_student, bool to_teacher) -> (Tensor, Tensor)",
    _rows_backward,
    _rows_backward_fake,
    _flatten_rows,
)
define_operator(
    "norder_centred(Tensor student, Tensor teacher, Tensor statistics, bool logits) -> (Tensor, Tensor, Tensor)",
    _centred,
    _centred_fake,
)
define_operator(
    "norder_batch_gradient(Tensor product, Tensor u, Tensor v, Tensor of_g, Tensor means, Tensor probability, "
    "bool logits, int sign) -> Tensor",
    _batch_gradient,
    _batch_gradient_fake,
)
define_operator(
    "norder_enumerated(Tensor differences, Tensor? valid, int order, float delta) -> (Tensor, Tensor)",
    _enumerated,
    _enumerated_fake,
    _flatten_rows,
)
