"""Memory banks: embeddings of past batches with their labels, in rings of fixed size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlcorr._loading import WholeState, incomplete, unfit_part


class MemoryBank(WholeState, ABC):
    """What the banks share."""

    embeddings: Tensor
    pointer: Tensor

    @abstractmethod
    def keys(self) -> tuple[Tensor, Tensor]:
        """Return embeddings (M, dim) and their labels (M,), −1 where there is none yet.

        The next :meth:`write` may change both in place.
        """

    @abstractmethod
    def write(self, x: Tensor, labels: Tensor) -> None:
        """Write the finite rows of ``x`` (A, dim) whose label is not negative, in order; of too many the last stay."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    def _refuse(self, state: Mapping[str, Any], prefix: str) -> str | None:
        return incomplete(dict(self.named_buffers()), state, prefix)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take over a whole bank of this size, or nothing of it: a pointer into another one means nothing here."""
        found = unfit_part(self, state_dict, prefix)
        if found:
            args[-1].extend(found)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class GlobalMemoryBank(MemoryBank):
    """One ring of ``size`` embeddings for all labels.

    Attributes:
        embeddings: (size, dim), of the module's dtype.
        labels: (size,) int64; −1 where nothing was written yet.
        pointer: () int64, where the next embedding goes.
    """

    labels: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def keys(self) -> tuple[Tensor, Tensor]:
        """Return embeddings and labels."""
        return self.embeddings, self.labels

    @torch.no_grad()
    def write(self, x: Tensor, labels: Tensor) -> None:
        """See :meth:`MemoryBank.write`."""
        x = x.to(self.embeddings.dtype)
        admitted = _admitted(x, labels)
        rank = admitted.cumsum(0) - 1
        number, size = admitted.sum(), len(self.labels)
        _write_rows(
            (self.embeddings, self.labels),
            ((self.pointer + rank) % size,),
            (x, labels),
            admitted & (rank >= number - size),
        )
        self.pointer.copy_((self.pointer + number) % size)

    @torch.no_grad()
    def reset(self) -> None:
        """See :meth:`MemoryBank.reset`."""
        self.embeddings.zero_()
        self.labels.fill_(-1)
        self.pointer.zero_()

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"size={self.embeddings.shape[0]}, dim={self.embeddings.shape[1]}"


class PerLabelMemoryBank(MemoryBank):
    """A ring for every label, so that frequent labels do not push out rare ones.

    Attributes:
        embeddings: (num_labels, size, dim), of the module's dtype.
        pointer: (num_labels,) int64, where the label's next embedding goes.
        count: (num_labels,) int64, how many its ring holds.
    """

    count: Tensor

    def __init__(self, num_labels: int, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(num_labels, size, dim))
        self.register_buffer("pointer", torch.zeros(num_labels, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(num_labels, dtype=torch.int64))

    def keys(self) -> tuple[Tensor, Tensor]:
        """Return embeddings (num_labels·size, dim) and their labels."""
        num_labels, size, _ = self.embeddings.shape
        label, slot = (torch.arange(n, device=self.count.device) for n in (num_labels, size))
        labels = torch.where(slot < self.count.unsqueeze(1), label.unsqueeze(1), -1)
        return self.embeddings.flatten(0, 1), labels.flatten()

    @torch.no_grad()
    def write(self, x: Tensor, labels: Tensor) -> None:
        """See :meth:`MemoryBank.write`."""
        x = x.to(self.embeddings.dtype)
        admitted = _admitted(x, labels)
        labels = torch.where(admitted, labels, -1)
        size = self.embeddings.shape[1]
        # Sorted by label, a row's place among those of its label is its distance from the first of them.
        ordered, order = labels.sort(stable=True)
        first = torch.searchsorted(ordered, ordered)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device) - first)
        label = labels.clamp(min=0)
        number = torch.zeros_like(self.count).scatter_add_(0, label, admitted.long())
        slot = (self.pointer[label] + rank) % size
        keep = admitted & (rank >= number[label] - size)
        _write_rows((self.embeddings,), (label, slot), (x,), keep)
        self.pointer.copy_((self.pointer + number) % size)
        self.count.copy_((self.count + number).clamp(max=size))

    @torch.no_grad()
    def reset(self) -> None:
        """See :meth:`MemoryBank.reset`."""
        for buffer in (self.embeddings, self.pointer, self.count):
            buffer.zero_()

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        num_labels, size, dim = self.embeddings.shape
        return f"num_labels={num_labels}, size={size}, dim={dim}"


def _admitted(x: Tensor, labels: Tensor) -> Tensor:
    # What is not finite would make every loss of the next steps so.
    return (labels >= 0) & x.isfinite().all(dim=1)


def _write_rows(rings: tuple[Tensor, ...], slots: tuple[Tensor, ...], rows: tuple[Tensor, ...], keep: Tensor) -> None:
    """Write the rows to ``keep`` into their slots, which are all different, with shapes that depend on no value.

    A row not kept repeats one that is, so that who writes last does not matter; where none is, the first slot keeps its
    own.
    """
    if len(keep) == 0:
        return
    model = keep.long().argmax(dim=0, keepdim=True)
    some = keep[model]
    slots = tuple(torch.where(keep, slot, torch.where(some, slot[model], 0)) for slot in slots)
    for ring, new in zip(rings, rows, strict=True):
        of_row = (-1, *[1] * (new.dim() - 1))
        own = ring[tuple(torch.zeros_like(model) for _ in slots)]
        spare = torch.where(some.view(of_row), new[model], own)
        ring[slots] = torch.where(keep.view(of_row), new, spare)
