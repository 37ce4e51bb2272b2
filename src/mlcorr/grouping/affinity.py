"""The affinity of labels, from counts of pairs, and the normalised cut of a grouping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlcorr._checks import check_data, check_number, check_tensor
from mlcorr._targets import CONVERTED, DTYPES
from mlcorr.grouping.cooccurrence import LabelCooccurrence, entries_of


def affinity(counts: Tensor, label_counts: Tensor, tau: float = 2.0) -> Tensor:
    r"""How much two labels stand together: M⁺ = (R + Rᵀ)/2, R[i, j] = P(label i | label j) to the power 1/τ.

    With N = counts, n = label_counts, all divisions 0 where n is 0::

        R = (N / n.clamp(min=1).unsqueeze(1)) ** (1 / tau)
        M = ((R + R.T) / 2).fill_diagonal_(0)

    The affinity of the dis-occurrence relation is M⁻ = 1 − M⁺ off the diagonal. It is never sparse, and the library
    forms it only where labels are few.

    Args:
        counts: (C, C) N, how many rows have both labels; symmetric, >= 0, of any real dtype; dense, or a sparse COO or
            CSR tensor. The diagonal is not read. ``LabelCooccurrence.counts().together`` is one.
        label_counts: (C,), how many rows have each label. Where labels are unknown in some rows, the table (C, C) of
            how many rows with label i know label j, dense or sparse as ``counts``, which is
            ``LabelCooccurrence.counts().known``: a row counts towards a conditional frequency only if it knows both.
        tau: τ > 0; 2 is the square root, and lifts rare pairs.

    Returns:
        (C, C) float64 in [0, 1], symmetric, diagonal 0, on the device of ``counts``: dense, or sparse COO.

    Raises:
        TypeError: An argument is no real tensor.
        ValueError: Shapes or layouts do not fit, or ``tau`` <= 0.

    Differs from the authors' code:
        Rows in which a label is unknown are left out of its frequencies, and a label that never came has the affinity
        0 to all others instead of a division by 0.

    Reference:
        ML-VPT, CVPR 2025, supplement, Algorithm 1; M⁻ is all ones minus M⁺ (an identity there is a misprint).

    Example:
        >>> import torch
        >>> from mlcorr.grouping import affinity
        >>> together = torch.tensor([[0, 4, 0], [4, 0, 1], [0, 1, 0]])
        >>> affinity(together, torch.tensor([4, 16, 1]))
        tensor([[0.0000, 0.7500, 0.0000],
                [0.7500, 0.0000, 0.6250],
                [0.0000, 0.6250, 0.0000]], dtype=torch.float64)
    """
    counts = check_tensor("counts", counts, sparse=True)
    label_counts = check_tensor("label_counts", label_counts, sparse=True)
    power = 1 / check_number("tau", tau, minimum=0.0, exclusive=True)
    _check(counts, label_counts)
    if counts.layout == torch.strided:
        below = (label_counts if label_counts.dim() == 2 else label_counts.unsqueeze(1)).double().clamp(min=1)
        ratio = (counts.double() / below).pow(power)
        return ((ratio + ratio.T) / 2).fill_diagonal_(0)
    row, column, half = half_affinity(counts, label_counts, power)
    matrix = symmetric(row, column, half, counts.shape[0]).tocoo()
    index = torch.stack([torch.from_numpy(axis).long() for axis in (matrix.row, matrix.col)])
    values = torch.from_numpy(matrix.data)
    result = torch.sparse_coo_tensor(
        index, values, counts.shape, device="cpu", is_coalesced=True, check_invariants=False
    )
    return result.to(counts.device)


def normalized_cut(affinity: Tensor, groups: Tensor) -> float:
    r"""Normalised cut of a grouping: the share of each group's affinity that goes to other groups, summed over groups.

    ``sum(1 - M[g][:, g].sum() / M[g].sum() for g in groups)`` with a diagonal of 0. It is 0 where no affinity is cut,
    and at most the number of groups. A group without labels counts 0, one whose labels have no affinity at all 1.

    Args:
        affinity: (C, C) M, symmetric, >= 0, of any real dtype; dense, or a sparse COO or CSR tensor. The diagonal is
            not read.
        groups: (C,) integers >= 0, the group of each label.

    Raises:
        TypeError: An argument is no real tensor, or ``groups`` no integers.
        ValueError: Shapes do not fit, or a group is negative.

    Reference:
        Shi and Malik, "Normalized Cuts and Image Segmentation", IEEE TPAMI 2000.

    Example:
        >>> import torch
        >>> from mlcorr.grouping import normalized_cut
        >>> m = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> normalized_cut(m, torch.tensor([0, 0, 1]))  # 1 - 6/7, and 1 - 0/1
        1.1428571428571428
    """
    affinity = check_tensor("affinity", affinity, sparse=True).detach()
    groups = check_tensor("groups", groups)
    _check(affinity, groups, ("affinity", "groups"))
    if groups.dim() != 1:
        raise ValueError(f"groups: expected the shape (C,), got {tuple(groups.shape)}")
    if groups.is_floating_point() or groups.dtype == torch.bool:
        raise TypeError(f"groups: expected an integer tensor, got {groups.dtype}")
    if len(groups) == 0:
        return 0.0
    groups = groups.long()
    if int(groups.min()) < 0:
        raise ValueError(f"groups: expected numbers >= 0, got {int(groups.min())}")
    row, column, value = _entries(affinity.double())
    weight = value * (row != column)
    volume = weight.new_zeros(int(groups.max()) + 1).index_add_(0, groups[row], weight)
    inner = torch.zeros_like(volume).index_add_(0, groups[row], weight * (groups[row] == groups[column]))
    filled = torch.zeros_like(volume).index_fill_(0, groups, 1.0)
    return float((filled * (1 - inner / volume.clamp(min=1e-300))).sum())


def half_affinity(counts: Tensor, label_counts: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and value of the entries of H, for M⁺ = H + Hᵀ, of sparse counts."""
    row, column, value = _entries(counts)
    if label_counts.dim() == 1:
        below = label_counts[row]
    else:
        known_row, known_column, below = _entries(label_counts)
        if not (torch.equal(known_row, row) and torch.equal(known_column, column)):
            raise ValueError("label_counts: expected an entry wherever counts has one, and nowhere else")
    off = (row != column) & (value > 0)
    half = (value[off].double() / below[off].double().clamp(min=1)).pow_(power).div_(2)
    return row[off], column[off], half


