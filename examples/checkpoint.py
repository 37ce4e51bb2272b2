"""Checkpoints that are whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` beside ``path`` and rename it once it is on the disk: a crash leaves the old file as it was."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    if hasattr(os, "O_DIRECTORY"):  # the new name must reach the disk too; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, on the CPU: tensors and plain values only, no code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what a damaged file raises differs from release to release
        raise ValueError(f"{path}: no checkpoint, or a damaged one ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint, a dict, got {type(state).__name__}")
    return state
