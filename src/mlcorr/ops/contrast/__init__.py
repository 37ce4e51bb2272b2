"""How near vectors are to those of their own label and to all others, never holding all similarities.

Data flows ``__init__`` (which implementation) → ``autograd.py`` (derivatives) → ``operators.py`` (one step, to a
compiler) → ``streamed.py`` or its kernels.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mlcorr._checks import check_choice, check_device
from mlcorr.ops.contrast.autograd import Similarities, streamed_similarities
from mlcorr.ops.contrast.directions import unit_vectors, widen_vectors
from mlcorr.ops.launching import have_kernels, require_kernels

Backend: TypeAlias = Literal["auto", "streamed", "streamed_triton"]
BACKENDS: Final = ("auto", "streamed", "streamed_triton")

__all__ = [
    "BACKENDS",
    "Backend",
    "Selection",
    "Similarities",
    "select_backend",
    "similarities",
    "unit_vectors",
    "widen_vectors",
]


class Selection(NamedTuple):
    """The implementation that a call would take, and why."""

    backend: Backend
    reason: str


def select_backend(*, backend: Backend = "auto", device: torch.device | str = "cpu") -> Selection:
    """Return which implementation of the contrastive losses' similarities would run, and why.

    Raises:
        ValueError: ``backend`` is none of "auto", "streamed" and "streamed_triton", or ``device`` has no kernels.
        ImportError: Kernels without Triton.

    Example:
        >>> select_backend(device="cpu").backend
        'streamed'
    """
    check_choice("backend", backend, BACKENDS)
    device = check_device("device", device)
    if backend == "streamed_triton":
        require_kernels(backend, device)
    if backend != "auto":
        return Selection(backend, f"backend={backend!r} was asked for")
    if have_kernels(device):
        return Selection("streamed_triton", f"device {device.type!r} has kernels")
    return Selection("streamed", f"device {device.type!r} has no kernels")


def similarities(
    x: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    scale: float,
    *,
    positives: bool,
    block_size: int,
    backend: Backend,
) -> Similarities:
    """Compare every vector of x with all others of x and with the keys; s is ``scale`` times the inner product.

    Args:
        x: (A, D), float32 or float64.
        labels: (A,) int64; < 0 where a row is neither anchor nor key.
        keys: (M, D) of the same dtype.
        key_labels: (M,) likewise.
        scale: one over the temperature.
        positives: whether sums and numbers of positives are asked for; else they are empty.
        block_size: anchors and keys that are compared at a time, where that can be chosen.
        backend: see :func:`select_backend`.

    Nothing is checked here. Vectors have to be of length one, or 0 (``unit_vectors``): s of a wide range that only
    their length would allow may overflow.
    """
    kernels = select_backend(backend=backend, device=x.device).backend == "streamed_triton"
    return streamed_similarities(x, labels, keys, key_labels, scale, positives, block_size, kernels)
