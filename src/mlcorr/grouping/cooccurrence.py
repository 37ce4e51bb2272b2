"""Label co-occurrence, counted batch by batch: which labels stand together, and how often."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import FLOATING, check_choice, check_flag, check_integer, check_tensor
from mlcorr._distributed import check_group, global_sum
from mlcorr._loading import WholeState, unfit_part
from mlcorr._precision import no_autocast
from mlcorr._targets import DTYPES, UNSIGNED
from mlcorr.grouping.pair_counts import CHUNK, DensePairs, SparsePairs, coo, pairs_of

Storage: TypeAlias = Literal["auto", "dense", "sparse"]
_STORAGES: tuple[Storage, ...] = ("auto", "dense", "sparse")
_DENSE_LABELS = 2048  # two (C, C) tables of int64 are then 64 MiB
_EXACT_ROWS = 2**24  # sums of ones that float32 holds exactly
_MOST_LABELS = 3_000_000_000  # C² has to fit into int64


class LabelCounts(NamedTuple):
    """The counts of :class:`mlcorr.LabelCooccurrence`, all of dtype int64.

    Attributes:
        rows: (), rows seen.
        present: (C,), rows with label i.
        together: (C, C), rows with labels i and j; its diagonal is ``present``.
        known: (C, C), rows with label i in which label j is known: ``present`` of i, where every label is known. Of
            the sparse form only the entries where ``together`` has one.
    """

    rows: Tensor
    present: Tensor
    together: Tensor
    known: Tensor


class LabelCooccurrence(WholeState):
    r"""Streamed counts of labels and of pairs of labels, and the conditional probabilities that follow from them.

    After ``update`` with every batch of Y, with present = (Y == 1) and known = (Y >= 0)::

        counts().together == present.T @ present                     # (C, C), int64, exact at any size
        counts().known == present.T @ known                          # (C, C)
        conditional() == together / known.clamp(min=1)               # A[i, j] = P(label j | label i)

    The counts are the same for every split of the data into batches, and add up over instances and processes.

    Args:
        num_labels: C.
        storage: How pairs are kept. "dense": tables (C, C), of fixed shape. "sparse": one key and one count for every
            pair that was seen, so that memory follows the data; these buffers grow, and are sized anew by
            ``load_state_dict``. "auto": dense up to 2048 labels. Every call below gives the same numbers with both.

    Buffers:
        All int64, and all in ``state_dict()``: ``rows`` (), ``present`` (C,), ``together`` and ``unknown`` (pairs of a
        present with a present, or an unknown label).

    Example:
        >>> import torch
        >>> from mlcorr import LabelCooccurrence
        >>> counts = LabelCooccurrence(num_labels=3)
        >>> counts.update(torch.tensor([[1, 1, 0], [1, 0, -1]]))
        >>> counts.update(torch.tensor([[1, 0, 1]]))
        >>> counts.conditional()
        tensor([[1.0000, 0.3333, 0.5000],
                [1.0000, 1.0000, 0.0000],
                [1.0000, 0.0000, 1.0000]])
    """

    rows: Tensor
    present: Tensor

    def __init__(self, num_labels: int, *, storage: Storage = "auto") -> None:
        super().__init__()
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        if self.num_labels > _MOST_LABELS:
            raise ValueError(f"num_labels: expected at most {_MOST_LABELS}, got {num_labels}")
        check_choice("storage", storage, _STORAGES)
        if storage == "auto":
            storage = "dense" if self.num_labels <= _DENSE_LABELS else "sparse"
        self.storage = storage
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        self.register_buffer("present", torch.zeros(self.num_labels, dtype=torch.int64))
        pairs = DensePairs if storage == "dense" else SparsePairs
        self.together = pairs(self.num_labels)  # of i < j, since it is symmetric
        self.unknown = pairs(self.num_labels)  # i present, j unknown

    @torch.no_grad()
    def update(self, targets: Any) -> None:
        """Count a batch.

        Args:
            targets: (..., C), 0/1 or −1 for an unknown label, bool, integer or floating point, on the device of the
                counts; or a sparse COO or CSR tensor (N, C), or a SciPy sparse matrix, whose stored entries are 1 or
                −1 and whose other entries are 0. An entry stored twice counts once.

        Raises:
            TypeError: ``targets`` is no real tensor.
            ValueError: Its shape, layout or device does not fit.
        """
        if not isinstance(targets, Tensor) and callable(getattr(targets, "tocsr", None)):
            targets = _from_scipy(targets, self.present.device)
        self._check(targets)
        if targets.layout == torch.strided:
            targets = targets.reshape(-1, self.num_labels)
        if targets.layout == torch.strided and isinstance(self.together, DensePairs):
            self._count_matrix(targets)
        else:
            self._count_entries(*entries_of(targets))
        self.rows += targets.shape[0]

    @torch.no_grad()
    def counts(self, *, sparse: bool | None = None) -> LabelCounts:
        """Return all counts; the tables as sparse COO tensors with ``sparse=True``, None being as they are stored."""
        sparse = self.storage == "sparse" if sparse is None else check_flag("sparse", sparse)
        if not sparse:
            upper = self.together.matrix()
            together = upper + upper.T + torch.diag(self.present)
            known = self.present.unsqueeze(1) - self.unknown.matrix()
            return LabelCounts(self.rows.clone(), self.present.clone(), together, known)
        size = self.num_labels
        keys, values = self.together.entries()
        seen = self.present.nonzero().squeeze(1)
        low, high = keys // size, keys % size
        keys = torch.cat([keys, high * size + low, seen * size + seen])
        values = torch.cat([values, values, self.present[seen]])
        keys, order = keys.sort()
        index = torch.stack([keys // size, keys % size])
        known = self.present[index[0]] - self.unknown.at(keys)
        tables = (coo(index, table, size) for table in (values[order], known))
        return LabelCounts(self.rows.clone(), self.present.clone(), *tables)

    @torch.no_grad()
    def conditional(self, *, sparse: bool | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        r"""Return A (C, C), A[i, j] = P(label j present | label i present and label j known).

        ``counts().together / counts().known.clamp(min=1)``, divided in float64. The row of a label that was never seen
        is 0, the diagonal of any other row is 1. With ``sparse=True`` A is a sparse COO tensor, and nothing of size
        C·C is formed; None is as the counts are stored.
        """
        if not isinstance(dtype, torch.dtype) or dtype not in FLOATING:
            found = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
            raise TypeError(f"dtype: expected a floating-point torch.dtype of 16, 32 or 64 bits, got {found}")
        counts = self.counts(sparse=sparse)
        if not counts.together.is_sparse:
            return (counts.together.double() / counts.known.clamp(min=1).double()).to(dtype)
        ratio = counts.together.values().double() / counts.known.values().double()  # of pairs that were seen
        return coo(counts.together.indices(), ratio.to(dtype), self.num_labels)

    @torch.no_grad()
    def reduce(self, group: dist.ProcessGroup | None = None) -> LabelCooccurrence:
        """Return the counts of all processes of ``group`` added up, as an instance of its own on every rank.

        The counts of this instance stay those of its own process, so that one may go on counting and reduce again.
        Do not sum what was reduced already: only the parts are to be added. Every rank has to call with the same number
        of labels and storage. None is this process alone.
        """
        group = check_group("group", group)
        total = copy.deepcopy(self)
        if group is not None:
            total.rows.copy_(global_sum(self.rows, group))
            total.present.copy_(global_sum(self.present, group))
            total.together.gather(group)
            total.unknown.gather(group)
        return total

    @torch.no_grad()
    def __add__(self, other: LabelCooccurrence) -> LabelCooccurrence:
        """Return the counts of both, stored as those of ``self``."""
        if not isinstance(other, LabelCooccurrence):
            return NotImplemented
        if other.num_labels != self.num_labels:
            raise ValueError(f"other: expected counts of {self.num_labels} labels, got {other.num_labels}")
        total = copy.deepcopy(self)
        total.rows += other.rows
        total.present += other.present
        total.together.add(*other.together.entries())
        total.unknown.add(*other.unknown.entries())
        return total

    def reset(self) -> None:
        """Set all counts to 0."""
        self.rows.zero_()
        self.present.zero_()
        self.together.reset()
        self.unknown.reset()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take over all counts or none: within a module from elsewhere, nobody has looked at them before."""
        found: list[str] = []
        for path, part in ((prefix, self), (f"{prefix}together.", self.together), (f"{prefix}unknown.", self.unknown)):
            found += unfit_part(part, state_dict, path)
        if found:
            args[-1].append(found[0])
            # Those of the pairs come after these, and would be taken.
            for name in [name for name in state_dict if name.startswith(prefix)]:
                del state_dict[name]
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"num_labels={self.num_labels}, storage={self.storage!r}"

    def _check(self, targets: object) -> None:
        if not isinstance(targets, Tensor) or targets.dtype not in DTYPES:
            kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise TypeError(f"targets: expected a bool, integer or floating-point tensor, got {kind}")
        check_tensor("targets", targets, sparse=True)
        if targets.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr):
            raise ValueError(f"targets: expected a dense, sparse COO or sparse CSR tensor, got {targets.layout}")
        wanted = "(..., C)" if targets.layout == torch.strided else "(N, C)"
        dims_fit = targets.dim() >= 1 if targets.layout == torch.strided else targets.dim() == 2
        if not dims_fit or targets.shape[-1] != self.num_labels:
            raise ValueError(f"targets: expected the shape {wanted}, C = {self.num_labels}, got {tuple(targets.shape)}")
        if targets.layout == torch.sparse_coo and targets.sparse_dim() != 2:
            raise ValueError(f"targets: expected two sparse dimensions, got {targets.sparse_dim()} and dense ones")
        if targets.device != self.present.device:
            raise ValueError(f"targets: expected the counts' device, {self.present.device}, got {targets.device}")

    def _count_matrix(self, targets: Tensor) -> None:
        """Count a dense batch into dense tables."""
        together, unknown = cast(DensePairs, self.together), cast(DensePairs, self.unknown)
        # Products in float32 are fast, and exact for so many rows: autocast would round them.
        with no_autocast(targets):
            for part in targets.split(min(_EXACT_ROWS, max(1, CHUNK // self.num_labels))):
                here = (part >= 1).float()
                product = (here.T @ here).long()
                self.present += product.diagonal()
                together.count += product.triu_(1)
                if targets.dtype not in UNSIGNED:
                    unknown.count += (here.T @ (~(part >= 0)).float()).long()

    def _count_entries(self, row: Tensor, label: Tensor, value: Tensor) -> None:
        """Count a batch given by its entries other than 0."""
        size = self.num_labels
        keys = (row * size + label)[value >= 1].unique()  # sorted by row, then by label
        row_here, here = keys // size, keys % size
        self.present += torch.bincount(here, minlength=size)
        after = torch.arange(1, len(keys) + 1, device=keys.device)
        for pairs in pairs_of(here, here, after, torch.searchsorted(row_here, row_here, right=True), size):
            self.together.add(*pairs)
        if value.dtype in UNSIGNED:
            return
        keys = (row * size + label)[~(value >= 0)].unique()
        row_unknown, unknown = keys // size, keys % size
        start, stop = (torch.searchsorted(row_unknown, row_here, right=right) for right in (False, True))
        for pairs in pairs_of(here, unknown, start, stop, size):
            self.unknown.add(*pairs)


def entries_of(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, label and value of each entry that is stored, or of a dense tensor that is not 0."""
    if targets.layout == torch.strided:
        row, label = targets.nonzero(as_tuple=True)
        return row, label, targets[row, label]
    if targets.layout == torch.sparse_csr:
        length = targets.crow_indices().long().diff()
        row = torch.arange(len(length), device=length.device).repeat_interleave(length)
        return row, targets.col_indices().long(), targets.values()
    row, label = targets._indices()  # without coalescing, which would add up what is stored twice
    return row, label, targets._values()


def _from_scipy(matrix: Any, device: torch.device) -> Tensor:
    """Return a SciPy sparse matrix, of which only its own methods are used, as a COO tensor."""
    matrix = matrix.tocsr().tocoo()
    index = torch.stack([torch.from_numpy(axis.astype("int64")) for axis in (matrix.row, matrix.col)])
    try:
        values = torch.from_numpy(matrix.data.copy())
    except TypeError as error:
        raise TypeError(f"targets: expected numbers that PyTorch has, got {matrix.data.dtype}") from error
    return torch.sparse_coo_tensor(index, values, matrix.shape, device=device, check_invariants=True)
