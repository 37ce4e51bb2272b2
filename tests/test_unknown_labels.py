"""−1 is an unknown label: every public loss is as if the entry were not there.

A case says how a loss takes data of shape (B, C) and, in other words than the loss's own, what is left of it once the
entries are taken out. A public loss without a case fails, as does an exception that is none.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import mlcorr
import mlcorr.functional as functional
import mlcorr.systems
from mlcorr import losses
from mlcorr.grouping import LabelGroups
from mlcorr.losses import partial
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.mdkd import MDKDObjective
from mlcorr.systems.ml_vpt import MLVPT, MLVPTOutput
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL, SADCLOutput
from tests.reference import norder_masks
from tests.systems.ml_vpt_cases import make_vit

C, D = 5, 3  # labels, and width of features

Leaves = Sequence[Tensor]  # differentiable tensors (B, C) or (B, C, D)
Loss = Callable[[Leaves, Tensor], Tensor]


class Case(NamedTuple):
    """A loss of ``leaves`` and target, and the same of the entries that are left."""

    loss: Loss
    removed: Loss
    leaves: tuple[tuple[int, ...], ...] = ((),)  # trailing dimensions


# ------------------------------------------------------------------------------------- how a loss is put together


def by_rows(loss: Loss, *, mean: bool = True, least: int = 1) -> Loss:
    """The loss of each row with ``least`` known entries, of its known entries alone: their mean, or their sum."""

    def removed(leaves: Leaves, target: Tensor) -> Tensor:
        rows = [row for row in range(len(target)) if (target[row] >= 0).sum() >= least]
        parts = []
        for row in rows:
            known = target[row] >= 0
            parts.append(loss([leaf[row : row + 1, known] for leaf in leaves], target[row : row + 1, known]))
        total = sum(parts, torch.zeros((), dtype=torch.float64))
        return total / max(len(rows), 1) if mean else total

    return removed


def flat(loss: Loss) -> Loss:
    """The loss of one row of all known entries."""

    def removed(leaves: Leaves, target: Tensor) -> Tensor:
        known = target >= 0
        if not known.any():
            return torch.zeros((), dtype=torch.float64)
        return loss([leaf[known].unsqueeze(0) for leaf in leaves], target[known].unsqueeze(0))

    return removed


def of_logits(loss: Callable[..., Tensor], removed: Callable[[Loss], Loss], **options: object) -> Case:
    """A loss of logits and target."""

    def whole(leaves: Leaves, target: Tensor) -> Tensor:
        return loss(leaves[0], target, **options)

    return Case(whole, removed(whole))


def of_pair(loss: Callable[..., Tensor], removed: Callable[[Loss], Loss], **options: object) -> Case:
    """A loss of student, teacher and mask."""

    def whole(leaves: Leaves, target: Tensor) -> Tensor:
        return loss(leaves[0], leaves[1], target >= 0, **options)

    return Case(whole, removed(whole), ((), ()))


def instances(leaves: Leaves, target: Tensor) -> Tensor:  # noqa: ARG001
    """The loss over pairs of labels of rows that are known throughout."""
    return functional.multi_order_dependency_loss(*leaves, orders=(2,), level="instance")


def batch_level(leaves: Leaves, target: Tensor) -> Tensor:
    student, teacher = (leaf.sigmoid() for leaf in leaves)
    return norder_masks.batch_loss(student, teacher, target >= 0, {2: 1.0}, 1.0, "mean_square")


def prototypes_by_label(z: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    """P2S, label by label, each of its known features alone."""
    total = torch.zeros((), dtype=torch.float64)
    for label in range(target.shape[1]):
        known = target[:, label] >= 0
        total = total + functional.prototype_contrastive_loss(
            z[known, label : label + 1],
            prototypes[label : label + 1],
            target[known, label : label + 1],
            normalize_by="sum",
        )
    return total / max(int((target == 1).sum()), 1)


def samples_that_are_left(z: Tensor, target: Tensor) -> Tensor:
    """S2S of the features of positives, a list of them."""
    image, label = (target == 1).nonzero(as_tuple=True)
    return functional.sample_contrastive_loss(z[image, label], label)


# ---------------------------------------------------------------------------------------------------------- cases


def sample_rows(leaves: Leaves, target: Tensor) -> Tensor:
    """S2S of a list of features, of label −1 where the entry is unknown."""
    labels = torch.arange(C).expand_as(target)
    return functional.sample_contrastive_loss(
        leaves[0].flatten(0, 1), torch.where(target >= 0, labels, -1).flatten(), num_labels=C
    )


def sample_rows_left(leaves: Leaves, target: Tensor) -> Tensor:
    image, label = (target >= 0).nonzero(as_tuple=True)
    return functional.sample_contrastive_loss(leaves[0][image, label], label)


def fixed(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def dual_contrastive() -> Case:
    loss = losses.DualContrastiveLoss(C, D).double().eval()
    return Case(
        lambda leaves, target: loss(leaves[0], target, prototypes=fixed(C, D)),
        lambda leaves, target: (
            100 * samples_that_are_left(leaves[0], target) + 50 * prototypes_by_label(leaves[0], fixed(C, D), target)
        ),
        ((D,),),
    )


def mdkd(*, level: str, mask: bool) -> Case:
    objective = MDKDObjective(orders=(2,), level=level)

    def loss(leaves: Leaves, target: Tensor) -> Tensor:
        return objective(*leaves, target, target >= 0 if mask else None)

    def of_labels(leaves: Leaves, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_loss(leaves[0], target) + 10 * functional.mld_loss(*leaves)

    def removed(leaves: Leaves, target: Tensor) -> Tensor:
        rows = by_rows(of_labels)(leaves, target) + by_rows(instances, least=2)(leaves, target)
        return rows + batch_level(leaves, target) if level == "both" else rows

    return Case(loss, removed, ((), ()))


def asymmetric(reduction: str, **options: float) -> Loss:
    def loss(leaves: Leaves, target: Tensor) -> Tensor:
        return functional.asymmetric_loss(leaves[0], target, reduction=reduction, **options)

    return loss


def oprl() -> Case:
    model = OPRL(nn.Identity(), 8, C, encoder_layers=0).double()
    one = by_rows(asymmetric("batchmean", gamma_neg=4.0, gamma_pos=0.0, clip=0.05))

    def output(leaves: Leaves) -> object:
        return model(torch.zeros(len(leaves[0]), 8, 2, 2, dtype=torch.float64))._replace(
            logits=leaves[0], aux_logits=leaves[1]
        )

    return Case(
        lambda leaves, target: model.objective(output(leaves), target),
        lambda leaves, target: one(leaves[:1], target) + one(leaves[1:], target),
        ((), ()),
    )


def sadcl() -> Case:
    model = SADCL(nn.Identity(), 8, C, proj_dim=D, width=8, proj_width=8).double().eval()

    def loss(leaves: Leaves, target: Tensor) -> Tensor:
        return model.objective(SADCLOutput(leaves[0], leaves[0], leaves[1]), target)

    def removed(leaves: Leaves, target: Tensor) -> Tensor:
        base = flat(lambda of, y: functional.binary_cross_entropy_loss(of[0], y, reduction="mean"))(leaves[:1], target)
        prototypes = model.projector(model.prototypes)
        samples = samples_that_are_left(leaves[1], target)
        return 1000 * base + 100 * samples + 50 * prototypes_by_label(leaves[1], prototypes, target)

    return Case(loss, removed, ((), (D,)))


def ml_vpt() -> Case:
    groups = LabelGroups(torch.zeros(C, dtype=torch.long), torch.zeros(C, dtype=torch.long), None, num_groups=1)
    model = MLVPT(make_vit(), groups).double()
    one = flat(asymmetric("mean", gamma_neg=2.0, gamma_pos=0.0, clip=0.0))
    return Case(
        lambda leaves, target: model.objective(MLVPTOutput(leaves[0], *leaves, leaves[0]), target),
        lambda leaves, target: 1000 * sum(one([leaf], target) for leaf in leaves),
        ((), (), (), ()),
    )


def latent_context() -> Case:
    model = LatentContext(nn.Identity(), 8, C, dim=8, units=2, depth=1, heads=2, width=8, alpha=1.5, beta=0.3).double()
    one = flat(asymmetric("mean", gamma_neg=4.0, gamma_pos=0.0, clip=0.05))

    def hidden(target: Tensor) -> Tensor:
        return (torch.arange(target.numel()).view_as(target) % 3 == 0) & (target >= 0)

    def loss(leaves: Leaves, target: Tensor) -> Tensor:
        output = model(torch.zeros(len(target), 8, 2, 2, dtype=torch.float64), target, hide=hidden(target))
        named = dict(zip(("aux_logits", "logits", "partial_logits"), leaves, strict=True))
        return model.objective(output._replace(**named), target)

    def removed(leaves: Leaves, target: Tensor) -> Tensor:
        inferred = torch.where(hidden(target), target, -1)
        aux, full, part = ([leaf] for leaf in leaves)
        return one(aux, target) + 1.5 * one(full, target) + 0.3 * one(part, inferred)

    return Case(loss, removed, ((), (), ()))


def partial_bce(loss: Callable[[Tensor, Tensor], Tensor]) -> Case:
    """A row's share p of known labels weighs −4.45·p + 5.45 times a sum that is divided by all C."""

    def of_row(leaves: Leaves, target: Tensor) -> Tensor:
        share = target.shape[1] / C
        return (5.45 - 4.45 * share) * share * loss(leaves[0], target)

    return Case(lambda leaves, target: loss(leaves[0], target), by_rows(of_row))


