"""`examples.distributed` whose processes kill themselves: one at a start, until the plan is at its end.

    torchrun --nproc-per-node 2 --max-restarts 2 -m tests.distributed.killed_training 1:4,0:rename --checkpoint run.pt

The first entry is for the first start: rank 1 dies in its fourth update. After the restart rank 0 dies before its first
checkpoint has its name. "none" is a plan without entries.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import torch

from examples import distributed
from mlcorr.systems.sadcl import SADCL
from tests.endurance.kills import MOMENTS, kill_before


def kill_in(update: int) -> None:
    """Have this process killed before the optimiser's step of an update, when gradients were added up already."""
    counted, step = [0], torch.optim.AdamW.step

    def count(self: torch.optim.AdamW, *arguments: object, **more: object) -> object:
        counted[0] += 1
        if counted[0] == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **more)

    torch.optim.AdamW.step = count


def main() -> None:
    """Take the plan, and leave the rest to the example."""
    plan, start = sys.argv[1].split(","), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    sys.stdout.write(f"start {start}\n")
    if plan != ["none"] and start < len(plan):
        rank, moment = plan[start].split(":")
        if rank == os.environ["RANK"]:
            kill_before(moment) if moment in MOMENTS else kill_in(int(moment))
    distributed.SADCL = partial(SADCL, bank_threshold=0.1)  # so short a training makes nobody sure
    distributed.main(sys.argv[2:])


if __name__ == "__main__":
    main()
