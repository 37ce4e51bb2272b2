"""``python -m mlcorr``: versions, what can run here, and a self-check."""

from __future__ import annotations

import importlib.util
import platform

import torch

import mlcorr
from mlcorr.systems.mdkd import MDKDObjective


def main() -> None:
    """Print one line a fact, and run one training step of the MDKD objective on every device there is."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"mlcorr  {mlcorr.__version__}")
    print(f"python  {platform.python_version()}")
    print(f"torch   {torch.__version__}")
    print(f"triton  {'installed' if importlib.util.find_spec('triton') else 'not installed'}")
    for device in devices:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(8, 20, generator=generator).to(device) for _ in range(2))
        student.requires_grad_()
        MDKDObjective()(student, teacher, (teacher > 0).float()).backward()
        finite = student.grad is not None and bool(student.grad.isfinite().all())
        print(f"{device:7} {'works' if finite else 'FAILS: the gradient of the MDKD objective is not finite'}")


if __name__ == "__main__":
    main()