CASES: dict[str, Case] = {
    "asymmetric_loss": of_logits(functional.asymmetric_loss, lambda loss: by_rows(loss, mean=False)),
    "AsymmetricLoss": of_logits(losses.AsymmetricLoss(gamma_neg=2.0, reduction="batchmean"), by_rows),
    "binary_cross_entropy_loss": of_logits(functional.binary_cross_entropy_loss, by_rows),
    "BinaryCrossEntropyLoss": of_logits(losses.BinaryCrossEntropyLoss(reduction="mean"), flat),
    "mld_loss": of_pair(functional.mld_loss, by_rows),
    "MLDLoss": of_pair(losses.MLDLoss(temperature=2.0, reduction="mean"), flat),
    "multi_order_dependency_loss": Case(
        lambda leaves, target: functional.multi_order_dependency_loss(
            *leaves, target >= 0, orders=(2,), level="instance"
        ),
        by_rows(instances, least=2),
        ((), ()),
    ),
    "MultiOrderDependencyLoss": Case(
        lambda leaves, target: losses.MultiOrderDependencyLoss((2,), level="batch")(*leaves, target >= 0),
        batch_level,
        ((), ()),
    ),
    "sample_contrastive_loss": Case(sample_rows, sample_rows_left, ((D,),)),
    "prototype_contrastive_loss": Case(
        lambda leaves, target: functional.prototype_contrastive_loss(leaves[0], fixed(C, D), target),
        lambda leaves, target: prototypes_by_label(leaves[0], fixed(C, D), target),
        ((D,),),
    ),
    "DualContrastiveLoss": dual_contrastive(),
    "partial_bce_loss": partial_bce(functional.partial_bce_loss),
    "PartialBCELoss": partial_bce(losses.PartialBCELoss()),
    "MDKDObjective": mdkd(level="both", mask=True),
    "MDKDObjective, instance": mdkd(level="instance", mask=True),
    "OPRL": oprl(),
    "SADCL": sadcl(),
    "MLVPT": ml_vpt(),
    "LatentContext": latent_context(),
}

