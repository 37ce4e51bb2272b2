"""Everything public that communicates: a call each, one with bad input, and the state that a failure must not touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr import DualContrastiveLoss, LabelCooccurrence, MultiOrderDependencyLoss, SpectralLabelGrouping
from mlcorr.metrics_torchmetrics import MultilabelScores
from tests.distributed.loss_cases import CASES
from tests.distributed.systems import batch, build, loss_of
from tests.systems.ml_vpt_cases import LABELS

ROWS, DIM = 5, 4
Group = dist.ProcessGroup | None


class Call(NamedTuple):
    """What a rank does with others, what is wrong input for it, and a copy of the state before and after."""

    good: Callable[[], object]
    bad: Callable[[], object]
    state: Callable[[], Any]


def state_of(module: nn.Module) -> Callable[[], dict[str, Tensor]]:
    return lambda: {
        **{name: value.clone() for name, value in module.state_dict().items()},
        **{f"{name}: training": torch.tensor(part.training) for name, part in module.named_modules()},
    }


def dependency(group: Group) -> Call:
    loss = MultiOrderDependencyLoss((2, 3), group=group)
    student, teacher = (torch.randn(ROWS, LABELS, requires_grad=True) for _ in range(2))
    return Call(lambda: loss(student, teacher), lambda: loss(student, teacher[1:]), state_of(loss))


def loss(name: str) -> Callable[[Group], Call]:
    def make(group: Group) -> Call:
        case = CASES[name]
        computed, arguments = case.build(group), case.draw(ROWS)
        first = next(iter(arguments))
        bad = {**arguments, first: arguments[first][1:]}
        state = state_of(computed) if isinstance(computed, nn.Module) else dict
        return Call(lambda: computed(**arguments), lambda: computed(**bad), state)

    return make


def contrast_of(group: Group, kind: str) -> tuple[DualContrastiveLoss, tuple[Tensor, Tensor]]:
    """Return a loss with something in its bank, and features with targets."""
    options = {"bank": kind, "bank_size": 3}
    alone, loss = DualContrastiveLoss(LABELS, DIM, **options), DualContrastiveLoss(LABELS, DIM, **options, group=group)
    data = torch.randn(ROWS, LABELS, DIM, requires_grad=True), torch.randint(-1, 2, (ROWS, LABELS))
    alone(*data)
    loss.load_state_dict(alone.state_dict())
    assert loss.steps == 1
    return loss, data


def contrast(group: Group, kind: str = "per_label") -> Call:
    loss, (features, targets) = contrast_of(group, kind)
    return Call(lambda: loss(features, targets), lambda: loss(features, targets[1:]), state_of(loss))


def contrast_backward(group: Group) -> Call:
    """The forward pass goes well, and writes the bank."""
    loss, (features, targets) = contrast_of(group, "per_label")
    value = loss(features, targets)
    assert loss.steps == 2
    return Call(value.backward, lambda: loss(features, targets[1:]), state_of(loss))


def system(name: str) -> Callable[[Group], Call]:
    def make(group: Group) -> Call:
        model = build(name, group)
        own = slice(0, ROWS)
        if name == "sadcl":
            alone = build(name, None)
            loss_of(name, alone, ROWS, 0, own)
            model.load_state_dict(alone.state_dict())
            assert model.contrastive_loss.steps == 1
        images, target, hide, teacher = batch(ROWS, 0)

        def bad() -> object:
            if name == "latent_context":
                return model.objective(model(images, target, hide=hide), target[1:])
            if name == "mdkd":
                return model.distil(model(images), teacher, target[1:])
            return model.objective(model(images), target[1:])

        return Call(lambda: loss_of(name, model, ROWS, 0, own), bad, state_of(model))

    return make


def prototypes(group: Group) -> Call:
    model = build("sadcl", group)
    images, target, *_ = batch(ROWS, 0)

    def good() -> None:
        model.initialize_prototypes([(images, target), (images[:0], target[:0])], threshold=0.0)

    def bad() -> None:
        model.initialize_prototypes([(images, target), (images, target[1:])])

    return Call(good, bad, state_of(model))


def counts(storage: str) -> Callable[[Group], Call]:
    def make(group: Group) -> Call:
        own = LabelCooccurrence(LABELS, storage=storage)
        own.update(torch.randint(-1, 2, (ROWS, LABELS)))

        def bad() -> None:
            own.update(torch.zeros(ROWS, LABELS + 1))
            own.reduce(group)

        return Call(lambda: own.reduce(group), bad, state_of(own))

    return make


def grouping(method: str) -> Callable[[Group], Call]:
    def make(group: Group) -> Call:
        own = SpectralLabelGrouping(LABELS, 2)
        own.update(torch.randint(0, 2, (ROWS, LABELS)))
        own.fit()

        def bad() -> None:
            own.update(torch.zeros(ROWS, LABELS + 1))
            own.fit(group)

        return Call(lambda: getattr(own, method)(group), bad, state_of(own))

    return make


def metric(method: str) -> Callable[[Group], Call]:
    def make(group: Group) -> Call:
        own = MultilabelScores(LABELS, process_group=group, dist_sync_on_step=True)
        scores, targets = torch.rand(ROWS, LABELS), torch.randint(-1, 2, (ROWS, LABELS))
        own.update(scores, targets)
        own.update(scores, targets)

        def bad() -> None:
            own(scores, targets[1:])
            own.compute()

        def state() -> object:
            flags = own._is_synced, own._should_unsync, own._to_sync, own._update_count
            return [x.clone() for x in own.scores], [x.clone() for x in own.targets], flags

        return Call(own.compute if method == "compute" else lambda: own(scores, targets), bad, state)

    return make


CALLS: dict[str, Callable[[Group], Call]] = {
    "MultiOrderDependencyLoss": dependency,
    "AsymmetricLoss": loss("AsymmetricLoss 2 mean None"),
    "MLDLoss": loss("MLDLoss batchmean"),
    "large_loss": loss("large_loss 1 sum None"),
    "PartialAsymmetricLoss": loss("PartialAsymmetricLoss 2 sum None"),
    "sample_contrastive_loss": loss("sample_contrastive_loss {}"),
    "prototype_contrastive_loss": loss("prototype_contrastive_loss positives"),
    "DualContrastiveLoss": contrast,
    "DualContrastiveLoss, one ring": lambda group: contrast(group, "global"),
    "SADCL.objective": system("sadcl"),
    "SADCL.initialize_prototypes": prototypes,
    "MLVPT.objective": system("mlvpt"),
    "LatentContext.objective": system("latent_context"),
    "MDKDObjective": system("mdkd"),
    "OPRL.objective": system("oprl"),
    "LabelCooccurrence.reduce, dense": counts("dense"),
    "LabelCooccurrence.reduce, sparse": counts("sparse"),
    "SpectralLabelGrouping.fit": grouping("fit"),
    "SpectralLabelGrouping.reduce": grouping("reduce"),
    "MultilabelScores.compute": metric("compute"),
    "MultilabelScores.forward": metric("forward"),
}
