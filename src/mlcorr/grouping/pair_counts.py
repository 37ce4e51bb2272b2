"""Counts of pairs of labels, kept as a table or by the pairs that were seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._distributed import gather_rows, global_sum
from mlcorr._loading import WholeState, incomplete, unfit_part

CHUNK = 2**22  # pairs that are formed at a time
_WAITING = 2**14  # small tensors of new pairs that may wait for merging


class DensePairs(WholeState):
    """A table of pair counts (C, C)."""

    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(size, size, dtype=torch.int64))

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Add counts of some pairs, by key."""
        self.count.view(-1).index_add_(0, keys, values)

    def matrix(self) -> Tensor:
        """Return the table (C, C)."""
        return self.count

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return the keys of the pairs that were seen, sorted, and their counts."""
        flat = self.count.view(-1)
        keys = flat.nonzero().squeeze(1)
        return keys, flat[keys]

    def at(self, keys: Tensor) -> Tensor:
        """Return the counts at keys."""
        return self.count.view(-1)[keys]

    def gather(self, group: dist.ProcessGroup) -> None:
        """Add up what all processes have."""
        self.count.copy_(global_sum(self.count, group))

    def reset(self) -> None:
        """Set all counts to 0."""
        self.count.zero_()


class SparsePairs(WholeState):
    """Pair counts by sorted keys i·C + j.

    New counts wait in a list until there are as many as old ones, so that merging costs a logarithm for each and not
    the whole table for every batch. Whoever looks from outside finds them merged.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0, dtype=torch.int64))
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.waiting_length = 0

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Add counts of some pairs, by key."""
        self.waiting.append((keys, values))
        self.waiting_length += len(keys)
        if self.waiting_length > max(CHUNK, len(self.keys)) or len(self.waiting) >= _WAITING:
            self.entries()

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return the keys of the pairs that were seen, sorted, and their counts."""
        if self.waiting:
            keys, values = (torch.cat(parts) for parts in zip((self.keys, self.values), *self.waiting, strict=True))
            self.keys, place = keys.unique(return_inverse=True)
            self.values = torch.zeros_like(self.keys).index_add_(0, place, values)
            self.waiting, self.waiting_length = [], 0
        return self.keys, self.values

    def matrix(self) -> Tensor:
        """Return the table (C, C)."""
        keys, values = self.entries()
        return values.new_zeros(self.size * self.size).index_copy_(0, keys, values).view(self.size, self.size)

    def at(self, keys: Tensor) -> Tensor:
        """Return the counts at keys."""
        own, values = self.entries()
        if len(own) == 0:
            return torch.zeros_like(keys)
        place = torch.searchsorted(own, keys).clamp(max=len(own) - 1)
        return torch.where(own[place] == keys, values[place], 0)

    def gather(self, group: dist.ProcessGroup) -> None:
        """Add up what all processes have."""
        keys, values = self.entries()
        self.reset()
        self.add(gather_rows(keys, group), gather_rows(values, group))

    def reset(self) -> None:
        """Set all counts to 0."""
        self.keys, self.values = self.keys[:0].clone(), self.values[:0].clone()
        self.waiting, self.waiting_length = [], 0

    def _apply(self, fn: Any, recurse: bool = True) -> SparsePairs:
        self.entries()
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.entries()
        super()._save_to_state_dict(*args, **kwargs)

    def _expected(self, state: Mapping[str, Any], prefix: str) -> dict[str, Tensor | None]:
        keys = state.get(f"{prefix}keys")
        own = self.keys.new_zeros(()).expand(keys.numel() if isinstance(keys, Tensor) else 0)
        return {"keys": own, "values": own}  # of any length, but of one

    def _refuse(self, state: Mapping[str, Any], prefix: str) -> str | None:
        return incomplete(("keys", "values"), state, prefix)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take over all pairs or none: within a module from elsewhere, nobody has looked at them before."""
        found = unfit_part(self, state_dict, prefix)
        if found:
            args[-1].extend(found)
            return
        if f"{prefix}keys" in state_dict:
            self.reset()
            own = self._expected(state_dict, prefix).values()
            self.keys, self.values = (x.clone() for x in own if x is not None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def pairs_of(left: Tensor, right: Tensor, start: Tensor, stop: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Count pairs of ``left[e]`` with each of ``right[start[e]:stop[e]]``, as sorted keys and counts, in parts."""
    ends = (stop - start).cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    bounds = torch.arange(CHUNK, total + CHUNK, CHUNK, device=ends.device).clamp(max=total)
    cuts = [0, *torch.searchsorted(ends, bounds, right=True).tolist()] if total else []
    for first, last in itertools.pairwise(cuts):
        length = (stop - start)[first:last]
        before = length.cumsum(0) - length
        offset = torch.arange(int(length.sum()), device=ends.device) - before.repeat_interleave(length)
        partner = right[start[first:last].repeat_interleave(length) + offset]
        keys = left[first:last].repeat_interleave(length) * size + partner
        yield keys.unique(return_counts=True)


def coo(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Return a sparse table (size, size) of sorted entries."""
    return torch.sparse_coo_tensor(
        index, values, (size, size), device=values.device, is_coalesced=True, check_invariants=False
    )
