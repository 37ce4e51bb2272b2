"""Every public loss over real processes: on every rank the value of the whole batch, after DDP its gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mlcorr
from mlcorr import functional, losses
from tests.distributed.loss_cases import CASES, LABELS, Arguments, Case, Group, entries, normal
from tests.ranks import run_ranks

SPLITS = {1: [[5], [0]], 2: [[4, 4], [3, 1], [0, 5]], 3: [[2, 5, 1], [3, 0, 2], [0, 4, 0]]}


class Trained(nn.Module):
    """A layer and a loss in one module, so that the loss's buffers are among those that are broadcast."""

    def __init__(self, case: Case, group: Group) -> None:
        super().__init__()
        torch.manual_seed(0)
        loss = case.build(group)
        # A copy, as an average of weights makes one, has the same group.
        self.loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
        width = next(iter(case.draw(1).values())).shape[-1]
        self.linear = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, arguments: Arguments) -> Tensor:
        (name, features), *others = arguments.items()
        return self.loss(**{name: self.linear(features)}, **dict(others))


def part(arguments: Arguments, case: Case, sizes: list[int], rank: int) -> Arguments:
    """Return what a rank has of the arguments; some losses have several vectors a row."""

    def own(value: Tensor) -> Tensor:
        several = value.shape[0] // max(sum(sizes), 1)
        return value.split([several * size for size in sizes])[rank]

    return {
        name: own(value) if isinstance(value, Tensor) and name not in case.constant else value
        for name, value in arguments.items()
    }


def step(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    """Return the value, and the gradients of the first input and of the parameters."""
    name = next(iter(arguments))
    features = arguments[name].detach().clone().requires_grad_()
    value = model({**arguments, name: features})
    value.backward()
    return [value.detach(), features.grad, *(p.grad for p in model.parameters())]


def work(rank: int, ranks: int) -> list[list[Tensor]]:
    found = []
    for sizes in SPLITS[ranks]:
        for case in CASES.values():
            arguments = part(case.draw(sum(sizes)), case, sizes, rank)
            for broadcast_buffers in (True, False):
                model = DistributedDataParallel(Trained(case, dist.group.WORLD), broadcast_buffers=broadcast_buffers)
                found.append(step(model, arguments))
    return found


@pytest.mark.parametrize("ranks", SPLITS)
def test_ranks_are_one_big_batch(ranks: int) -> None:
    results = run_ranks(work, ranks, ranks)
    index = 0
    for sizes in SPLITS[ranks]:
        for name, case in CASES.items():
            arguments = case.draw(sum(sizes))
            value, of_input, *of_parameters = step(Trained(case, None), arguments)
            for _ in ("broadcast", "not"):
                for rank, result in enumerate(results):
                    found, of_own, *of_own_parameters = result[index]
                    expected = part({"x": of_input}, case, sizes, rank)["x"] * ranks
                    for a, b in zip(
                        [found, of_own, *of_own_parameters], [value, expected, *of_parameters], strict=True
                    ):
                        torch.testing.assert_close(
                            a, b, rtol=1e-10, atol=1e-12, msg=lambda text, n=name, s=sizes: f"{n} {s}: {text}"
                        )
                index += 1


def test_every_public_loss_is_a_case() -> None:
    named = {name.split(" ")[0].rstrip(",") for name in CASES}
    assert set(losses.__all__) - named == {"correct_large_losses"}  # which is no loss; below
    assert set(mlcorr.losses.__all__) & set(functional.__all__) - named == {"correct_large_losses"}


# --- what each rank keeps of its own ---

ENTRIES: dict[str, Any] = {
    "AsymmetricLoss": losses.AsymmetricLoss,
    "PartialAsymmetricLoss": lambda **more: losses.PartialAsymmetricLoss(likelihood_topk=1, **more),
    "rejection": lambda **more: losses.LargeLoss(relative_share=0.3, **more),
    "correction": lambda **more: losses.LargeLoss(relative_share=0.3, modification="temporary_correction", **more),
}


def tied(rows: int) -> Tensor:
    """Logits of few values, so that many are equal."""
    return normal(rows, LABELS).round()


def own_entries(rank: int, ranks: int) -> list[list[Tensor]]:
    found = []
    for sizes in SPLITS[ranks]:
        target = entries(sum(sizes))["target"].split(sizes)[rank]
        logits = tied(sum(sizes)).split(sizes)[rank]
        corrected = functional.correct_large_losses(logits, target, share=0.3, group=dist.group.WORLD)
        made = [make(reduction="none", group=dist.group.WORLD) for make in ENTRIES.values()]
        more = [(1,) if isinstance(loss, losses.LargeLoss) else () for loss in made]
        found.append([corrected, *(loss(logits, target, *also) for loss, also in zip(made, more, strict=True))])
    return found


@pytest.mark.parametrize("ranks", SPLITS)
def test_entries_are_chosen_from_those_of_all_ranks(ranks: int) -> None:
    """Of equal ones the first come first, in the order of ranks."""
    results = run_ranks(own_entries, ranks, ranks)
    for index, sizes in enumerate(SPLITS[ranks]):
        target, logits = entries(sum(sizes))["target"], tied(sum(sizes))
        expected = [functional.correct_large_losses(logits, target, share=0.3)]
        for make in ENTRIES.values():
            loss = make(reduction="none")
            expected.append(loss(logits, target, *((1,) if isinstance(loss, losses.LargeLoss) else ())))
        for number, whole in enumerate(expected):
            together = torch.cat([result[index][number] for result in results])
            torch.testing.assert_close(together, whole, rtol=0, atol=0)
    chosen = functional.correct_large_losses(tied(8), entries(8)["target"], share=0.3) != entries(8)["target"]
    assert 0 < chosen.sum() < (entries(8)["target"] == -1).sum()  # else the choice would be none


@pytest.mark.parametrize("name", sorted(set(losses.__all__) - {"DualContrastiveLoss", "MultiOrderDependencyLoss"}))
def test_group_is_checked(name: str) -> None:
    needed = {"share": 0.1} if "large_loss" in name else {"relative_share": 0.1} if name == "LargeLoss" else {}
    arguments = {
        "sample_contrastive_loss": (normal(3, 2), torch.arange(3)),
        "prototype_contrastive_loss": (normal(3, LABELS, 2), normal(LABELS, 2), entries(3)["target"]),
    }.get(name, (normal(3, LABELS), normal(3, LABELS) if name == "mld_loss" else entries(3)["target"]))
    loss = getattr(losses, name)
    with pytest.raises(TypeError, match=r"^group: .*got str"):
        loss(*(() if isinstance(loss, type) else arguments), **needed, group="world")
