"""Matrix products that autocast does not round, in neither pass."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature
from mlcorr._precision import no_autocast


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, of two matrices of one dtype, in it; and so its gradients, wherever somebody calls backward."""
    # A compiler refuses a function with forward derivatives, which it does not take either.
    function = _Product if torch.compiler.is_compiling() else _ProductWithTangents
    return cast(Tensor, function.apply(a, b))


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with no_autocast(a):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        to_a, to_b = ctx.needs_input_grad
        return product(grad, b.mT) if to_a else None, product(a.mT, grad) if to_b else None


class _ProductWithTangents(_Product):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor, of_b: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return product(of_a, b) + product(a, of_b)  # a tangent that there is none of is zeros
