"""The n-order losses of orders 2, 3 and 4 for every δ, in polynomial time.

With (x)₊ = max(x, 0), the Huber loss is what the quadratic loss exceeds it by, taken off:

    Huber_δ(x) = ½x² − ½(x − δ)₊² − ½(−x − δ)₊².

The mean of ½x² has a closed form (``coefficients.py``). For the rest, let E_kl be the sum of (x − δ)₊ over all ordered
sequences that pass from k to l. It is the gradient of what is to be taken off, and, since (x − δ)₊² = (x − δ)₊·(x − δ),
it is the value too: Σ (x − δ)₊² = Σ_kl E_kl·(D_kl − δ)/(n − 1). E needs sums like

    Σ_b (D_lb − q)₊,      with q given by the labels before l,

which a sorted row, its suffix sums and a binary search for q give in O(log C); the b that the sequence holds already
are taken off. That is O(C²), O(C² log C) and O(C³ log C) for the orders 2, 3 and 4.

Such sums cancel, so that all is computed in float64, whatever the input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mlcorr.ops.norder.enumeration import (
    differentiable,
    in_blocks,
    in_groups,
    per_sequence,
    symmetric_part,
    valid_pairs,
)

# Elements of the largest temporaries, of which a dozen exist at a time; one matrix always fits.
_CHUNK = 2**18


def mean_huber(differences: Tensor, order: int, delta: float, valid: Tensor | None = None) -> Tensor:
    """Return what ``enumeration.mean_huber`` returns, for ``order`` 2, 3 or 4."""
    if order not in (2, 3, 4):
        raise ValueError(f"order: expected 2, 3 or 4, got {order}; enumeration takes any order")
    return differentiable(_measure, differences, order, delta, valid)


def _measure(differences: Tensor, valid: Tensor | None, order: int, delta: float) -> tuple[Tensor, Tensor]:
    size = max(1, _CHUNK // max(1, differences.shape[-1] ** max(order - 1, 2)))
    groups = in_groups(differences, valid, size)
    losses, gradients = zip(*(_measure_group(d, v, order, delta) for d, v in groups), strict=True)
    return torch.cat(losses), torch.cat(gradients)


def _measure_group(differences: Tensor, valid: Tensor | None, order: int, delta: float) -> tuple[Tensor, Tensor]:
    """Return the loss (N,) and its gradient (N, C, C)."""
    valid, pairs = valid_pairs(differences, valid)
    d = symmetric_part(differences.double(), pairs)
    if order == 2:  # has no sums to cancel, however small δ is
        y = d.clamp(-delta, delta)
        gradient = y * per_sequence(valid, order, d.dtype)[:, None, None]
        value = gradient * torch.sub(d, y, alpha=0.5)
        return value.sum(dim=(1, 2)).to(differences.dtype), gradient.to(differences.dtype)
    quadratic = _quadratic_gradient(d, valid, pairs, order)
    above, below = _excess(d, pairs, order, delta), _excess(-d, pairs, order, delta)
    scale = per_sequence(valid, order, d.dtype)[:, None, None] / (order - 1)
    gradient = quadratic - (above - below) * scale
    value = d * quadratic - (above * (d - delta) + below * (-d - delta)) * scale
    return value.sum(dim=(1, 2)).div(2).to(differences.dtype), gradient.to(differences.dtype)


def _quadratic_gradient(d: Tensor, valid: Tensor, pairs: Tensor, order: int) -> Tensor:
    """Return the gradient of the mean of ½x², which is cQ·Q + cR·R + cS·S²; half its product with D is the value."""
    edges = order - 1
    same, adjacent, disjoint = (
        count * per_sequence(valid, labels, d.dtype)[:, None, None]
        for labels, count in ((2, edges), (3, 2 * (edges - 1)), (4, (edges - 1) * (edges - 2)))
    )
    c_q, c_r, c_s = same - adjacent + 2 * disjoint, adjacent - 4 * disjoint, disjoint
    rows = d.sum(dim=-1, keepdim=True)
    gradient = 2 * c_q * d + c_r * (rows + rows.mT) + 2 * c_s * rows.sum(dim=-2, keepdim=True)
    reachable = pairs & (valid.sum(dim=-1) >= order)[:, None, None]
    return gradient.masked_fill(~reachable, 0) / (2 * edges * edges)


def _excess(d: Tensor, pairs: Tensor, order: int, delta: float) -> Tensor:
    """Return E (N, C, C), symmetric, of order 3 or 4."""
    threshold = (order - 1) * delta  # of the sum along a sequence
    if order == 3:
        # [k, b]: the sequences a, k, b, which are the sequences b, k, a too.
        to_end = _Rows.of(d, pairs).excess(threshold - d) - (2 * d - threshold).relu()  # but for a = b
        to_end = to_end.masked_fill(~pairs, 0)
        excess = to_end + to_end.mT
    else:
        excess = _excess_of_order_4(d, pairs, threshold)
    return excess / (order - 1)


def _excess_of_order_4(d: Tensor, pairs: Tensor, threshold: float) -> Tensor:
    matrices, num_labels, _ = d.shape
    block = max(1, _CHUNK // max(1, matrices * num_labels * num_labels))
    middle, end = [], torch.zeros_like(d)
    for labels in in_blocks(num_labels, block):
        by_end = _ends_of_order_4(d, pairs, slice(labels.start, labels.stop), threshold)
        middle.append(by_end.sum(dim=-1))
        end = end + by_end.sum(dim=1)
    both = torch.cat(middle, dim=1) / 2 + end
    return both + both.mT


def _ends_of_order_4(d: Tensor, pairs: Tensor, block: slice, threshold: float) -> Tensor:
    """Return [l, k, a], l of ``block``: Σ_b (D_ak + D_kl + D_lb − threshold)₊ over the b other than a, k and l."""
    to_l = d[:, block]
    q = (threshold - to_l).unsqueeze(-1) - d.unsqueeze(1)
    ends = _Rows.of(to_l, pairs[:, block]).excess(q.flatten(2)).view_as(q)
    ends = ends - (to_l.unsqueeze(-1) - q).relu() - (to_l.unsqueeze(-2) - q).relu()  # but for b = k, b = a
    l_to = pairs[:, block]
    sequences = l_to.unsqueeze(-1) & l_to.unsqueeze(-2) & pairs.unsqueeze(1)
    return ends.masked_fill(~sequences, 0)


class _Rows(NamedTuple):
    """Rows sorted ascending, and the sum from each position on, which is 0 after the last."""

    ascending: Tensor
    suffix: Tensor

    @classmethod
    def of(cls, rows: Tensor, entries: Tensor) -> _Rows:
        """Sort the ``entries`` of ``rows``; the others come first, and below everything."""
        ascending = rows.masked_fill(~entries, -torch.inf).sort(dim=-1).values
        summands = ascending.masked_fill(ascending == -torch.inf, 0)
        suffix = summands.flip(-1).cumsum(dim=-1).flip(-1)
        return cls(ascending, torch.cat([suffix, torch.zeros_like(suffix[..., :1])], dim=-1))

    def excess(self, q: Tensor) -> Tensor:
        """Return Σ_b (row_b − q)₊ for all ``q`` (…, M) of each row."""
        position = torch.searchsorted(self.ascending, q, right=True)
        return self.suffix.gather(-1, position) - (self.ascending.shape[-1] - position) * q
