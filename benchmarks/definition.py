"""The dependency loss of the instances by its definition, as others would write it: what ours is held against."""

from __future__ import annotations

from itertools import pairwise, permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Case, Inputs

# Entries of the largest temporaries of the vectorised form.
_CHUNK = 1 << 22


class Loops:
    """The definition as the paper prints it: a loop over every label sequence, in Python numbers."""

    def __init__(self, case: Case) -> None:
        self.orders, self.delta = case.orders, case.delta

    def __call__(self, x: Inputs) -> Tensor:
        """Return the value; there is no gradient."""
        total = 0.0
        for s, t in zip(x.student.sigmoid().tolist(), x.teacher.sigmoid().tolist(), strict=True):
            for order in self.orders:
                summed, count = 0.0, 0
                for sequence in permutations(range(len(s)), order):
                    if sequence[0] < sequence[-1]:
                        difference = sum((t[k] - t[l]) ** 2 - (s[k] - s[l]) ** 2 for k, l in pairwise(sequence))
                        difference /= order - 1
                        distance = abs(difference)
                        if distance <= self.delta:
                            summed += 0.5 * difference * difference
                        else:
                            summed += self.delta * (distance - 0.5 * self.delta)
                        count += 1
                total += summed / count
        return torch.tensor(total / len(x.student))


class Vectorized(nn.Module):
    """The definition as a competent user of PyTorch writes it: sequences as one index tensor, made once, and a gather.

    It goes over the sequences in chunks, so that temporaries are bounded; the backward pass is autograd's, which keeps
    one number for each sequence of each instance.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.delta = case.delta
        for order in case.orders:
            self.register_buffer(f"order_{order}", sequence_edges(order, case.labels))

    def forward(self, x: Inputs) -> Tensor:
        """Return the loss."""
        difference = (_pairs(x.teacher.sigmoid()) - _pairs(x.student.sigmoid())).flatten(1)
        rows = difference.shape[0]
        zero = difference.new_zeros(())
        loss = zero
        for edges in self.buffers():
            for chunk in edges.split(max(_CHUNK // rows, 1), dim=1):
                mean = sum(difference.gather(1, edge.expand(rows, -1)) for edge in chunk) / len(chunk)
                huber = F.huber_loss(mean, zero.expand_as(mean), reduction="sum", delta=self.delta)
                loss = loss + huber / (rows * edges.shape[1])
        return loss


def sequence_edges(order: int, num_labels: int) -> Tensor:
    """Return the edges (n − 1, sequences) of all sequences of ``order`` labels, one and its reverse counted once.

    An edge from label k to label l is k·C + l, its place in a flat (C, C) matrix.
    """
    labels = torch.arange(num_labels)
    sets = labels.unsqueeze(1)  # sets of labels, in ascending order
    for _ in range(order - 1):
        first, last = (labels > sets[:, -1:]).nonzero().unbind(1)
        sets = torch.cat([sets[first], last.unsqueeze(1)], dim=1)
    columns = sets.unbind(1)
    arrangements = [a for a in permutations(range(order)) if a[0] < a[-1]]
    return torch.stack(
        [torch.cat([columns[a[i]] * num_labels + columns[a[i + 1]] for a in arrangements]) for i in range(order - 1)]
    )


def _pairs(probabilities: Tensor) -> Tensor:
    """Return Φ_i(k, l) = (p_ik − p_il)², (B, C, C)."""
    return (probabilities.unsqueeze(2) - probabilities.unsqueeze(1)) ** 2
