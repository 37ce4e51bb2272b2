"""Images of a batch shifted, mirrored and partly erased, each in its own way, by plain tensor operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How much the images of a batch are changed.

    Attributes:
        shift: each image moves by up to this share of its side, up or down and left or right; edges are repeated.
        erase: a square of this share of the side is set to 0 somewhere, as in Cutout; it may reach beyond the edge.
        mirror: every other image, by chance, is mirrored left to right.
    """

    shift: float = 0.1
    erase: float = 0.25
    mirror: bool = False

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Return changed images (N, channels, H, W); ``draws``, on the CPU, decides how."""
        count, channels, height, width = images.shape

        def draw(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (count, 1), generator=draws).to(images.device)

        rows, columns = (torch.arange(side, device=images.device).expand(count, -1) for side in (height, width))
        if self.mirror:
            columns = torch.where(draw(0, 1).bool(), width - 1 - columns, columns)
        up, left = (round(self.shift * side) for side in (height, width))
        source_rows = (rows + draw(-up, up)).clamp(0, height - 1)
        source_columns = (columns + draw(-left, left)).clamp(0, width - 1)
        image = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[None, :, None, None]
        images = images[image, channel, source_rows[:, None, :, None], source_columns[:, None, None, :]]

        side = self.erase * min(height, width)
        row_erased = (torch.arange(height, device=images.device) - draw(0, height - 1)).abs() < side / 2
        column_erased = (torch.arange(width, device=images.device) - draw(0, width - 1)).abs() < side / 2
        return images.masked_fill((row_erased[:, :, None] & column_erased[:, None, :])[:, None], 0.0)


def unchanged(features: Tensor, _draws: torch.Generator) -> Tensor:
    """Return features as they are: no one knows what changes of a measurement leave its labels alone."""
    return features
