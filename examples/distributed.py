"""Train SADCL over several processes, as one big batch: ``torchrun --nproc-per-node 2 -m examples.distributed``.

Every process has its own share of each batch. With ``group`` the losses compare the features of all of them, so that
their number changes neither value nor gradient (but for batch normalisation, whose statistics are each process's own).

With ``--checkpoint FILE`` a run that was ended goes on where the file was written, also after torchrun has started all
processes anew because one of them died: ``torchrun --nproc-per-node 2 --max-restarts 3 -m examples.distributed
--checkpoint run.pt``, with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment (see the documentation, "Many
processes"). Every process reads the file; on several machines it has to lie where all of them see it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from examples.checkpoint import load_checkpoint, save_checkpoint
from examples.data import digit_scenes
from examples.fit import predict
from examples.models import make_backbone
from examples.training import score
from mlcorr.systems.sadcl import SADCL

DECIDING = ("epochs", "scenes", "batch_size")  # options without which a run would be another one


class Run:
    """Everything of a run that changes, on each process: a checkpoint of it is whole."""

    def __init__(self, model: nn.Module, updates: int, settings: dict[str, int]) -> None:
        self.model, self.settings = model, {**settings, "processes": dist.get_world_size()}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.schedule = OneCycleLR(self.optimizer, 1e-3, total_steps=updates)
        self.epoch = self.done = 0  # epochs before this one, and updates in it

    def save(self, path: Path) -> None:
        """Write a checkpoint, by the first process; models are alike, random states are each process's own."""
        random: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(random, random_states())
        if dist.get_rank() == 0:
            parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
            place = {"epoch": self.epoch, "done": self.done}
            save_checkpoint({**parts, **place, "random": random, "settings": self.settings}, path)

    def load(self, path: Path) -> None:
        """Go on where a checkpoint was written."""
        state = load_checkpoint(path)
        if not {"model", "optimizer", "schedule", "epoch", "done", "random", "settings"} <= state.keys():
            raise ValueError(f"{path}: expected a checkpoint of this program, found {sorted(map(str, state))}")
        if state["settings"] != self.settings:
            raise ValueError(f"{path}: expected a run with {self.settings}, got one with {state['settings']}")
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.done = state["epoch"], state["done"]
        own, on_cuda = state["random"][dist.get_rank()]
        torch.set_rng_state(own)
        if on_cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(on_cuda)


def random_states() -> tuple[Tensor, Tensor | None]:
    """Return what dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on scenes of digits; each process prints the loss of the whole batch, the first one the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of one process (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="file to write, and to go on from where it is there")
    parser.add_argument("--every", type=int, default=20, help="updates between checkpoints (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.every < 1:
        parser.error(f"--every: expected at least 1, got {options.every}")

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")

    data = digit_scenes(num_scenes=(options.scenes, 0, 300), canvas=32)
    torch.manual_seed(0)  # the same first weights everywhere; DistributedDataParallel would see to it too
    backbone, channels = make_backbone(data.train.inputs)
    model = SADCL(
        backbone, channels, len(data.label_names), proj_dim=32, proj_width=64, width=128, group=dist.group.WORLD
    ).to(device)
    # The order of sums over three processes or more follows from the buckets of gradients. After its first update
    # DistributedDataParallel forms them anew, and a resumed run would differ by a bit; not so where it looks for unused
    # parameters.
    kept = options.checkpoint is not None and dist.get_world_size() > 2
    # The memory banks are alike, so that broadcast_buffers does no harm.
    trained = DistributedDataParallel(model, find_unused_parameters=kept)

    train = TensorDataset(data.train.inputs, data.train.targets)
    sampler = DistributedSampler(train, seed=0)
    # Its generator is its own: to go through it again, after a restart, draws nothing that dropout would have drawn.
    loader = DataLoader(train, options.batch_size, sampler=sampler, generator=torch.Generator())
    run = Run(model, options.epochs * len(loader), {name: getattr(options, name) for name in DECIDING})
    torch.manual_seed(dist.get_rank())  # other places drop out on each process
    if options.checkpoint is not None and options.checkpoint.exists():
        run.load(options.checkpoint)

    while run.epoch < options.epochs:
        sampler.set_epoch(run.epoch)
        model.train()
        model.contrast = run.epoch >= options.epochs // 2
        if run.epoch == options.epochs // 2 and run.done == 0:
            for buffer in model.buffers():  # statistics of batches: the first process's, as in every forward pass
                dist.broadcast(buffer, 0)
            model.initialize_prototypes((images.to(device), targets.to(device)) for images, targets in loader)
        for images, targets in islice(loader, run.done, None):
            loss = model.objective(trained(images.to(device)), targets.to(device))
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            run.schedule.step()
            run.done += 1
            if options.checkpoint is not None and run.done % options.every == 0 and run.done < len(loader):
                run.save(options.checkpoint)
        run.epoch, run.done = run.epoch + 1, 0
        total = sum(parameter.double().sum() for parameter in model.parameters())
        line = f"rank {dist.get_rank()} epoch {run.epoch} loss {loss.item():.6f} weights {total.item():.9f}\n"
        sys.stdout.write(line)  # in one piece, unlike print: processes share the output
        sys.stdout.flush()
        if options.checkpoint is not None:
            run.save(options.checkpoint)
    if dist.get_rank() == 0:
        scores = score(predict(model, data.evaluation.to(device)).cpu(), data.evaluation.targets)
        print("  ".join(f"{name} {100 * value:.2f}" for name, value in scores.items()))
    leave()


def leave() -> None:
    """End this process together with the others."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of the interpreter's end: a thread of gloo that gives up a tensor after it aborts the process.
    os._exit(0)


if __name__ == "__main__":
    main()
