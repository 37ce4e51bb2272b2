"""MultiOrderDependencyLoss over real processes: the value and the gradient of one big batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mlcorr import MultiOrderDependencyLoss
from mlcorr.systems.mdkd import MDKDObjective
from tests.ranks import run_ranks

LABELS = 6
CASES = [
    {"level": level, "delta": delta, "reduction": reduction, "masked": masked, "batch_dependency": dependency}
    for level, delta, reduction, dependency in (
        ("both", 1.0, "mean", "mean_square"),
        ("both", 0.2, "mean", "mean_square"),
        ("both", 2.0, "mean", "square_of_sums"),
        ("instance", 1.0, "sum", "mean_square"),
        ("instance", 1.0, "batchmean", "mean_square"),
        ("batch", 0.2, "mean", "square_of_sums"),
    )
    for masked in (False, True)
]


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    features, teacher = (torch.randn(rows, LABELS, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.rand(rows, LABELS, generator=generator) < 0.7
    mask[0] = False
    return features, teacher, mask


def model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(LABELS, LABELS, dtype=torch.float64)


def build(case: dict[str, object], group: object) -> MultiOrderDependencyLoss:
    # A copy, as an average of weights makes one, shares the group.
    return copy.deepcopy(MultiOrderDependencyLoss(**{k: v for k, v in case.items() if k != "masked"}, group=group))


def work(rank: int, sizes: list[int]) -> list[object]:
    first = sum(sizes[:rank])
    own = slice(first, first + sizes[rank])
    features, teacher, mask = batch(sum(sizes))
    results = []
    for case in CASES:
        student = DistributedDataParallel(model())
        loss = build(case, dist.group.WORLD)
        value = loss(student(features[own]), teacher[own], mask[own] if case["masked"] else None)
        value.backward()
        results.append((value.detach(), [p.grad for p in student.parameters()]))
    return results


@pytest.mark.parametrize("sizes", [[5], [4, 4], [3, 1], [2, 5, 1], [3, 0, 2]])
def test_every_rank_returns_the_loss_of_the_whole_batch(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    features, teacher, mask = batch(sum(sizes))
    for index, case in enumerate(CASES):
        student = model()
        expected = build(case, None)(student(features), teacher, mask if case["masked"] else None)
        expected.backward()
        for results in ranks:
            value, gradients = results[index]
            torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-14)
            for actual, parameter in zip(gradients, student.parameters(), strict=True):
                torch.testing.assert_close(actual, parameter.grad, rtol=1e-10, atol=1e-13)


DRAWN: dict[str, Any] = {"orders": (3, 5), "level": "batch", "delta": 0.1, "samples": 7}


def draw(rank: int, sizes: list[int]) -> list[torch.Tensor]:
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    features, teacher, _ = batch(sum(sizes))
    student = DistributedDataParallel(model())
    loss = build(DRAWN, dist.group.WORLD)
    value = loss(student(features[own]), teacher[own], generator=torch.Generator().manual_seed(rank))
    value.backward()
    return [value.detach(), *(p.grad for p in student.parameters())]


@pytest.mark.parametrize("sizes", [[3, 1], [3, 0, 2]])
def test_ranks_that_draw_other_sequences_return_the_mean_of_their_estimates(sizes: list[int]) -> None:
    student = model()
    features, teacher, _ = batch(sum(sizes))
    estimates = [
        build(DRAWN, None)(student(features), teacher, generator=torch.Generator().manual_seed(rank))
        for rank in range(len(sizes))
    ]
    expected = sum(estimates) / len(sizes)
    expected.backward()
    assert estimates[0] != estimates[1]
    for found in run_ranks(draw, len(sizes), sizes):
        wanted = [expected.detach(), *(p.grad for p in student.parameters())]
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_group_is_checked(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"^reduction: .*group"):
            MultiOrderDependencyLoss(level="instance", reduction="none", group=dist.group.WORLD)
        features, teacher, _ = batch(4)
        target = (teacher > 0).long()
        alone = copy.deepcopy(MDKDObjective(group=dist.group.WORLD))(features, teacher, target)
        torch.testing.assert_close(alone, MDKDObjective()(features, teacher, target), rtol=1e-12, atol=0)
    finally:
        dist.destroy_process_group()