# What an unknown label is taken for, by definition; each has tests of its own in tests/losses/partial.
TREATMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "assume_negative_loss": functional.assume_negative_loss,
    "AssumeNegativeLoss": losses.AssumeNegativeLoss(),
    "weak_assume_negative_loss": functional.weak_assume_negative_loss,
    "WeakAssumeNegativeLoss": losses.WeakAssumeNegativeLoss(),
    "hill_loss": functional.hill_loss,
    "HillLoss": losses.HillLoss(),
    "splc_loss": functional.splc_loss,
    "SPLCLoss": losses.SPLCLoss(),
    "partial_asymmetric_loss": lambda x, y: functional.partial_asymmetric_loss(x, y, likelihood_topk=1),
    "PartialAsymmetricLoss": losses.PartialAsymmetricLoss(likelihood_topk=1),
    "large_loss": lambda x, y: functional.large_loss(x, y, share=0.1),
    "LargeLoss": lambda x, y: losses.LargeLoss(relative_share=0.1)(x, y, epoch=1),
}

NO_LOSS = {"correct_large_losses"}  # returns targets


def public_losses() -> set[str]:
    """The names of all public losses, and of the systems that have an objective."""
    names = {*losses.__all__, *partial.__all__, *(name for name in functional.__all__ if name.endswith("loss"))}
    names |= {name for name in mlcorr.__all__ if name.endswith("Loss")}
    for module in pkgutil.iter_modules(mlcorr.systems.__path__, "mlcorr.systems."):
        for name, value in vars(importlib.import_module(module.name)).items():
            own = isinstance(value, type) and value.__module__ == module.name and not name.startswith("_")
            if own and (hasattr(value, "objective") or name.endswith("Objective")):
                names.add(name)
    return names


