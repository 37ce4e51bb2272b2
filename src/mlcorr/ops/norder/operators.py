"""The kernels as operators of PyTorch: schemas, shapes (fake kernels) and rules for vmap, free of Triton.

An operator is what ``torch.compile``, CUDA graphs and ``torch.func`` see of a kernel. None has a derivative of its own:
that is the business of the ``autograd.Function`` above it (``fused.py``, ``enumeration.py``). Triton is imported when
the first kernel is launched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlcorr._precision import compute_dtype
from mlcorr.ops.norder.launching import BLOCK_OF_ROWS

_LIBRARY = torch.library.Library("mlcorr", "DEF")

_SETTINGS = "float alpha, float beta, float gamma, bool logits, bool mld"
_ROWS = "Tensor student, Tensor teacher, Tensor? mask, Tensor? target, Tensor? plan"


def _operator(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], fold: Callable[..., Any] | None = None
) -> None:
    """Register ``kernel`` for all devices, ``fake`` for shapes, and a rule of vmap.

    ``fold`` makes of a tensor with one more dimension in front one without, which is undone in the results; without it,
    the operator is called once for each entry of that dimension.
    """
    _LIBRARY.define(schema)
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlcorr::{name}", fake, lib=_LIBRARY)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size, operator = info.batch_size, getattr(torch.ops.mlcorr, name)
        batched = [
            arg if not isinstance(arg, Tensor) else arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        if fold is None:
            each = [operator(*(x[k] if isinstance(x, Tensor) else x for x in batched)) for k in range(size)]
            if isinstance(each[0], Tensor):
                return torch.stack(each), 0
            return tuple(torch.stack(x) for x in zip(*each, strict=True)), (0,) * len(each[0])
        outputs = operator(*(fold(x) if isinstance(x, Tensor) else x for x in batched))
        # What was not asked for is empty and has no such dimension.
        unfolded = tuple(x.reshape(size, -1, *x.shape[1:]) if x.numel() else x for x in outputs)
        return unfolded, tuple(0 if x.numel() else None for x in outputs)

    torch.library.register_vmap(f"mlcorr::{name}", vmap, lib=_LIBRARY)


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


_operator(f"norder_rows({_ROWS}, {_SETTINGS}) -> (Tensor, Tensor)", _rows, _rows_fake, _flatten_rows)
_operator(
    f"norder_rows_backward(Tensor grad_terms, {_ROWS}, Tensor statistics, {_SETTINGS}, "
    "bool to_student, bool to_teacher) -> (Tensor, Tensor)",
    _rows_backward,
    _rows_backward_fake,
    _flatten_rows,
)
_operator(
    "norder_centred(Tensor student, Tensor teacher, Tensor statistics, bool logits) -> (Tensor, Tensor, Tensor)",
    _centred,
    _centred_fake,
)
_operator(
    "norder_batch_gradient(Tensor product, Tensor u, Tensor v, Tensor of_g, Tensor means, Tensor probability, "
    "bool logits, int sign) -> Tensor",
    _batch_gradient,
    _batch_gradient_fake,
)
_operator(
    "norder_enumerated(Tensor differences, Tensor? valid, int order, float delta) -> (Tensor, Tensor)",
    _enumerated,
    _enumerated_fake,
    _flatten_rows,
)
