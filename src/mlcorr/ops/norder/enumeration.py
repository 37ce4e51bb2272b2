"""The n-order losses by their definition, for every order and every δ: all label sequences, a chunk at a time.

A sequence (a, k_2 … k_{n−1}, b) is two ends around a *middle* of n − 2 labels. The middles are enumerated, by unranking
an integer into distinct labels; the ends are vectorised, since for one middle

    x_ab = (D[k_2, a] + inner + D[k_{n−1}, b]) / (n − 1),      inner = D[k_2, k_3] + … + D[k_{n−2}, k_{n−1}],

is a sum of two rows. A middle and its reverse are one (k_2 < k_{n−1}), and so are then a sequence and its reverse.
With y = clamp(x, −δ, δ) the Huber loss is y·(x − ½y) and its derivative is y, so that one pass gives both, and the
gradient of an entry of D needs only the sums of y over one end, or over both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from mlcorr._autograd import fixed_signature, plus

Measure: TypeAlias = Callable[[Tensor, "Tensor | None", int, float], tuple[Tensor, Tensor]]

# Elements of the largest temporaries, of which a handful exist at a time; one matrix always fits.
_CHUNK = 2**20

_REACH = 20_000_000_000
REACH_OF_KERNELS = 10_000_000_000_000  # minutes of a large GPU


def perm(labels: int, order: int) -> int:
    """Return ``math.perm``, which no compiler takes of a size that it leaves open."""
    count = 1
    for used in range(order):
        count *= labels - used
    return count


def count_sequences(order: int, num_labels: int) -> int:
    """Return the number of sequences of ``order`` distinct labels, a sequence and its reverse counted once.

    Example:
        >>> count_sequences(3, 80)
        246480
    """
    return perm(num_labels, order) // 2


def check_reach(order: int, num_labels: int, matrices: int, limit: int = _REACH) -> None:
    """Raise ValueError where ``matrices`` matrices have more than ``limit`` sequences to enumerate."""
    sequences = count_sequences(order, num_labels)
    if sequences * matrices > limit:
        raise ValueError(
            f"orders: order {order} of {num_labels} labels has {sequences} sequences, for each of {matrices} "
            f"difference matrices; at most {limit} in all can be enumerated. Use delta >= 1, where the closed form "
            "applies, or samples=, which draws some of the sequences"
        )


def mean_huber(differences: Tensor, order: int, delta: float, valid: Tensor | None = None) -> Tensor:
    """Return, for each matrix D, the mean over label sequences of Huber_δ(mean of D along the sequence).

    The cost is O(Cⁿ) for each matrix. The loss has a first and a second derivative, of which the first is computed
    along with the value.

    Args:
        differences: symmetric matrices (N, C, C) in float32 or float64, whose diagonals do not count.
        order: n ≥ 2, the number of labels in a sequence.
        delta: δ > 0, where the Huber loss turns from quadratic to linear.
        valid: (N, C) bool; sequences of a matrix's valid labels only. None is all labels.

    Returns:
        (N,); 0 where a matrix has fewer than n valid labels.
    """
    return differentiable(measure, differences, order, delta, valid)


def differentiable(
    implementation: Measure, differences: Tensor, order: int, delta: float, valid: Tensor | None
) -> Tensor:
    """Return the loss (N,) of ``implementation(differences, valid, order, delta) -> loss, gradient``."""
    loss, _ = _MeanHuber.apply(differences, valid, order, delta, implementation)
    return cast(Tensor, loss)


class _MeanHuber(torch.autograd.Function):
    """(D, …) → ``implementation(D, …)``, which is the loss (N,) and its gradient (N, C, C).

    The gradient is an output only because the backward is then a differentiable function of differentiable tensors:
    the derivative of that output is the Hessian, which is taken from the definition whatever ``implementation`` is.
    """

    generate_vmap_rule = True

    @staticmethod
    @fixed_signature
    def forward(
        differences: Tensor, valid: Tensor | None, order: int, delta: float, implementation: Measure
    ) -> tuple[Tensor, Tensor]:
        return implementation(differences, valid, order, delta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        differences, valid, ctx.order, ctx.delta, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(differences, valid, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        differences, valid, gradient = ctx.saved_tensors
        to_loss, to_gradient = grads
        total = None if to_loss is None else to_loss[:, None, None] * gradient
        if to_gradient is not None:
            total = plus(total, _hessian_product(differences, valid, ctx.order, ctx.delta, to_gradient))
        return total, None, None, None, None


def in_groups(differences: Tensor, valid: Tensor | None, size: int) -> list[tuple[Tensor, Tensor | None]]:
    """Split the matrices into groups of at most ``size``, and ``valid`` with them."""
    matrices = differences.split(size)
    return list(zip(matrices, [None] * len(matrices) if valid is None else valid.split(size), strict=True))


def in_blocks(total: int, size: int) -> list[range]:
    """Split ``range(total)`` into blocks of at most ``size``."""
    if size >= total:  # asked first, so that a compiled graph holds for every such size
        return [range(total)] if total else []
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def valid_pairs(differences: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the valid labels (N, C) and the pairs of two of them (N, C, C); N is 1 where ``valid`` is None."""
    num_labels = differences.shape[-1]
    if valid is None:
        valid = torch.ones(1, num_labels, dtype=torch.bool, device=differences.device)
    return valid, valid.unsqueeze(-1) & valid.unsqueeze(-2) & distinct(num_labels, differences.device)


