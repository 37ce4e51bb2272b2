"""A training that is killed again and again ends with the weights of one that was left alone.

    python -m tests.endurance.kills --kills 20 --seed 0 --output benchmarks/results/endurance-kills.json

Each process of the killed run sends itself SIGKILL, after a random number of updates or, every third, while it writes a
checkpoint: half-way, before its bytes are on the disk, or before the new file has its name. The next goes on from what
lies there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
CHECKPOINT = "checkpoint.pt"
SCENES, BATCH = (64, 20, 20), 16
BATCHES = SCENES[0] // BATCH  # updates an epoch
MOMENTS = ("write", "sync", "rename")  # of a checkpoint, before which a process may end


def train(arguments: Sequence[str]) -> None:
    """Train on few small scenes of digits."""
    import warnings

    from examples import train as program

    warnings.filterwarnings("ignore", "prototypes:")  # so short a training makes nobody sure
    program.QUICK = {"num_scenes": SCENES, "canvas": 24, "epochs": 2, "batch_size": BATCH}
    program.main(["--system", "sadcl", "--quick", *arguments])


def kill_after(updates: int) -> None:
    """Have this process killed at the end of an update."""
    from examples.fit import Training

    counted, update = [0], Training._update_average

    def update_and_count(self: Training) -> None:
        update(self)
        counted[0] += 1
        if counted[0] == updates:
            os.kill(os.getpid(), signal.SIGKILL)

    Training._update_average = update_and_count


def kill_before(moment: str) -> None:
    """Have this process killed while it writes its first checkpoint."""
    from examples import checkpoint

    def die(*arguments: object, **more: object) -> None:  # noqa: ARG001
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "write":
        save = torch.save

        def save_half(state: object, file: Any) -> None:
            save(state, file)
            file.flush()
            file.truncate(file.tell() // 2)
            die()

        checkpoint.torch.save = save_half
    elif moment == "sync":
        checkpoint.os.fsync = die
    else:
        checkpoint.Path.replace = die


def process(folder: Path, epochs: int, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--epochs", str(epochs), "--output", str(folder)]
    if (folder / CHECKPOINT).exists():
        arguments.append("--resume")
    return subprocess.run(
        [sys.executable, "-m", "tests.endurance.kills", "--train", *more, "--", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # their number decides the order of sums
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """Return where two nested states differ by a bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [found for key in range(len(one)) for found in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = one == other
    return [] if same else [name]


def run(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train once undisturbed and once with so many kills, and compare all that the checkpoints hold."""
    draw, epochs = random.Random(seed), kills + 1
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    killed.mkdir()
    process(whole, epochs).check_returncode()
    log = []
    for kill in range(kills):
        done = len(load_checkpoint(killed / CHECKPOINT)["training"]["history"]) if (killed / CHECKPOINT).exists() else 0
        if kill % 3 == 2:
            moment = MOMENTS[kill // 3 % len(MOMENTS)]
            ended = process(killed, epochs, "--moment", moment)
        else:
            moment = draw.randint(1, 2 * BATCHES - 1)  # an epoch is done at most
            ended = process(killed, epochs, "--updates", str(moment))
        log.append({"epochs_done": done, "killed_at": moment})
        if ended.returncode != -signal.SIGKILL:
            raise RuntimeError(
                f"kill {kill}: expected the process to be killed, got {ended.returncode}:\n{ended.stderr}"
            )
    process(killed, epochs).check_returncode()
    states = [load_checkpoint(path / CHECKPOINT) for path in (whole, killed)]
    return {
        "kills": kills,
        "seed": seed,
        "epochs": epochs,
        "updates": epochs * BATCHES,
        "log": log,
        "unfinished_files": [path.name for path in killed.glob("*.unfinished")],
        "tensors": sum(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(states[0])),
        "differing": differing(*states),
        "torch": torch.__version__,
    }


def main() -> None:
    """Train in a process that is to be killed, or run all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file for the result")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--updates", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--moment", choices=MOMENTS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        if options.updates:
            kill_after(options.updates)
        if options.moment:
            kill_before(options.moment)
        train(options.rest)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.kills, options.seed, Path(folder))
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    if result["differing"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
