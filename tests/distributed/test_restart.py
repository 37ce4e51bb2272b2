"""torchrun starts a training anew whose processes die: it ends, bit for bit, as one that was left alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from examples.checkpoint import load_checkpoint
from examples.distributed import Run
from tests.endurance.kills import differing

ROOT = Path(__file__).parents[2]
# Four updates an epoch; contrast, and with it the bank, from the ninth on.
SIZE = ["--epochs", "4", "--scenes", "96", "--batch-size", "8", "--every", "2"]
# Its store for each start: the one that torchrun shares holds the addresses of the dead, which the next may read.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
PLAN = ["1:11", "0:rename"]  # in the third epoch, with something in the bank; while its end is written


def torchrun(checkpoint: Path, plan: list[str]) -> str:
    """Train to the end, and return what was written to the screen."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--max-restarts", str(len(plan))]
    program = ["tests.distributed.killed_training", ",".join(plan) or "none", *SIZE, "--checkpoint", str(checkpoint)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *launcher, "-m", *program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_a_killed_run_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    undisturbed, restarted = torchrun(whole, []), torchrun(killed, PLAN)
    assert set(re.findall(r"start \d", undisturbed)) == {"start 0"}
    assert set(re.findall(r"start \d", restarted)) == {"start 0", "start 1", "start 2"}, restarted
    state = load_checkpoint(whole)
    assert differing(state, load_checkpoint(killed)) == []
    assert state["epoch"] == 4
    assert state["schedule"]["last_epoch"] == 16
    assert state["model"]["contrastive_loss.bank.count"].sum() > 0
    assert state["model"]["contrastive_loss.steps"] == 8
    scores = [re.findall(r"mAP.*", output) for output in (undisturbed, restarted)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        run = Run(nn.Linear(2, 2), 10, {"epochs": 2})
        run.done = 1
        run.save(path)
        other = Run(nn.Linear(2, 2), 10, {"epochs": 3})
        before = other.model.weight.clone()
        with pytest.raises(ValueError, match=r"expected a run with .*'epochs': 3.*, got one with .*'epochs': 2"):
            other.load(path)
        assert torch.equal(other.model.weight, before)
        torch.save({"settings": other.settings, "model": run.model.state_dict()}, tmp_path / "foreign.pt")
        with pytest.raises(ValueError, match=r"expected a checkpoint of this program, found \['model', 'settings'\]"):
            other.load(tmp_path / "foreign.pt")
        assert torch.equal(other.model.weight, before)
        same = Run(nn.Linear(2, 2), 10, {"epochs": 2})
        same.load(path)
        assert torch.equal(same.model.weight, run.model.weight)
        assert (same.epoch, same.done) == (0, 1)
    finally:
        dist.destroy_process_group()