def distinct(num_labels: int, device: torch.device) -> Tensor:
    """Return (C, C) bool, True off the diagonal."""
    return ~torch.eye(num_labels, dtype=torch.bool, device=device)


def symmetric_part(matrices: Tensor, pairs: Tensor) -> Tensor:
    """Return ½(D + Dᵀ), and 0 where a pair is not one of ``pairs``, whatever stood there."""
    return ((matrices + matrices.mT) / 2).masked_fill(~pairs, 0)


def per_sequence(valid: Tensor, order: int, dtype: torch.dtype) -> Tensor:
    """Return 1/P(c, n) for c valid labels, one over the number of ordered sequences; 0 where there is none."""
    labels = valid.sum(dim=-1)
    sequences = torch.ones_like(labels, dtype=dtype)
    for used in range(order):
        sequences = sequences * (labels - used)
    return torch.where(labels >= order, 1 / sequences.clamp(min=1), 0)


def shift_past(digit: Tensor, earlier: list[Tensor]) -> Tensor:
    """Return the ``digit``-th (from 0) of the integers that differ from the ``earlier`` ones, which are distinct."""
    if earlier:
        for taken in torch.stack(earlier).sort(dim=0).values.unbind():
            digit = digit + (digit >= taken)
    return digit


def measure(differences: Tensor, valid: Tensor | None, order: int, delta: float) -> tuple[Tensor, Tensor]:
    """Return the loss (N,) and its gradient (N, C, C); see ``mean_huber``."""
    groups = in_groups(differences, valid, _group_size(differences))
    losses, gradients = zip(*(_measure_group(d, v, order, delta) for d, v in groups), strict=True)
    return torch.cat(losses), torch.cat(gradients)


def _hessian_product(differences: Tensor, valid: Tensor | None, order: int, delta: float, direction: Tensor) -> Tensor:
    """Return the derivative of the gradient along ``direction`` (N, C, C), where |x| = δ occurs nowhere."""
    size = _group_size(differences)
    groups = zip(in_groups(differences.detach(), valid, size), direction.split(size), strict=True)
    return torch.cat([_hessian_product_of_group(d, v, order, delta, along) for (d, v), along in groups])


