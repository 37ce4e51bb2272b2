"""Tests over several processes of this machine, joined by gloo."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(work: Callable[..., Any], ranks: int, *arguments: object) -> list[Any]:
    """Return what ``work(rank, *arguments)`` returns in each of ``ranks`` processes, which are in one group."""
    with TemporaryDirectory() as folder:
        mp.spawn(_process, (work, ranks, folder, arguments), nprocs=ranks)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(ranks)]


def _process(rank: int, work: Callable[..., Any], ranks: int, folder: str, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks, timeout=timedelta(minutes=2)
    )
    torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves early would break the connections of the others
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of the interpreter's end: a thread of gloo that then gives up a tensor asks for an interpreter that is
    # gone, and aborts the process ("terminate called without an active exception").
    os._exit(0)
