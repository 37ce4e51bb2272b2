"""First weights, drawn part by part, of which one may refuse its arguments when others have drawn theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Leave the random state as it was where what is made raises an error."""
    before = torch.get_rng_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(before)
        raise
