"""Accelerate, on one device or several: ``accelerate launch -m examples.integrations.accelerate_loop``.

A batch is split over the processes. With ``group`` the loss is that of the whole batch, whatever their number. Without
GPUs ``accelerate launch`` starts one process; ``torchrun --nproc-per-node 2 -m examples.integrations.accelerate_loop``
starts two. (The same without Accelerate: ``examples/distributed.py``.)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.data import digit_scenes
from mlcorr.metrics import multilabel_scores
from mlcorr.systems.latent_context import LatentContext


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train on scenes of digits; the first process prints losses and scores, and every process returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args(arguments)

    data = digit_scenes(num_scenes=(options.scenes, 0, 501), canvas=32)
    # [accelerator]
    # A batch of the loader is that of all processes together, in an order that does not depend on their number.
    split = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=0)
    accelerator = Accelerator(cpu=options.cpu, dataloader_config=split)
    group = dist.group.WORLD if accelerator.num_processes > 1 else None
    # [model]
    torch.manual_seed(0)
    backbone = nn.Sequential(
        *(nn.Conv2d(1, 32, 4, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
    )
    # Nothing is drawn at random, neither dropout nor hidden labels (beta): one process and several do the same.
    system = LatentContext(
        *(backbone, 64, len(data.label_names)),
        **{"dim": 64, "units": 16, "depth": 2, "heads": 4, "width": 128, "dropout": 0.0, "beta": 0.0, "group": group},
    )
    # [prepare]
    model, optimizer, train, evaluation = accelerator.prepare(
        system,
        torch.optim.AdamW(system.parameters(), lr=1e-3),
        DataLoader(TensorDataset(data.train.inputs, data.train.targets), batch_size=32, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(data.evaluation.inputs, data.evaluation.targets), batch_size=250),
    )
    # [loop]
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for images, targets in train:
            loss = system.objective(model(images), targets)  # forward through what prepare returned
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        accelerator.print(f"epoch {epoch + 1}  loss {torch.stack(losses).mean():.5f}")
    # [scores]
    model.eval()
    gathered = []
    with torch.no_grad():
        for images, targets in evaluation:  # what was added to fill the last batch is dropped again
            gathered.append(accelerator.gather_for_metrics((model(images).logits, targets)))
    logits, targets = (torch.cat(parts) for parts in zip(*gathered, strict=True))
    scores = multilabel_scores(logits, targets, inputs="logits")
    # [end]
    accelerator.print(f"{accelerator.num_processes} processes, {len(targets)} scenes judged")
    accelerator.print("  ".join(f"{name} {100 * scores[name]:.2f}" for name in ("mAP", "OF1", "CF1")))
    accelerator.end_training()
    return scores


if __name__ == "__main__":
    main()
