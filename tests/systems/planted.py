"""Images of which a system can learn every label by heart."""

from __future__ import annotations

import torch
from torch import Tensor


def planted(number: int, labels: int, *, cells: int = 4, side: int = 4) -> tuple[Tensor, Tensor]:
    """Return noise with the square pattern of every present label somewhere on a grid, and the targets.

    Images are (number, 3, cells * side, cells * side), patterns (3, side, side).
    """
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(labels, 3, side, side, generator=generator).sign()
    target = (torch.rand(number, labels, generator=generator) < 0.35).long()
    canvas = 0.3 * torch.randn(number, 3, cells * side, cells * side, generator=generator)
    for image in range(number):
        places = torch.randperm(cells * cells, generator=generator)
        for label in target[image].nonzero().flatten().tolist():
            row, column = (side * place for place in divmod(int(places[label]), cells))
            canvas[image, :, row : row + side, column : column + side] += patterns[label]
    return canvas, target
