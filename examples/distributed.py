"""Train SADCL over several processes, as one big batch: ``torchrun --nproc-per-node 2 -m examples.distributed``.

Every process has its own share of each batch. With ``group`` the losses compare the features of all of them, so that
their number changes neither value nor gradient (but for batch normalisation, whose statistics are each process's own).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from examples.data import digit_scenes
from examples.fit import predict
from examples.models import make_backbone
from examples.training import score
from mlcorr.systems.sadcl import SADCL


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on scenes of digits; the first process prints the loss of the whole batch and the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of one process (default: %(default)s)")
    options = parser.parse_args(arguments)

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    first = dist.get_rank() == 0

    data = digit_scenes(num_scenes=(options.scenes, 0, 300), canvas=32)
    torch.manual_seed(0)  # the same first weights everywhere; DistributedDataParallel would see to it too
    backbone, channels = make_backbone(data.train.inputs)
    model = SADCL(
        backbone, channels, len(data.label_names), proj_dim=32, proj_width=64, width=128, group=dist.group.WORLD
    ).to(device)
    trained = DistributedDataParallel(model)  # the memory banks are alike, so that broadcast_buffers does no harm
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    train = TensorDataset(data.train.inputs, data.train.targets)
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, options.batch_size, sampler=sampler)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        model.train()
        model.contrast = epoch >= options.epochs // 2
        if epoch == options.epochs // 2:
            model.initialize_prototypes((images.to(device), targets.to(device)) for images, targets in loader)
        for images, targets in loader:
            loss = model.objective(trained(images.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total = sum(parameter.double().sum() for parameter in model.parameters())
        line = f"rank {dist.get_rank()} epoch {epoch + 1} loss {loss.item():.6f} weights {total.item():.9f}\n"
        sys.stdout.write(line)  # in one piece, unlike print: processes share the output
        sys.stdout.flush()
    if first:
        scores = score(predict(model, data.evaluation.to(device)).cpu(), data.evaluation.targets)
        print("  ".join(f"{name} {100 * value:.2f}" for name, value in scores.items()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
