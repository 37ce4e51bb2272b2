"""The five systems, small, on images of which each rank has some; and one step of each, by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr.systems.mdkd import MDKDObjective
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL
from tests.systems.latent_context_cases import CHANNELS, latent_context
from tests.systems.ml_vpt_cases import LABELS, make_model

NAMES = ("sadcl", "mlvpt", "oprl", "latent_context", "mdkd")
STEPS = 3


class Student(nn.Module):
    """A classifier with the objective that distils into it."""

    def __init__(self, group: object) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, LABELS)
        self.distil = MDKDObjective(orders=(2, 3), group=group)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(2).amax(-1).tanh())


def build(name: str, group: dist.ProcessGroup | None) -> nn.Module:
    """Return the same float64 model each time."""
    torch.manual_seed(0)
    backbone = nn.Conv2d(3, 8, 8, 8)
    if name == "sadcl":
        sizes = {"proj_dim": 6, "proj_width": 10, "width": 12, "heads": 2, "dropout": 0.0}
        weights = {"classification_weight": 10.0, "sample_weight": 1.0, "prototype_weight": 0.5}
        model = SADCL(backbone, 8, LABELS, bank_size=4, bank_threshold=0.4, group=group, **sizes, **weights)
    elif name == "mlvpt":
        model = make_model(group=group)
    elif name == "oprl":
        sizes = {"encoder_heads": 2, "encoder_width": 12, "encoder_dropout": 0.0}
        model = OPRL(backbone, 8, LABELS, cooccurrence=torch.rand(LABELS, LABELS), group=group, **sizes)
    elif name == "latent_context":
        model = latent_context(nn.Conv2d(3, CHANNELS, 8, 8), LABELS, beta=0.4, group=group)
    else:
        model = Student(group)
    return model.double()


def parts(name: str, model: nn.Module) -> list[nn.Module]:
    """Return what the documentation says to shard by itself, before the whole."""
    if name == "sadcl":
        return [model.backbone, *model.label_queries.encoder, *model.label_queries.decoder, model.projector]
    if name == "mlvpt":
        return list(model.backbone.blocks)
    if name == "oprl":
        return [model.backbone, *model.encoder, model.refiner]
    if name == "latent_context":
        return [model.backbone, *model.encoder.layers]
    return [model.features]


def share(sizes: list[int], rank: int | None) -> slice:
    """Return which rows a rank has; all of them, where there are no ranks."""
    return slice(None) if rank is None else slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def dtype_of(model: nn.Module, x: Tensor) -> torch.dtype:
    return next(model.parameters()).dtype if x.is_floating_point() else x.dtype


def batch(rows: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, targets, which of them are hidden, and a teacher's logits."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(rows, 3, 16, 16, dtype=torch.float64, generator=generator)
    target = torch.randint(-1, 2, (rows, LABELS), generator=generator)
    hide = torch.rand(rows, LABELS, generator=generator) < 0.3
    return images, target, hide, 3 * torch.randn(rows, LABELS, dtype=torch.float64, generator=generator)


def loss_of(name: str, model: nn.Module, rows: int, step: int, own: slice) -> Tensor:
    """Return the objective of the whole batch, of which a rank has its own rows."""
    images, target, hide, teacher = (x[own].to(dtype_of(model, x)) for x in batch(rows, step))
    if name == "latent_context":
        return model.objective(model(images, target, hide=hide), target)
    if name == "mdkd":
        return model.distil(model(images), teacher, target)
    return model.objective(model(images), target)


def train(
    name: str, model: nn.Module, sizes: list[int], rank: int | None, *, first: int = 0, steps: int = STEPS,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[Tensor]:  # fmt: skip
    """Train for some steps on a rank's rows, or on all of them, and return the losses."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer or torch.optim.SGD(trained, lr=1e-2)
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of(name, model, sum(sizes), step, share(sizes, rank))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
