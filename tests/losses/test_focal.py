"""What losses with a focusing factor share: far from 0 it is a constant, for anomaly detection too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlcorr.functional import asymmetric_loss, hill_loss, partial_asymmetric_loss, splc_loss

LOSSES = {
    "asymmetric": lambda x, y: asymmetric_loss(x, y, detach_focal=False, clip=0.0, gamma_pos=4.0),
    "hill": hill_loss,
    "partial_asymmetric": lambda x, y: partial_asymmetric_loss(x, y, detach_focal=False, gamma_pos=4.0, gamma_neg=4.0),
    "splc": lambda x, y: splc_loss(x, y, correct=False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_no_step_of_the_backward_is_nan_at_the_largest_logits(name: str, dtype: torch.dtype) -> None:
    loss: Callable[[Tensor, Tensor], Tensor] = LOSSES[name]
    largest = torch.finfo(dtype).max
    x = torch.tensor([[-largest, largest, -1e37, 1e37]], dtype=dtype, requires_grad=True)
    y = torch.tensor([[1, 1, 1, 1]])
    with torch.autograd.detect_anomaly(check_nan=True):
        first = torch.autograd.grad(loss(x, y), x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x)[0]
    torch.testing.assert_close(first.detach(), torch.tensor([[-1.0, 0.0, -1.0, 0.0]], dtype=dtype))
    assert (second == 0).all()
