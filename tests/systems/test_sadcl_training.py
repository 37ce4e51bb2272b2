"""SADCL in training: it learns, the contrast parts labels, and two processes do what one does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlcorr.metrics import multilabel_scores
from mlcorr.systems.sadcl import SADCL
from tests.ranks import run_ranks
from tests.systems.planted import planted

CHANNELS, LABELS = 16, 5


def test_it_learns_64_images_by_heart_in_two_stages() -> None:
    images, target = planted(64, LABELS)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, CHANNELS, 4, stride=4), nn.ReLU())
    model = SADCL(backbone, CHANNELS, LABELS, proj_dim=16, proj_width=32, width=32, bank=None)

    def evaluate() -> tuple[float, float, float]:
        """Return mAP, and the mean cosine of embeddings of one label, and of different ones."""
        model.eval()
        with torch.no_grad():
            output = model(images)
        embeddings = nn.functional.normalize(output.embeddings[target == 1], dim=-1)
        label = target.nonzero()[:, 1]
        cosine, same = embeddings @ embeddings.T, label == label.unsqueeze(1)
        score = multilabel_scores(output.logits, target, inputs="logits")["mAP"]
        return score, float(cosine[same].mean()), float(cosine[~same].mean())

    def train(steps: int) -> tuple[Tensor, Tensor]:
        """Train, and return the objective of the first and of the last step."""
        model.train()
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            losses.append(model.objective(model(images), target))
            losses[-1].backward()
            optimizer.step()
        return losses[0], losses[-1]

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    assert evaluate()[0] < 0.7
    model.contrast = False
    first, last = train(150)
    assert last < 0.5 * first
    model.initialize_prototypes(zip(images.split(10), target.split(10), strict=True), threshold=0.5)
    score, same, different = evaluate()
    assert score > 0.9
    assert same - different < 0.7
    model.contrast = True
    first, last = train(100)
    assert last < 0.9 * first  # S2S has a floor of about 310: log of the number of positives
    score, same, different = evaluate()
    assert score > 0.99
    assert same > 0.95
    assert different < 0


# ---------------------------------------------------------------------------------------------------- processes

CASES = [
    {"contrast": contrast, "bank": bank, "find": find}
    for contrast, bank in ((True, "per_label"), (True, None), (False, "per_label"))
    for find in (False, True)
]
STEPS = 3


class Pair(nn.Module):
    """A backbone with a part that nothing uses, as a pooler."""

    def __init__(self, with_unused: bool) -> None:
        super().__init__()
        self.used = nn.Linear(8, CHANNELS, dtype=torch.float64)
        if with_unused:
            self.unused = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.used(tokens)


def build(case: dict[str, object], group: object) -> SADCL:
    torch.manual_seed(0)
    options = {"proj_dim": 6, "proj_width": 10, "width": 12, "dropout": 0.0, "bank_threshold": 0.4, "bank_size": 4}
    backbone = Pair(with_unused=bool(case["find"]))
    model = SADCL(backbone, CHANNELS, LABELS, bank=case["bank"], group=group, **options).double()
    model.contrast = bool(case["contrast"])
    return model


def batch(rows: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randn(rows, 4, 8, dtype=torch.float64, generator=generator)
    target = torch.randint(-1, 2, (rows, LABELS), generator=generator)
    return tokens, target


def train(model: nn.Module, system: SADCL, rows: int, own: slice) -> list[Tensor]:
    """Train for a few steps and return losses and gradients of all steps, weights, and the bank."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    results = []
    for step in range(STEPS):
        tokens, target = batch(rows, step)
        optimizer.zero_grad()
        loss = system.objective(model(tokens[own]), target[own])
        loss.backward()
        optimizer.step()
        results += [loss.detach(), *(p.grad.clone() for p in system.parameters() if p.grad is not None)]
    return [*results, *(value.clone() for value in system.state_dict().values())]


def share(part: list[int], rank: int) -> slice:
    return slice(sum(part[:rank]), sum(part[: rank + 1]))


def work(rank: int, sizes: list[int]) -> list[object]:
    own, results = share(sizes, rank), []
    for case in CASES:
        system = build(case, dist.group.WORLD)
        model = DistributedDataParallel(system, find_unused_parameters=bool(case["find"]))
        results.append(train(model, system, sum(sizes), own))
    system = copy.deepcopy(build(CASES[0], dist.group.WORLD))  # as for an average of weights
    assert system.contrastive_loss.group is dist.group.WORLD
    tokens, target = batch(sum(sizes), 0)
    if rank == 0:
        halves = [(tokens[own], target[own])]
    else:  # the ranks need not have as many batches
        halves = [(tokens[own][:1], target[own][:1]), (tokens[own][1:], target[own][1:])]
    with pytest.warns(UserWarning, match="of 5 labels have"):
        system.initialize_prototypes(halves, threshold=0.5)
    return [*results, [system.prototypes.detach()]]


@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified:UserWarning")
@pytest.mark.parametrize("sizes", [[4, 4], [5, 2], [3, 0, 2]])
def test_every_rank_trains_as_one_process_with_the_whole_batch(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    for index, case in enumerate(CASES):
        system = build(case, None)
        expected = train(system, system, sum(sizes), slice(None))
        for results in ranks:
            for found, wanted in zip(results[index], expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    system = build(CASES[0], None)
    with pytest.warns(UserWarning, match="of 5 labels have"):  # so that the fallbacks are among what is compared
        system.initialize_prototypes([batch(sum(sizes), 0)], threshold=0.5)
    for results in ranks:
        torch.testing.assert_close(results[-1][0], system.prototypes.detach(), rtol=1e-10, atol=1e-12)
