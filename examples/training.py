"""One training loop for teacher and student alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.data import Split
from mlcorr.metrics import multilabel_scores

SCORES = ("mAP", "OF1", "CF1")

# From the student's logits, the teacher's (None for a teacher's own training) and the targets to a number.
Objective = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 1e-4


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the logits of all inputs, the model in evaluation mode."""
    model.eval()
    return torch.cat([model(batch) for batch in inputs.split(batch_size)])


def score(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return mAP, OF1 and CF1, each in [0, 1]."""
    scores = multilabel_scores(logits, targets, inputs="logits")
    return {name: float(scores[name]) for name in SCORES}


def train(
    model: nn.Module,
    objective: Objective,
    data: Split,
    evaluation: Split,
    *,
    recipe: Recipe,
    seed: int,
    teacher_logits: Tensor | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return its scores on ``evaluation`` after every epoch.

    The last epoch's model is the result: nothing is chosen by these scores. ``seed`` decides the order of the samples.
    """
    order = torch.Generator().manual_seed(seed)
    steps = max(1, len(data) // recipe.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps)

    curve = []
    for _ in range(recipe.epochs):
        model.train()
        shuffled = torch.randperm(len(data), generator=order).to(data.targets.device)
        for rows in shuffled.tensor_split(steps):
            teacher = None if teacher_logits is None else teacher_logits[rows]
            loss = objective(model(data.inputs[rows]), teacher, data.targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        curve.append(score(predict(model, evaluation.inputs), evaluation.targets))
        if on_epoch is not None:
            on_epoch(curve[-1])
    return curve
