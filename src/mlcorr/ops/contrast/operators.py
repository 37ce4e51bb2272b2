"""The streamed similarities as operators of PyTorch, whoever computes them; see ``streamed.py`` for what they return.

In PyTorch they are a loop over blocks, whose number depends on sizes: to a compiler an operator is one step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mlcorr._precision import no_autocast
from mlcorr.ops.contrast import streamed
from mlcorr.ops.registration import define_operator


def _statistics(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, kernels = args
    if not kernels:
        with no_autocast(inputs[0]):
            return streamed.statistics(*inputs)
    from mlcorr.ops.contrast import streamed_triton

    with no_autocast(inputs[0]):
        return streamed_triton.statistics(*inputs[:-1])  # tiles of its own size


def _statistics_fake(rows: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    row_labels, positives = rest[1], rest[4]
    number = rows.shape[0]
    asked = number if positives else 0
    return rows.new_empty(number), rows.new_empty(asked), row_labels.new_empty(asked)


def _gradient(*args: Any) -> tuple[Tensor, Tensor]:
    *inputs, kernels = args
    if not kernels:
        with no_autocast(inputs[0]):  # somebody's backward pass may be in autocast
            return streamed.gradient(*inputs)
    from mlcorr.ops.contrast import streamed_triton

    with no_autocast(inputs[0]):
        return streamed_triton.gradient(*inputs[:-1])  # tiles of its own size


def _gradient_fake(*args: Any) -> tuple[Tensor, Tensor]:
    rows, columns, to_rows, to_columns = args[2], args[3], args[8], args[9]
    return (
        rows.new_empty(rows.shape if to_rows else 0),
        rows.new_empty(columns.shape if to_columns and columns is not None else 0),
    )


_ITEMS = "Tensor rows, Tensor? columns, Tensor row_labels, Tensor? column_labels"

define_operator(
    f"contrast_statistics({_ITEMS}, float scale, bool positives, int block_size, bool kernels) "
    "-> (Tensor, Tensor, Tensor)",
    _statistics,
    _statistics_fake,
)
define_operator(
    f"contrast_gradient(Tensor grad_lse, Tensor? grad_positive, {_ITEMS}, Tensor lse, float scale, "
    "bool to_rows, bool to_columns, int block_size, bool kernels) -> (Tensor, Tensor)",
    _gradient,
    _gradient_fake,
)
