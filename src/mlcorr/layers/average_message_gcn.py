"""Average-message GCN: layers over label co-occurrence take turns with layers in which every label hears all others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcorr._checks import (
    FLOATING,
    check_choice,
    check_data,
    check_flag,
    check_floating,
    check_integer,
    check_number,
    check_sequence,
    check_tensor,
)
from mlcorr._loading import WholeState, incomplete, unfit_tensor
from mlcorr._precision import check_dtype, compute_dtype, in_autocast, no_autocast

Message: TypeAlias = Literal["cooccurrence", "average"]
Diagonal: TypeAlias = Literal["one", "zero", "counts"]
_MESSAGES: tuple[Message, ...] = ("cooccurrence", "average")
_DIAGONALS: tuple[Diagonal, ...] = ("one", "zero", "counts")
_STEEPEST = torch.finfo(torch.float32).max  # PyTorch takes no slope beyond
_LARGE = 1024.0  # messages up to it go into a product of half precision as they are
_SPARSE_LAYOUTS = (torch.sparse_coo, torch.sparse_csr)
_SPARSE_NAMES = tuple(f"cooccurrence_{part}" for part in ("rows", "columns", "values"))  # of buffers


def average_message(x: Tensor) -> Tensor:
    r"""Each label's vector plus the mean of the other labels' vectors: K @ x, K = 1 on and 1/(C − 1) off the diagonal.

    ``x + (x.sum(-2, keepdim=True) - x) / (C - 1)``: as K is a multiple of the identity plus one of rank one, the
    product takes O(C·D), and K is never formed. The rows of K sum to 2.

    Args:
        x: (..., C, D); float16, bfloat16, float32 or float64. Half precision is summed in float32.

    Returns:
        (..., C, D) in the dtype of ``x``. With C = 1 there is no other label and the result is a copy of ``x``; with
        C = 2 both labels get the same vector, since K is then all ones.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: ``x`` has fewer than two dimensions.

    Differs from the authors' code:
        There is none to compare with. K is not normalised, as in Eq. 9.

    Reference:
        Zhao et al., "Towards Space and Semantics: Object-Purified Representation Learning for Multi-Label Image
        Classification", ACM Multimedia 2025, Eq. 9.

    Example:
        >>> import torch
        >>> from mlcorr.functional import average_message
        >>> average_message(torch.tensor([[3.0], [0.0], [1.0]])).squeeze(-1)
        tensor([3.5000, 2.0000, 2.5000])
    """
    check_floating("x", x, min_dim=2)
    num_labels = x.shape[-2]
    if num_labels <= 1:
        return x.clone()
    wide = x.to(compute_dtype(x))
    # K = (1 − k)·I + k·11ᵀ with k = 1/(C − 1), which comes before the sum, so that the largest numbers do not overflow.
    k = 1 / (num_labels - 1)
    return torch.add((k * wide).sum(-2, keepdim=True), wide, alpha=1 - k).to(x.dtype)


class AverageMessageGCN(WholeState):
    r"""Graph layers over label features whose messages come from co-occurrence and from all labels alike, by turns.

    With A the adjacency and K that of :func:`mlcorr.functional.average_message`, for the default ``schedule``::

        h = x
        for P, W in ((A, W0), (K, W1), (A, W2)):
            h = leaky_relu(P @ h @ W, negative_slope)
        y = x + h

    Args:
        dim: D, the size of a label's feature vector.
        num_labels: C.
        cooccurrence: A (C, C), dense or a sparse COO or CSR tensor, non-negative; ``A[i, j]`` is the probability of
            label j given label i (:meth:`mlcorr.LabelCooccurrence.conditional`). None is the identity until
            :meth:`set_cooccurrence` is called or a checkpoint with an adjacency is loaded.
        schedule: Message of each layer, "cooccurrence" or "average". Empty, the module returns a copy of its input.
        diagonal: "one" and "zero" write that number on the diagonal of A, "counts" leaves A as supplied. Of
            :meth:`mlcorr.LabelCooccurrence.conditional`, whose diagonal is 1, "one" changes only the rows of labels
            that were never seen.
        final_activation: Whether the activation follows the last layer too, as in Eq. 10.
        negative_slope: Of the LeakyReLU, >= 0.
        residual: Whether ``x`` is added to the result.

    Shape:
        - x: (..., C, D); float16, bfloat16, float32 or float64.
        - Output: (..., C, D) in the dtype of ``x``, under autocast in float32, since sums of messages outgrow float16.
          Messages are summed in float32 (float64 for float64), also under autocast, which acts on the products with
          the weights.

    Buffers:
        ``cooccurrence`` (C, C) for a dense adjacency; ``cooccurrence_rows`` (C + 1,), ``cooccurrence_columns`` (E,) and
        ``cooccurrence_values`` (E,), as of CSR, for a sparse one of E entries; none while there is no adjacency.
        Loading a checkpoint takes over the layout and the number of entries that it holds, but no other C or D.
        A sparse adjacency has no second derivatives: PyTorch raises where they are asked for.

    Raises:
        TypeError: ``x`` or ``cooccurrence`` is no floating-point tensor, or a parameter of the wrong type.
        ValueError: A parameter is out of range, ``cooccurrence`` of another size, negative or not finite, or ``x`` of
            another shape.

    Warns:
        UserWarning: C = 2 with an "average" layer, which makes the features of both labels equal, so that only the
            residual tells them apart.

    Differs from the authors' code:
        There is none to compare with. What the paper leaves open: weights have no bias and begin uniformly in
        ±1/√D, the activation is LeakyReLU(0.2), both as in ML-GCN :cite:p:`chen2019mlgcn`.

    Reference:
        Zhao et al., ACM Multimedia 2025, Eqs. 8-10.

    Example:
        >>> import torch
        >>> from mlcorr import AverageMessageGCN, LabelCooccurrence
        >>> counts = LabelCooccurrence(num_labels=3)
        >>> counts.update(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]]))
        >>> gcn = AverageMessageGCN(dim=16, num_labels=3, cooccurrence=counts.conditional())
        >>> gcn(torch.randn(8, 3, 16)).shape
        torch.Size([8, 3, 16])
        >>> gcn.cooccurrence
        tensor([[1.0000, 0.5000, 0.0000],
                [1.0000, 1.0000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """

    cooccurrence: Tensor | None
    cooccurrence_rows: Tensor | None
    cooccurrence_columns: Tensor | None
    cooccurrence_values: Tensor | None

    def __init__(
        self,
        dim: int,
        num_labels: int,
        cooccurrence: Tensor | None = None,
        *,
        schedule: Sequence[Message] = ("cooccurrence", "average", "cooccurrence"),
        diagonal: Diagonal = "one",
        final_activation: bool = True,
        negative_slope: float = 0.2,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.dim = check_integer("dim", dim, minimum=1)
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.schedule: tuple[Message, ...] = check_sequence("schedule", schedule)
        for message in self.schedule:
            check_choice("schedule", message, _MESSAGES)
        check_choice("diagonal", diagonal, _DIAGONALS)
        self.diagonal = diagonal
        self.final_activation = check_flag("final_activation", final_activation)
        self.negative_slope = check_number("negative_slope", negative_slope, minimum=0.0, maximum=_STEEPEST)
        self.residual = check_flag("residual", residual)
        if self.num_labels == 2 and "average" in self.schedule:
            warnings.warn(
                "num_labels: with 2 labels an 'average' layer makes the features of both equal, and only the residual "
                "tells them apart; consider schedule=('cooccurrence',) * n",
                stacklevel=2,
            )
        self.weight = nn.Parameter(torch.empty(len(self.schedule), self.dim, self.dim))
        self.weight.requires_grad_(len(self.schedule) > 0)  # nothing waits for the gradient of an empty parameter
        self._store()
        if cooccurrence is not None:
            self.set_cooccurrence(cooccurrence)
        self.reset_parameters()  # last: whoever passes something wrong keeps his random state

    def reset_parameters(self) -> None:
        """Draw the weights uniformly from ±1/√D."""
        bound = 1 / math.sqrt(self.dim)
        nn.init.uniform_(self.weight, -bound, bound)

    @torch.no_grad()
    def set_cooccurrence(self, cooccurrence: Tensor) -> None:
        """Replace the adjacency (C, C), dense or sparse; it is copied to the dtype and device of the weights."""
        a = check_data("cooccurrence", check_tensor("cooccurrence", cooccurrence, min_dim=1, sparse=True))
        if a.dtype not in FLOATING:
            raise TypeError(f"cooccurrence: expected a floating-point tensor of 16, 32 or 64 bits, got {a.dtype}")
        if a.shape != (self.num_labels, self.num_labels):
            expected = (self.num_labels, self.num_labels)
            raise ValueError(f"cooccurrence: expected the shape (C, C) = {expected}, got {tuple(a.shape)}")
        if a.layout != torch.strided and a.layout not in _SPARSE_LAYOUTS:
            raise ValueError(f"cooccurrence: expected a dense, sparse COO or sparse CSR tensor, got {a.layout}")
        if a.layout == torch.sparse_coo and a.sparse_dim() != 2:
            raise ValueError(f"cooccurrence: expected two sparse dimensions, got {a.sparse_dim()} and dense ones")
        a = a.detach()
        if a.layout == torch.strided:
            a = a.to(self.weight.dtype, copy=True)
            _check_entries(a)
            a = a.to(self.weight.device)
            if self.diagonal != "counts":
                a.fill_diagonal_(1.0 if self.diagonal == "one" else 0.0)
            self._store(dense=a)
        else:
            row, column, value = _entries(a)
            value = value.to(self.weight.dtype)
            _check_entries(value)
            row, column, value = (part.to(self.weight.device) for part in (row, column, value))
            if self.diagonal != "counts":
                off = row != column
                row, column, value = row[off], column[off], value[off]
            if self.diagonal == "one":
                every = torch.arange(self.num_labels, device=row.device)
                row, column, value = (
                    torch.cat(pair) for pair in ((row, every), (column, every), (value, value.new_ones(len(every))))
                )
            order = (row * self.num_labels + column).argsort()
            starts = torch.arange(self.num_labels + 1, device=row.device)
            rows = torch.searchsorted(row[order].contiguous(), starts)
            self._store(sparse=(rows, column[order].contiguous(), value[order]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the label features after all layers."""
        check_floating("x", x, min_dim=2)
        if x.shape[-2] != self.num_labels or x.shape[-1] != self.dim:
            raise ValueError(f"x: expected the shape (..., {self.num_labels}, {self.dim}), got {tuple(x.shape)}")
        check_dtype("x", x, "the weights", self.weight)
        if not self.schedule:
            return x.clone()
        wide = h = x.to(compute_dtype(x))  # sums of messages outgrow half precision
        autocast = in_autocast(x)
        in_half = autocast or x.dtype != wide.dtype
        for layer, message in enumerate(self.schedule):
            with no_autocast(h):
                heard = average_message(h) if message == "average" else self._cooccurrence_message(h)
            if in_half:
                # float16 ends at 65504: what is large is made small before the product, and large again after it.
                size = (heard.detach().abs().amax(-1, keepdim=True) / _LARGE).clamp(min=1)
                h = ((heard / size).to(x.dtype) @ self.weight[layer]).to(wide.dtype) * size
            else:
                h = heard @ self.weight[layer]
            if self.final_activation or layer + 1 < len(self.schedule):
                h = F.leaky_relu(h, self.negative_slope)
        result = wide + h if self.residual else h
        return result if autocast else result.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"dim={self.dim}, num_labels={self.num_labels}, schedule={self.schedule}, diagonal={self.diagonal!r}, "
            f"final_activation={self.final_activation}, negative_slope={self.negative_slope:g}, "
            f"residual={self.residual}"
        )

    def _cooccurrence_message(self, h: Tensor) -> Tensor:
        """Return A @ h."""
        if self.cooccurrence is not None:
            return self.cooccurrence.to(h.dtype) @ h
        if self.cooccurrence_rows is None:
            return h
        # Row i of A @ h is a weighted bag of rows of h. No tensor of E vectors is formed, and everything compiles.
        by_label = h.movedim(-2, 0)
        bags = F.embedding_bag(
            cast(Tensor, self.cooccurrence_columns),
            by_label.reshape(self.num_labels, -1),
            self.cooccurrence_rows,
            mode="sum",
            per_sample_weights=cast(Tensor, self.cooccurrence_values).to(h.dtype),
            include_last_offset=True,
        )
        return bags.reshape(by_label.shape).movedim(0, -2)

    def _store(self, dense: Tensor | None = None, sparse: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        rows, columns, values = sparse or (None, None, None)
        self.register_buffer("cooccurrence", dense)
        self.register_buffer("cooccurrence_rows", rows)
        self.register_buffer("cooccurrence_columns", columns)
        self.register_buffer("cooccurrence_values", values)

    def _expected(self, state: Mapping[str, Any], prefix: str) -> dict[str, Tensor | None]:
        """Let any adjacency of as many labels take the place of this one's."""
        own = super()._expected(state, prefix)
        names = ["cooccurrence", *_SPARSE_NAMES]
        dense, *sparse = (state.get(prefix + name) for name in names)
        if dense is None and not any(isinstance(part, Tensor) for part in sparse):
            return own
        rest = {name: each for name, each in own.items() if name not in names}
        # Not of the weight itself, which may be in shards.
        value, index = (
            torch.zeros((), dtype=dtype, device=self.weight.device) for dtype in (self.weight.dtype, torch.int64)
        )
        size, number = self.num_labels, sparse[1].numel() if isinstance(sparse[1], Tensor) else 0
        if dense is not None:
            return {**rest, names[0]: value.expand(size, size)}
        parts = (index.expand(size + 1), index.expand(number), value.expand(number))
        return {**rest, **dict(zip(names[1:], parts, strict=True))}

    def _refuse(self, state: Mapping[str, Any], prefix: str) -> str | None:
        return incomplete(_SPARSE_NAMES, state, prefix)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Make room for the adjacency that the checkpoint holds, whatever its layout and number of entries."""
        given = {name: state_dict.get(prefix + name) for name in ("cooccurrence", *_SPARSE_NAMES)}
        own = self._expected(state_dict, prefix)
        reason = self._refuse(state_dict, prefix)
        found = [] if reason is None else [reason]
        for name, x in given.items():
            if prefix + name in state_dict:
                found += unfit_tensor(prefix + name, x, own.get(name))
        if found:
            # Said here, before there is room for a foreign adjacency in place of the own one.
            args[-1].extend(found)
            return
        dense, *sparse = (None if given[name] is None else own.get(name) for name in given)
        if dense is not None:
            self._store(dense=dense.clone())
        elif any(part is not None for part in sparse):
            rows, columns, values = (cast(Tensor, part).clone() for part in sparse)
            self._store(sparse=(rows, columns, values))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _entries(sparse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of each stored entry."""
    if sparse.layout == torch.sparse_csr:
        crow, column = sparse.crow_indices().long(), sparse.col_indices().long()
        row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
        return row, column, sparse.values()
    sparse = sparse.coalesce()
    row, column = sparse.indices()
    return row, column, sparse.values()


def _check_entries(values: Tensor) -> None:
    allowed = values.isfinite() & (values >= 0)
    if not bool(allowed.all()):
        raise ValueError(f"cooccurrence: expected finite entries >= 0, got {values[~allowed][0].item()}")
