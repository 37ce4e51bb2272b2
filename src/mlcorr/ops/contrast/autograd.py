"""Derivatives of the streamed similarities: the first streamed as they are, those of higher order dense."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import mlcorr.ops.contrast.operators  # noqa: F401  (registers torch.ops.mlcorr)
from mlcorr._autograd import fixed_signature


class Similarities(NamedTuple):
    """Of every anchor: log Σ exp(s) over its keys, −inf without any, Σ s over its positives, and their number."""

    lse: Tensor
    positive: Tensor
    positives: Tensor


def streamed_similarities(
    x: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    scale: float,
    positives: bool,
    block_size: int,
    kernels: bool,
) -> Similarities:
    """Compare x with itself and the keys; see :func:`mlcorr.ops.contrast.similarities`."""
    return Similarities(*_Statistics.apply(x, labels, keys, key_labels, scale, positives, block_size, kernels))


class _Statistics(torch.autograd.Function):
    """(x, labels, keys, key labels, …) → log-sum-exp, Σ of positives, their number, over x itself and the keys."""

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        x: Tensor,
        labels: Tensor,
        keys: Tensor,
        key_labels: Tensor,
        scale: float,
        positives: bool,
        block_size: int,
        kernels: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        statistics, settings = torch.ops.mlcorr.contrast_statistics, (scale, positives, block_size, kernels)
        lse, positive, count = statistics(x, None, labels, None, *settings)
        more_lse, more_positive, more_count = statistics(x, keys, labels, key_labels, *settings)
        lse = torch.logaddexp(lse, more_lse).masked_fill_(labels < 0, -torch.inf)
        return lse, positive + more_positive, count + more_count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        lse, _, count = output
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)
        ctx.settings = inputs[4:]
        ctx.save_for_backward(*inputs[:4], lse)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, labels, keys, key_labels, lse = ctx.saved_tensors
        grad_lse, grad_positive = (torch.zeros_like(lse) if grad is None else grad for grad in grads[:2])
        to_x, _, to_keys, *_ = ctx.needs_input_grad
        found = _Gradient.apply(grad_lse, grad_positive, x, keys, labels, key_labels, lse, *ctx.settings, to_x, to_keys)
        return found[0] if to_x else None, None, found[1] if to_keys else None, *[None] * 5


class _Gradient(torch.autograd.Function):
    """What ``_Statistics.backward`` returns, and its derivative, which holds all similarities at once."""

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        grad_lse: Tensor,
        grad_positive: Tensor,
        x: Tensor,
        keys: Tensor,
        labels: Tensor,
        key_labels: Tensor,
        lse: Tensor,
        scale: float,
        positives: bool,
        block_size: int,
        kernels: bool,
        to_x: bool,
        to_keys: bool,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.ops.mlcorr.contrast_gradient
        upstream = (grad_lse, grad_positive if positives else None)
        settings = (block_size, kernels)
        of_x, _ = gradient(*upstream, x, None, labels, None, lse, scale, to_x, False, *settings)
        more, of_keys = gradient(*upstream, x, keys, labels, key_labels, lse, scale, to_x, to_keys, *settings)
        return of_x + more, of_keys

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.scale, ctx.asked = inputs[7], inputs[11:]
        ctx.save_for_backward(*inputs[:6])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        *inputs, labels, key_labels = ctx.saved_tensors
        asked = [index for index, one in enumerate(ctx.asked) if one]

        def gradients(grad_lse: Tensor, grad_positive: Tensor, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
            def sums(x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
                return _dense(x, keys, labels, key_labels, ctx.scale)

            pull = torch.func.vjp(sums, x, keys)[1]
            both = pull((grad_lse, grad_positive if len(grad_positive) else torch.zeros_like(grad_lse)))
            return tuple(both[index] for index in asked)

        return *torch.func.vjp(gradients, *inputs)[1](tuple(grads[k] for k in asked)), *[None] * 9


def _dense(x: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp and Σ of positives in operations that PyTorch differentiates as often as asked."""
    key_labels = torch.cat([labels, key_labels])
    others = torch.ones(len(labels), len(key_labels), dtype=torch.bool, device=x.device).fill_diagonal_(False)
    compared = others & (key_labels >= 0) & (labels >= 0).unsqueeze(1)
    has = compared.any(dim=1, keepdim=True)  # the logarithm of an empty sum has no derivative
    s = scale * (x @ torch.cat([x, keys]).mT)
    lse = torch.where(compared | ~has, s, -torch.inf).logsumexp(dim=1)
    positive = torch.where(compared & (labels.unsqueeze(1) == key_labels), s, 0.0).sum(dim=1)
    return torch.where(has.squeeze(1), lse, -torch.inf), positive
