"""The training loop of the systems: AdamW, one-cycle learning rate, an average of the weights, exact resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel

from examples.data import Dataset, Split
from examples.training import score
from examples.vision_transformers import fingerprint_of, is_frozen
from mlcorr.metrics import multilabel_scores

EMA_DECAY = 0.9997
REPORT = ("mAP", "OP", "OR", "OF1", "CP", "CR", "CF1")
FROZEN = ("backbone.", "module.backbone.")  # names in a state, of the model and of its average


# From the model, the data, the number of epochs done and that of all epochs.
BeforeEpoch = Callable[[nn.Module, Dataset, int, int], None]
Augment = Callable[[Tensor, torch.Generator], Tensor]  # such as an `examples.augment.Augmentation`


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and on what changed inputs to train."""

    epochs: int
    batch_size: int
    learning_rate: float  # the highest of the cycle
    weight_decay: float
    warm_up: float  # share of the updates in which the learning rate rises
    augmentation: Augment


def average_of_weights(averaged: Tensor, current: Tensor, updates: Tensor) -> Tensor:
    """Return the moving average after one more update.

    Its decay grows to `EMA_DECAY`. At that decay from the start, a run of 3000 updates would keep 40 % of the random
    first weights.
    """
    if not averaged.is_floating_point():
        return current  # a counter, such as batch normalisation's
    decay = ((1 + updates) / (10 + updates)).clamp(max=EMA_DECAY)
    return averaged.lerp(current, (1 - decay).to(averaged.dtype))


class Training:
    """A system in training: all that changes from update to update, so that a resumed run goes on bit for bit.

    A frozen backbone changes never and is not saved; it must be there, bit for bit, for the run to go on.

    Args:
        model: a system, with ``forward(inputs)`` that returns logits first, and ``objective(output, targets)``.
        data: on the model's device.
        recipe: decides, with ``seed``, everything but the first weights.
        seed: of the order of the samples, their augmentation, and dropout.
        amp: whether the forward pass runs in bfloat16 where autocast thinks it safe.
        compiled: whether the forward pass is compiled.
        before_epoch: what prepares the model for each epoch, from the number of epochs done alone.
        not_averaged: beginnings of names of buffers that the average of weights copies, such as those of a memory.
        takes_targets: whether the forward pass takes the targets too, in training.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        amp: bool = False,
        compiled: bool = False,
        before_epoch: BeforeEpoch | None = None,
        not_averaged: Sequence[str] = (),
        takes_targets: bool = False,
    ) -> None:
        self.model, self.data, self.recipe, self.amp = model, data, recipe, amp
        self.before_epoch, self.takes_targets = before_epoch, takes_targets
        self.not_averaged = [
            name for name, _ in model.named_buffers() if any(name.startswith(prefix) for prefix in not_averaged)
        ]
        backbone = getattr(model, "backbone", None)
        self.frozen = backbone if isinstance(backbone, nn.Module) and is_frozen(backbone) else None
        self.device = data.train.targets.device
        self.batch_size = min(recipe.batch_size, len(data.train))
        self.batches = len(data.train) // self.batch_size  # of one size; an epoch's last, odd samples are left out
        self.average = AveragedModel(model, avg_fn=average_of_weights, use_buffers=True)
        if compiled:
            model.compile(fullgraph=True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.schedule = OneCycleLR(
            self.optimizer,
            recipe.learning_rate,
            total_steps=max(recipe.epochs * self.batches, 2),  # a cycle of one update would divide by 0
            pct_start=recipe.warm_up,
        )
        self.draws = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.history: list[dict[str, Any]] = []

    def train_epoch(self, on_batch: Callable[[], None] = lambda: None) -> float:
        """Train for one epoch and return its mean loss."""
        train, total = self.data.train, 0.0
        if self.before_epoch is not None:  # the number of epochs done, which a resumed schedule knows
            self.before_epoch(self.model, self.data, self.schedule.last_epoch // self.batches, self.recipe.epochs)
        self.model.train()
        order = torch.randperm(len(train), generator=self.draws)[: self.batches * self.batch_size]
        for rows in order.to(self.device).split(self.batch_size):
            inputs, targets = self.recipe.augmentation(train.inputs[rows], self.draws), train.targets[rows]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                output = self.model(inputs, targets) if self.takes_targets else self.model(inputs)
                loss = self.model.objective(output, targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self._update_average()
            total = total + loss.detach()
            on_batch()
        return float(total) / self.batches

    def _update_average(self) -> None:
        self.average.update_parameters(self.model)
        for name in self.not_averaged:
            self.average.module.get_buffer(name).copy_(self.model.get_buffer(name))

    def run_epoch(self, on_batch: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Train for one epoch, and return and remember its loss and the scores after it."""
        loss = self.train_epoch(on_batch)
        self.history.append({"epoch": len(self.history) + 1, "loss": loss, **self.evaluate()})
        return self.history[-1]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return mAP, OF1 and CF1 of the raw and of the averaged weights on the evaluation samples."""
        evaluation = self.data.evaluation
        return {
            name: score(predict(model, evaluation), evaluation.targets)
            for name, model in (("raw", self.model), ("ema", self.average.module))
        }

    def report(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return all scores, of raw and averaged weights, each by two rules of what is predicted.

        "threshold" predicts what is more probable than not; "prevalence" each label as often as it stood in training,
        as the tables of some papers have it.
        """
        train, evaluation = self.data.train.targets, self.data.evaluation
        known = train >= 0
        prevalence = ((train == 1).sum(0) / known.sum(0).clamp(min=1)).double()
        report: dict[str, dict[str, dict[str, float]]] = {}
        for name, model in (("raw", self.model), ("ema", self.average.module)):
            logits = predict(model, evaluation)
            report[name] = {}
            for rule, more in (("threshold", {}), ("prevalence", {"prevalence": prevalence})):
                scores = multilabel_scores(logits, evaluation.targets, inputs="logits", rule=rule, **more)
                report[name][rule] = {score: float(scores[score]) for score in REPORT}
        return report

    def _split(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what of a state is frozen, and the rest."""
        frozen = [name for name in state if self.frozen is not None and name.startswith(FROZEN)]
        return {name: state[name] for name in frozen}, {name: state[name] for name in state if name not in frozen}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {
            "model": self._split(self.model.state_dict())[1],
            "average": self._split(self.average.state_dict())[1],
            "backbone": None if self.frozen is None else fingerprint_of(self.frozen),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "draws": self.draws.get_state(),
            "random": torch.get_rng_state(),
            "random on cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if self.frozen is not None and state["backbone"] != fingerprint_of(self.frozen):
            raise ValueError("the frozen backbone is not the one that the run began with")
        for name in ("model", "average"):
            part = getattr(self, name)
            part.load_state_dict({**self._split(part.state_dict())[0], **state[name]})
        for name in ("optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.draws.set_state(state["draws"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random on cuda"] is not None:
            torch.cuda.set_rng_state(state["random on cuda"], self.device)
        self.history = list(state["history"])


@torch.no_grad()
def predict(model: nn.Module, split: Split, *, batch_size: int = 250) -> Tensor:
    """Return the logits of all inputs, the model in evaluation mode."""
    model.eval()
    return torch.cat([model(batch).logits for batch in split.inputs.split(batch_size)]).float()
