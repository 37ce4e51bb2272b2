"""The example for several processes, started as its users start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_processes_train_one_model() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "examples.distributed", "--epochs", "2", "--scenes", "150"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    pattern = r"rank (\d) epoch (\d) loss (\S+) weights (\S+)"
    epochs = {(int(rank), int(epoch)): rest for rank, epoch, *rest in re.findall(pattern, done.stdout)}
    assert sorted(epochs) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for epoch in (1, 2):
        assert epochs[0, epoch] == epochs[1, epoch]  # the loss of the whole batch, and the same weights after it
    assert epochs[0, 1] != epochs[0, 2]
    assert re.search(r"mAP \d+\.\d\d  OF1", done.stdout)
