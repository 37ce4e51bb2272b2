"""The smallest whole program, OPRL in a plain loop: ``python -m examples.integrations.bare_loop``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from examples.data import digit_scenes
from examples.models import make_backbone
from mlcorr import LabelCooccurrence
from mlcorr.metrics import multilabel_scores
from mlcorr.systems.oprl import OPRL


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train on scenes of digits, print the loss of every epoch and the scores, and return the scores."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.bare_loop", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    options = parser.parse_args(arguments)

    data = digit_scenes(num_scenes=(options.scenes, 0, 500), canvas=32)
    images, targets = data.train.inputs, data.train.targets
    torch.manual_seed(0)

    # [model]
    backbone, channels = make_backbone(images)  # any module that yields a map (B, D, H, W) or tokens (B, N, D)
    counts = LabelCooccurrence(num_labels=targets.shape[1])
    counts.update(targets)
    model = OPRL(backbone, channels, targets.shape[1], encoder_width=128, cooccurrence=counts.conditional())
    # [loop]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(images)).split(32):
            loss = model.objective(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}  loss {torch.stack(losses).mean():.4f}")
    # [scores]
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch).logits for batch in data.evaluation.inputs.split(250)])
    scores = multilabel_scores(logits, data.evaluation.targets, inputs="logits")
    # [end]
    print("  ".join(f"{name} {100 * scores[name]:.2f}" for name in ("mAP", "OF1", "CF1")))
    return scores


if __name__ == "__main__":
    main()
