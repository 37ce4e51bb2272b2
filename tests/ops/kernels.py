"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ORDERS = {2: 1.0, 3: 0.5, 4: 2.0}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 3.0) -> list[Tensor]:
    """Logits of a student and a teacher, leaves both."""
    generator = torch.Generator().manual_seed(seed)
    pair = [scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [x.to(DEVICE, dtype).requires_grad_() for x in pair]


def draw_mask(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6).to(DEVICE)


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    weights = torch.linspace(0.5, 1.5, max(value.numel(), 1), dtype=torch.float64, device=value.device)
    return [value.detach(), *torch.autograd.grad((value * weights[: value.numel()].view_as(value)).sum(), leaves)]


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)
