"""Where a token stands in the image, as sines and cosines of its row and its column."""

from __future__ import annotations

import torch
from torch import Tensor

from mlcorr._precision import compute_dtype


def sine_cosine_positions(height: int, width: int, channels: int, *, like: Tensor) -> Tensor:
    """Return codes (height·width, channels), row by row: half of the channels tell the row, half the column.

    Of ``channels // 4`` wavelengths, in geometric progression from 2π to nearly 2π·10 000, there is a sine and a
    cosine. Nothing is stored, so that the map may have any size. Dtype and device are those of ``like``.
    """
    device, dtype = like.device, compute_dtype(like)
    steps = torch.arange(channels // 4, device=device, dtype=dtype)
    rates = torch.exp(steps * (-4 * 9.210340371976184 / channels))  # log 10 000
    rows, columns = (
        torch.cat([angles.sin(), angles.cos()], dim=-1)
        for angles in (torch.arange(size, device=device, dtype=dtype).unsqueeze(-1) * rates for size in (height, width))
    )
    codes = torch.cat(
        [rows.unsqueeze(1).expand(height, width, -1), columns.unsqueeze(0).expand(height, width, -1)], dim=-1
    )
    return codes.flatten(0, 1).to(like.dtype)