def symmetric(row: Tensor, column: Tensor, half: Tensor, size: int) -> Any:
    """Return H + Hᵀ as a SciPy CSR array (C, C), for H given by its entries."""
    import scipy.sparse

    index = [axis.cpu().numpy().astype("int32" if size < 2**31 else "int64") for axis in (row, column)]
    matrix = scipy.sparse.coo_array((half.cpu().numpy(), tuple(index)), shape=(size, size)).tocsr()
    result = (matrix + matrix.T.tocsr()).tocsr()
    result.sort_indices()
    return result


def ordered_affinity(counts: LabelCooccurrence, tau: float, *, sparse: bool) -> tuple[Any, Tensor]:
    """Return M⁺, its labels sorted by their counts, as an array of NumPy or SciPy, and which label each row is."""
    table = counts.counts(sparse=sparse)
    present, together, known = table.present.cpu(), table.together.cpu(), table.known.cpu()
    order = _canonical_order(present, together)
    if not sparse:
        return affinity(together[order][:, order], known[order][:, order], tau).numpy(), order
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    row, column, half = half_affinity(together, known, 1 / tau)
    return symmetric(rank[row], rank[column], half, len(order)), order


def _canonical_order(present: Tensor, together: Tensor) -> Tensor:
    """Sort labels by what the counts say of them, frequent ones first, so that their own order has no influence."""
    if together.is_sparse:
        index, values = together.indices(), together.values()
        row, column = index
    else:
        row, column = together.nonzero(as_tuple=True)
        values = together[row, column]
    keys = [present, *(torch.zeros_like(present) for _ in range(3))]
    for key, weight in zip(keys[1:], (values, values * values, values * present[column]), strict=True):
        key.index_add_(0, row, weight)  # whole numbers, so that every order gives the same sum
    order = torch.arange(len(present), device=present.device)
    for key in reversed(keys):
        order = order[(-key[order]).sort(stable=True).indices]
    return order


def _check(table: Tensor, labels: Tensor, names: tuple[str, str] = ("counts", "label_counts")) -> None:
    for name, tensor in zip(names, (table, labels), strict=True):
        check_data(name, tensor)
        if tensor.dtype not in (DTYPES if tensor.layout != torch.strided else (*DTYPES, *CONVERTED)):
            raise TypeError(f"{name}: expected a bool, integer or floating-point tensor, got {tensor.dtype}")
        if tensor.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr):
            raise ValueError(f"{name}: expected a dense, sparse COO or sparse CSR tensor, got {tensor.layout}")
        if tensor.layout == torch.sparse_coo and tensor.dense_dim():
            raise ValueError(f"{name}: expected sparse dimensions alone, got {tensor.dense_dim()} dense ones")
    if table.dim() != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"{names[0]}: expected the shape (C, C), got {tuple(table.shape)}")
    if labels.shape not in (table.shape, table.shape[:1]):
        raise ValueError(f"{names[1]}: expected one a label, C = {table.shape[0]}, got {tuple(labels.shape)}")
    if labels.dim() == 1 and labels.layout != torch.strided:
        raise ValueError(f"{names[1]}: expected a dense tensor of the shape (C,), got {labels.layout}")
    if labels.dim() == 2 and (labels.layout == torch.strided) != (table.layout == torch.strided):
        raise ValueError(f"{names[1]}: expected the layout of {names[0]}, {table.layout}, got {labels.layout}")
    if labels.device != table.device:
        raise ValueError(f"{names[1]}: expected the device of {names[0]}, {table.device}, got {labels.device}")


def _entries(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of each entry, sorted."""
    return entries_of(table.coalesce() if table.layout == torch.sparse_coo else table)