def _group_size(differences: Tensor) -> int:
    """Return for how many matrices one middle fits a chunk."""
    return max(1, _CHUNK // max(1, differences.shape[-1] ** 2))


def _measure_group(differences: Tensor, valid: Tensor | None, order: int, delta: float) -> tuple[Tensor, Tensor]:
    valid, pairs = valid_pairs(differences, valid)
    differences = symmetric_part(differences, pairs)
    loss, gradient = differences.new_zeros(differences.shape[0]), torch.zeros_like(differences)
    for ranks in _chunks(differences, order):
        middle = _unrank(ranks, order, differences)
        x = _along(differences, middle)
        y = x.clamp(-delta, delta) * _ends(valid, middle)
        loss = loss + (y * torch.sub(x, y, alpha=0.5)).sum(dim=(1, 2, 3))
        gradient = gradient + _per_pair(y, middle)
    return mean_over_sequences(loss, valid, order), mean_over_sequences((gradient + gradient.mT) / 2, valid, order)


def _hessian_product_of_group(
    differences: Tensor, valid: Tensor | None, order: int, delta: float, direction: Tensor
) -> Tensor:
    valid, pairs = valid_pairs(differences, valid)
    differences, direction = symmetric_part(differences, pairs), symmetric_part(direction, pairs)
    product = torch.zeros_like(direction)
    for ranks in _chunks(differences, order):
        middle = _unrank(ranks, order, differences)
        quadratic = _along(differences, middle).abs() <= delta
        y = _along(direction, middle) * (quadratic & _ends(valid, middle))
        product = product + _per_pair(y, middle)
    return mean_over_sequences((product + product.mT) / 2, valid, order)


def mean_over_sequences(total: Tensor, valid: Tensor, order: int) -> Tensor:
    """Divide sums over the enumerated sequences, (N, …), by the number of these."""
    directions = 2 if order >= 4 else 1  # of the ordered sequences, those of one direction were enumerated
    scale = directions * per_sequence(valid, order, total.dtype)
    return total * scale.reshape(-1, *[1] * (total.dim() - 1))


def _chunks(differences: Tensor, order: int) -> list[range]:
    """Return the ranks of all middles, in chunks."""
    matrices, num_labels, _ = differences.shape
    middles = perm(num_labels, order - 2) // (2 if order >= 4 else 1)
    return in_blocks(middles, max(1, _CHUNK // max(1, matrices * num_labels * num_labels)))


def _unrank(ranks: range, order: int, differences: Tensor) -> tuple[Tensor, ...]:
    """Return the middles of these ranks: n − 2 tensors (K,) of labels, distinct at every position."""
    num_labels, device = differences.shape[-1], differences.device
    rank = torch.arange(ranks.start, ranks.stop, device=device)
    if order <= 3:
        return (rank,) * (order - 2)
    interiors = perm(num_labels - 2, order - 4)
    ends = torch.triu_indices(num_labels, num_labels, 1, device=device)[:, rank // interiors]
    labels, rank = list(ends.unbind()), rank % interiors
    for choices in range(num_labels - 2, num_labels + 2 - order, -1):
        labels.append(shift_past(rank % choices, labels))
        rank = rank // choices
    first, last, *interior = labels
    return first, *interior, last


def _ends(valid: Tensor, middle: tuple[Tensor, ...]) -> Tensor:
    """Return the pairs of ends (N, K, C, C) that make a sequence of distinct valid labels with a middle."""
    num_labels = valid.shape[-1]
    free = valid.unsqueeze(1)
    labels = torch.arange(num_labels, device=valid.device)
    for label in middle:
        free = free & (labels != label.unsqueeze(-1)) & valid[:, label].unsqueeze(-1)
    return free.unsqueeze(-1) & free.unsqueeze(-2) & distinct(num_labels, valid.device)


def _along(matrices: Tensor, middle: tuple[Tensor, ...]) -> Tensor:
    """Return the mean of a matrix's entries along the sequences of a middle: (N, K, C, C), over both ends."""
    if not middle:
        return matrices.unsqueeze(1)
    to_last = matrices[:, middle[-1]]
    for k, k_next in zip(middle[:-1], middle[1:], strict=True):
        to_last = to_last + matrices[:, k, k_next].unsqueeze(-1)
    edges = len(middle) + 1
    return (matrices[:, middle[0]] / edges).unsqueeze(-1) + (to_last / edges).unsqueeze(-2)


def _per_pair(y: Tensor, middle: tuple[Tensor, ...]) -> Tensor:
    """Return the adjoint of ``_along``: each entry's share of the ``y`` of the sequences that pass it, (N, C, C)."""
    if not middle:
        return y.squeeze(1)
    num_labels = y.shape[-1]
    of_last, of_first = y.sum(dim=-2), y.sum(dim=-1)
    shares = torch.zeros_like(y[:, 0]).index_add(1, middle[0], of_first).index_add(1, middle[-1], of_last)
    shares, of_middle = shares.flatten(1), of_first.sum(dim=-1)
    for k, k_next in zip(middle[:-1], middle[1:], strict=True):
        shares = shares.index_add(1, k * num_labels + k_next, of_middle)
    return shares.view_as(y[:, 0]) / (len(middle) + 1)
