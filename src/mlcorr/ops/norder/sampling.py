"""The n-order losses estimated from label sequences drawn at random: any order, any δ, any number of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from mlcorr.ops.norder.enumeration import shift_past, symmetric_part, valid_pairs


def mean_huber(
    differences: Tensor,
    order: int,
    delta: float,
    samples: int,
    generator: torch.Generator | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the mean over ``samples`` random label sequences of Huber_δ(mean of D along the sequence).

    Each matrix draws its own sequences, uniformly and independently of each other, so that the expectation is what
    ``enumeration.mean_huber`` returns, and the expectation of the gradient its gradient. The standard error is the
    standard deviation of the Huber losses of all sequences, divided by √samples. Memory is O(N·(samples·n + C²)).

    Args:
        differences: symmetric matrices (N, C, C) in float32 or float64, whose diagonals do not count.
        order: n ≥ 2, the number of labels in a sequence.
        delta: δ > 0, where the Huber loss turns from quadratic to linear.
        samples: number of sequences drawn for each matrix, at least 1.
        generator: of the random numbers, on the device of ``differences``; None is the device's own.
        valid: (N, C) bool; sequences of a matrix's valid labels only. None is all labels.

    Returns:
        (N,); 0 where a matrix has fewer than n valid labels.
    """
    matrices, num_labels, _ = differences.shape
    valid, pairs = valid_pairs(differences, valid)
    entries = symmetric_part(differences, pairs).flatten(1)
    valid = valid.expand(matrices, num_labels)
    sequence = _draw(valid, order, samples, generator)
    along = [entries.gather(1, k * num_labels + k_next) for k, k_next in zip(sequence[:-1], sequence[1:], strict=True)]
    x = torch.stack(along).mean(dim=0)
    y = x.clamp(-delta, delta)
    huber = y * (x - y / 2)
    return huber.mean(dim=1).masked_fill(valid.sum(dim=-1) < order, 0)


def _draw(valid: Tensor, order: int, samples: int, generator: torch.Generator | None) -> list[Tensor]:
    """Return n tensors (N, samples) of labels: sequences of distinct valid labels, wherever there are enough."""
    matrices, num_labels = valid.shape
    valid_first = valid.byte().argsort(dim=-1, descending=True, stable=True)
    choices = valid.sum(dim=-1, keepdim=True)
    positions: list[Tensor] = []
    for used in range(order):
        # So many values for so few choices: what the remainder favours is below any count of samples.
        number = torch.randint(2**62, (matrices, samples), generator=generator, device=valid.device)
        positions.append(shift_past(number % (choices - used).clamp(min=1), positions))
    return [valid_first.gather(1, position.clamp(max=num_labels - 1)) for position in positions]
