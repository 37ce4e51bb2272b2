"""The Hugging Face ``Trainer``: a loss of ours for its model, or a system of ours as its model.

``python -m examples.integrations.hf_trainer --what loss`` gives a ``ViTForImageClassification`` the asymmetric loss,
and ``--what system`` trains OPRL over a ``ViTModel``. Both are small, built from a configuration without a download.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTModel

from examples.data import Split, digit_scenes
from mlcorr import AsymmetricLoss
from mlcorr.metrics import multilabel_scores
from mlcorr.systems.backbones import from_transformers
from mlcorr.systems.oprl import OPRL


class Scenes(Dataset[dict[str, Tensor]]):
    """Samples as the Trainer takes them: a dictionary of the arguments of ``forward``."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a scene and its labels."""
        return {"pixel_values": self.split.inputs[index], "labels": self.split.targets[index]}


# [loss]
asymmetric = AsymmetricLoss(gamma_pos=0.0, reduction="sum")


def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the sum over labels, the mean over rows; exact when the Trainer accumulates gradients, too.

    What it counts as items is every entry of ``labels``, in all the batches that it accumulates.
    """
    items = labels.numel() if num_items_in_batch is None else num_items_in_batch
    return asymmetric(outputs.logits, labels) * labels.shape[1] / items


# [system]
class ForTrainer(nn.Module):
    """A system that returns a dictionary: of a tuple, the Trainer drops the first element in evaluation."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits, and the loss where there are labels."""
        output = self.system(pixel_values)
        if labels is None:
            return {"logits": output.logits}
        return {"loss": self.system.objective(output, labels), "logits": output.logits}


# [metrics]
def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the multi-label scores of all logits together."""
    return multilabel_scores(prediction.predictions, prediction.label_ids, inputs="logits")


# [end]
def main(arguments: Sequence[str] | None = None) -> tuple[Trainer, dict[str, float]]:
    """Train on scenes of digits, print loss and scores, and return the trainer and what its evaluation found."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.hf_trainer", description=__doc__)
    parser.add_argument("--what", choices=("loss", "system"), default="system", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch of 32 (default: %(default)s)")
    options = parser.parse_args(arguments)

    data = digit_scenes(num_scenes=(options.scenes, 0, 500), canvas=32)
    torch.manual_seed(0)
    # [models]
    config = ViTConfig(
        image_size=32,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=len(data.label_names),
        problem_type="multi_label_classification",
    )
    if options.what == "loss":
        model, loss = ViTForImageClassification(config), compute_loss
    else:
        backbone = from_transformers(ViTModel(config, add_pooling_layer=False))
        model, loss = ForTrainer(OPRL(backbone, backbone.out_channels, config.num_labels, encoder_width=128)), None
    # [trainer]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=32 // options.accumulate,
                gradient_accumulation_steps=options.accumulate,
                learning_rate=1e-3,
                logging_strategy="epoch",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=Scenes(data.train),
            eval_dataset=Scenes(data.evaluation),
            compute_metrics=compute_metrics,
            compute_loss_func=loss,
        )
        trainer.train()
        scores = trainer.evaluate()
    # [done]
    print(f"loss {scores['eval_loss']:.4f}")
    print("  ".join(f"{name} {100 * scores[f'eval_{name}']:.2f}" for name in ("mAP", "OF1", "CF1")))
    return trainer, scores


if __name__ == "__main__":
    main()