def test_every_public_loss_has_a_case() -> None:
    assert public_losses() == {name.partition(",")[0] for name in CASES} | TREATMENTS.keys() | NO_LOSS


def draw(case: Case, rows: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(rows, C, *more, dtype=torch.float64, generator=generator)).requires_grad_()
        for more in case.leaves
    ]


@st.composite
def partly_known(draw_from: st.DrawFn) -> Tensor:
    entry = st.sampled_from([-1, 0, 1])
    row = st.lists(entry, min_size=C, max_size=C) | st.just([-1] * C) | st.just([1, 0, 1, 0, 0])
    return torch.tensor(draw_from(st.lists(row, min_size=1, max_size=4)))


def value_and_gradients(loss: Loss, leaves: Leaves, target: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    value = loss(leaves, target)
    value = value + 0 * sum(leaf.sum() for leaf in leaves)  # of a loss of nothing at all
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30, deadline=None)
@given(target=partly_known(), seed=st.integers(0, 9999))
def test_unknown_is_as_if_removed(name: str, target: Tensor, seed: int) -> None:
    case = CASES[name]
    leaves = draw(case, len(target), seed)
    value, gradients = value_and_gradients(case.loss, leaves, target)
    expected, expected_gradients = value_and_gradients(case.removed, leaves, target)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)
    for leaf, gradient, wanted in zip(leaves, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-11)
        assert (gradient[target < 0] == 0).all()
        assert leaf.shape == gradient.shape

    others = [torch.where(_like(target < 0, leaf), leaf.detach() - 7, leaf.detach()) for leaf in leaves]
    assert torch.equal(case.loss(others, target), value)  # what stands there is never looked at


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_known_costs_nothing(name: str, rows: int) -> None:
    case = CASES[name]
    leaves, target = draw(case, rows, 0), torch.full((rows, C), -1)
    value = case.loss(leaves, target)
    assert value.item() == 0
    if value.requires_grad:
        for gradient in torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True):
            assert (gradient == 0).all()


@pytest.mark.parametrize("name", ["AsymmetricLoss", "BinaryCrossEntropyLoss", "PartialBCELoss", "LatentContext"])
def test_nan_is_unknown_too(name: str) -> None:
    case, target = CASES[name], torch.tensor([[1, -1, 0, 1, -1], [-1] * C])
    leaves = draw(case, 2, 0)
    expected, gradients = value_and_gradients(case.loss, leaves, target)
    value, found = value_and_gradients(case.loss, leaves, target.double().masked_fill(target < 0, torch.nan))
    assert torch.equal(value, expected)
    for one, other in zip(found, gradients, strict=True):
        assert torch.equal(one, other)


def test_without_a_mask_the_teacher_fills_the_unknown() -> None:
    target = torch.tensor([[1, -1, 0, -1, -1], [-1] * C])
    leaves = draw(Case(instances, instances, ((), ())), 2, 0)
    objective = MDKDObjective(orders=(2,))
    terms = objective.terms(*leaves, target)
    (of_base,) = torch.autograd.grad(terms["base"], leaves[:1], retain_graph=True)
    assert (of_base[target < 0] == 0).all()
    (of_all,) = torch.autograd.grad(sum(terms.values()), leaves[:1])
    assert (of_all[target < 0] != 0).all()


@pytest.mark.parametrize("name", TREATMENTS)
def test_a_treatment_takes_the_unknown_for_something(name: str) -> None:
    """Else it belongs among the cases."""
    logits = torch.linspace(-2, 2, 2 * C, dtype=torch.float64).view(2, C).requires_grad_()
    target = torch.tensor([[1, -1, 0, -1, 0], [-1, 0, -1, 1, -1]])
    TREATMENTS[name](logits, target).backward()
    assert (logits.grad[target < 0] != 0).any()
    assert logits.grad.isfinite().all()
    nothing = torch.full_like(target, -1)
    logits.grad = None
    TREATMENTS[name](logits, nothing).backward()
    assert logits.grad.isfinite().all()


def _like(mask: Tensor, leaf: Tensor) -> Tensor:
    return mask.unsqueeze(-1) if leaf.dim() > mask.dim() else mask
