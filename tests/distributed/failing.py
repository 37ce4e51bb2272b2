"""Processes of which the last fails, each way, while the others communicate; each says in a file how it went."""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_flatten

from tests.distributed.calls import CALLS, contrast_backward

Way = Literal["dies", "sleeps", "refuses", "dies before the backward pass"]
SETUP = timedelta(minutes=2)  # for what is not tested here


def meet(store: dist.Store, rank: int, ranks: int, what: str) -> None:
    store.set(f"{what} {rank}", "here")
    store.wait([f"{what} {other}" for other in range(ranks)], SETUP)


def process(rank: int, ranks: int, name: str, way: Way, timeout: float, folder: str) -> None:
    """Join the others, then fail or call; ``folder`` is empty at first."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    warnings.simplefilter("ignore", UserWarning)  # so few rows make nobody sure
    store = dist.FileStore(f"{folder}/store", ranks)
    meet(store, rank, ranks, "started")
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout))
    call = (contrast_backward if "backward" in way else CALLS[name])(dist.group.WORLD)
    meet(store, rank, ranks, "ready")
    report: dict[str, object] = {"before": "ready"}
    if rank < ranks - 1:
        report = outcome(call.good, call.state)
    elif "dies" in way:
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "refuses":
        report = outcome(call.bad, call.state)
    Path(folder, f"{rank}.part").write_bytes(pickle.dumps(report))
    Path(folder, f"{rank}.part").rename(Path(folder, f"{rank}.report"))
    if rank == ranks - 1:
        time.sleep(SETUP.total_seconds())  # alive, and of no use to the others, until it is killed
    os._exit(0)


def outcome(call: object, state: object) -> dict[str, object]:
    """Call, and return what was raised, how long it took, and whether the state is as before."""
    before, start = tree_flatten(state()), time.monotonic()
    try:
        call()
    except Exception as error:  # whatever it is: the test looks at it
        report: dict[str, object] = {"error": type(error).__name__, "message": str(error)}
        report["runtime"] = isinstance(error, RuntimeError)
    else:
        report = {"error": None, "message": "", "runtime": False}
    after = tree_flatten(state())
    same = before[1] == after[1] and all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(before[0], after[0], strict=True)
    )
    return {**report, "seconds": time.monotonic() - start, "same": same}
