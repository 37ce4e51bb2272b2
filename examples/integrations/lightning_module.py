"""A system in a LightningModule, its terms logged: ``python -m examples.integrations.lightning_module``.

``--checkpoint FILE`` is where training ends, and ``--resume FILE`` where it goes on. What an epoch or a step draws
follows from its number alone, so that a resumed run goes on bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from examples.data import digit_scenes
from examples.models import make_backbone
from mlcorr.metrics_torchmetrics import MultilabelScores
from mlcorr.systems.latent_context import LatentContext


# [module]
class MultiLabelModule(lightning.LightningModule):
    """Any system with ``objective`` and ``terms``: here one that takes the targets in training."""

    def __init__(self, system: nn.Module, num_labels: int, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.system, self.learning_rate = system, learning_rate
        self.scores = MultilabelScores(num_labels, inputs="logits")

    def on_train_batch_start(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Make what the step draws, dropout and hidden labels, follow from its number."""
        torch.manual_seed(self.global_step)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the objective, the sum of its terms."""
        images, targets = batch
        terms = self.system.terms(self.system(images, targets), targets)
        loss = torch.stack([*terms.values()]).sum()
        self.log_dict({"loss": loss, **terms}, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Keep logits and targets: mAP is no mean over batches."""
        images, targets = batch
        self.scores.update(self.system(images).logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all batches together."""
        self.log_dict(self.scores.compute())
        self.scores.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


# [end]
def main(arguments: Sequence[str] | None = None) -> tuple[MultiLabelModule, dict[str, float]]:
    """Train on scenes of digits, print the terms and the scores, and return the module and what it logged."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.lightning_module", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--checkpoint", help="file to write at the end")
    parser.add_argument("--resume", help="checkpoint to go on from")
    options = parser.parse_args(arguments)

    data = digit_scenes(num_scenes=(options.scenes, 0, 500), canvas=32)
    torch.manual_seed(0)
    backbone, channels = make_backbone(data.train.inputs)
    num_labels = len(data.label_names)
    system = LatentContext(backbone, channels, num_labels, dim=64, units=16, depth=2, heads=4, width=128)
    module = MultiLabelModule(system, num_labels)
    # [trainer]
    train = TensorDataset(data.train.inputs, data.train.targets)
    order = DistributedSampler(train, num_replicas=1, rank=0)  # Lightning tells it the epoch
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        DataLoader(train, batch_size=32, sampler=order),
        DataLoader(TensorDataset(data.evaluation.inputs, data.evaluation.targets), batch_size=250),
        ckpt_path=options.resume,
        weights_only=True,
    )
    # [done]
    if options.checkpoint:
        trainer.save_checkpoint(options.checkpoint)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print("  ".join(f"{name} {logged[name]:.4f}" for name in ("loss", "aux", "full", "partial")))
    print("  ".join(f"{name} {100 * logged[name]:.2f}" for name in ("mAP", "OF1", "CF1")))
    return module, logged


if __name__ == "__main__":
    main()
