"""Distillation from logits that the teacher computed once: ``python -m examples.integrations.cached_teacher``.

The file holds the logits in the order of the training samples, as NumPy without pickle, and what they were computed
from: those of another teacher, or of other samples, are refused. ``--uncached`` asks the teacher anew for every batch.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from examples.data import digit_scenes
from examples.models import make_student, make_teacher
from examples.training import predict, score
from mlcorr import BinaryCrossEntropyLoss
from mlcorr.systems.mdkd import MDKDObjective

BATCH_SIZE = 50


# [cache]
def cached_logits(teacher: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    """Return the teacher's logits (N, C) of all inputs, from the file if it is there, else computed and written."""
    digest = hashlib.sha256(inputs.cpu().contiguous().numpy())
    for value in teacher.state_dict().values():
        digest.update(value.cpu().contiguous().numpy())
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        logits = predict(teacher, inputs, batch_size=BATCH_SIZE).cpu().numpy()
        with path.open("wb") as file:  # to a name without .npz, `savez` would add it
            np.savez(file, logits=logits, of=digest.hexdigest())
    with np.load(path, allow_pickle=False) as file:
        if str(file["of"]) != digest.hexdigest():
            raise ValueError(f"{path}: logits of another teacher or of other samples")
        return torch.from_numpy(file["logits"])


# [end]
def train_teacher(inputs: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """Return a teacher that learned from the targets, in evaluation mode for good."""
    teacher, loss = make_teacher(inputs, targets.shape[1]), BinaryCrossEntropyLoss()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(teacher(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return teacher.requires_grad_(False).eval()


def main(arguments: Sequence[str] | None = None) -> tuple[nn.Module, dict[str, float]]:
    """Distil on scenes of digits, print time and scores, and return the student and its scores."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.cached_teacher", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of teacher and student (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the order (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("teacher_logits.npz"), help="default: %(default)s")
    parser.add_argument("--uncached", action="store_true", help="neither read nor write the file")
    options = parser.parse_args(arguments)

    data = digit_scenes(num_scenes=(options.scenes, 0, 500))
    inputs, targets = data.train.inputs, data.train.targets
    torch.manual_seed(options.seed)
    teacher = train_teacher(inputs, targets, options.epochs)
    # [distil]
    started = time.perf_counter()
    logits = None if options.uncached else cached_logits(teacher, inputs, options.cache)
    student, objective = make_student(inputs, targets.shape[1]), MDKDObjective()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH_SIZE):
            opinion = teacher(inputs[rows]) if logits is None else logits[rows]
            optimizer.zero_grad()
            objective(student(inputs[rows]), opinion, targets[rows]).backward()
            optimizer.step()
    seconds = time.perf_counter() - started
    # [scores]
    scores = {}
    for name, model in (("teacher", teacher), ("student", student)):
        scores = score(predict(model, data.evaluation.inputs), data.evaluation.targets)
        print(name, "  ".join(f"{key} {100 * value:.2f}" for key, value in scores.items()))
    print(f"distilled in {seconds:.1f} s, teacher {'asked each time' if logits is None else 'asked once'}")
    return student, scores


if __name__ == "__main__":
    main()
