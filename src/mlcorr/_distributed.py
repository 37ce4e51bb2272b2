"""Sums and batches over the processes of a group, as losses need them.

Every rank gets the global value. Its gradient is W times that of the global value to the rank's own input, for W ranks,
so that the mean over ranks which DistributedDataParallel takes is the gradient of one big batch.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor


def check_group(name: str, group: object) -> dist.ProcessGroup | None:
    """Return ``group`` if it is a process group that this process is in, or None."""
    if group is None:
        return None
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{name}: expected a torch.distributed process group or None, got {type(group).__name__}; "
            "torch.distributed.group.WORLD is the group of all processes, once init_process_group was called"
        )
    return group


_Module = TypeVar("_Module", bound="SharesGroup")


class SharesGroup(torch.nn.Module):
    """A module whose copies have the same process group: one cannot be copied."""

    group: dist.ProcessGroup | None

    def __deepcopy__(self: _Module, memo: dict[int, Any]) -> _Module:
        memo[id(self.group)] = self.group
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        # But for what compile() left, as PyTorch copies a module: it calls the first one, whatever becomes of the copy.
        state = {name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"}
        copied.__dict__.update(copy.deepcopy(state, memo))
        return copied


def global_number(number: int, group: dist.ProcessGroup | None, device: torch.device) -> int:
    """Return the sum of a number of Python's over ranks, for which a GPU is waited."""
    return number if group is None else int(global_sum(torch.tensor(number, device=device), group))


def global_sum(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the sum of ``value`` over ranks."""
    return value if group is None else cast(Tensor, _GlobalSum.apply(value, group))


def gather_rows(value: Tensor, group: dist.ProcessGroup | None, *, alike: bool = True) -> Tensor:
    """Return the rows of all ranks, in the order of ranks; ranks may have different numbers of rows.

    ``alike``: whether every rank forms the same of them, so that a rank's own part of the gradient, times the number
    of ranks, is all there is; else every rank has its own use for all rows, and their gradient is the sum over ranks.
    """
    return value if group is None else cast(Tensor, _GatherRows.apply(value, group, alike))


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.ranks = dist.get_world_size(group)
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivative(grad)
        return ctx.ranks * grad, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup, alike: bool) -> Tensor:
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        own = torch.tensor([value.shape[0]], device=value.device)
        sizes = [torch.zeros_like(own) for _ in range(ranks)]
        dist.all_gather(sizes, own, group=group)
        rows = torch.cat(sizes).tolist()
        # Collectives want one shape: pad to the longest, and cut again.
        padded = value.new_zeros(max(rows), *value.shape[1:])
        padded[: value.shape[0]] = value
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded, group=group)
        ctx.ranks, ctx.first, ctx.rows, ctx.group, ctx.alike = ranks, sum(rows[:rank]), rows[rank], group, alike
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _refuse_second_derivative(grad)
        if not ctx.alike:
            grad = grad.contiguous().clone()
            dist.all_reduce(grad, group=ctx.group)
        own = grad[ctx.first : ctx.first + ctx.rows]
        return ctx.ranks * own if ctx.alike else own, None, None


def _refuse_second_derivative(grad: Tensor) -> None:
    if torch.is_grad_enabled() and grad.requires_grad:
        raise RuntimeError("group: expected no second derivatives over the processes of a group; there are none")
