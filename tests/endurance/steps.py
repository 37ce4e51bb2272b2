"""Ten thousand updates with a memory bank, counts of labels and an average of weights, on scenes of digits.

    python -m tests.endurance.steps --steps 10000 --dtype bfloat16 --output benchmarks/results/endurance-bfloat16.json

Memory must not grow, the counts must be those of the targets seen, and everything must stay finite.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from examples.data import digit_scenes
from examples.models import make_backbone
from mlcorr import LabelCooccurrence
from mlcorr.systems.sadcl import SADCL

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 16


def resident() -> float:
    """Return the MiB of memory that the process holds; 0 where the system does not tell."""
    table = Path("/proc/self/statm")
    return int(table.read_text().split()[1]) * 4096 / 2**20 if table.exists() else 0.0


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def run(steps: int, dtype: torch.dtype, *, looks: int = 20) -> dict[str, Any]:
    """Train and look at memory and numbers ``looks`` times on the way."""
    torch.manual_seed(0)
    data = digit_scenes(num_scenes=(256, 0, 20), canvas=24)
    inputs, targets = data.train.inputs.to(dtype), data.train.targets
    backbone, channels = make_backbone(inputs)
    labels = targets.shape[1]
    model = SADCL(backbone, channels, labels, proj_dim=16, proj_width=32, width=32, bank_size=16, bank_threshold=0.5)
    model = model.to(dtype)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=False)
    counts, draws = LabelCooccurrence(labels), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = torch.zeros(len(targets), dtype=torch.long)  # how often each scene came
    history = []
    for step in range(1, steps + 1):
        rows = torch.randint(len(targets), (BATCH,), generator=draws)
        target = targets[rows].masked_fill(torch.rand(BATCH, labels, generator=draws) < 0.1, -1)
        known = targets[rows]
        counts.update(known)
        seen += torch.bincount(rows, minlength=len(targets))
        loss = model.objective(model(inputs[rows]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        if step % max(steps // looks, 1) == 0:
            tensors = [*model.state_dict().values(), *average.state_dict().values(), loss.detach()]
            finite = all(bool(each.isfinite().all()) for each in tensors if each.is_floating_point())
            history.append(
                {"step": step, "loss": loss.item(), "finite": finite, "MiB": resident(), "tensors": live_tensors()}
            )
    present = (targets == 1).long()
    exact = (present * seen[:, None]).T @ present
    found = counts.counts()
    return {
        "steps": steps,
        "dtype": str(dtype).removeprefix("torch."),
        "counts_are_exact": bool(torch.equal(found.together, exact)) and int(found.rows) == steps * BATCH,
        "bank_steps": int(model.contrastive_loss.steps),
        "bank_features": model.contrastive_loss.state_dict()["bank.count"].sum().item(),
        "history": history,
        "torch": torch.__version__,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="file for the result")
    options = parser.parse_args()
    text = json.dumps(run(options.steps, DTYPES[options.dtype]), indent=1)
    sys.stdout.write(text + "\n")
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
