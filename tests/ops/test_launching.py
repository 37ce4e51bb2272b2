"""What kernels are given and leave behind, by device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mlcorr.ops.launching import dense, readable, stored, strides


@pytest.mark.parametrize(("device", "expected"), [("cuda", torch.bfloat16), ("cpu", torch.float32)])
def test_half_precision_is_stored_on_devices_alone(device: str, expected: torch.dtype) -> None:
    """Triton's interpreter cuts off what a device rounds."""
    x = SimpleNamespace(dtype=torch.bfloat16, device=torch.device(device))
    assert stored(x, torch.float32) == expected


def test_what_a_kernel_reads() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    assert readable(mask).dtype == torch.uint8
    assert readable(mask).data_ptr() == mask.data_ptr()
    assert readable(None) is None
    x = torch.arange(6.0).view(2, 3)
    assert readable(x) is x
    assert dense(x) is x
    assert dense(x.T).is_contiguous()
    assert torch.equal(dense(x.T), x.T)
    assert strides(x.T) == (1, 3)
    assert strides(None) == (0, 0)
