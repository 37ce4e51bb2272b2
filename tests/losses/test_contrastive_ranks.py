"""DualContrastiveLoss over real processes: value, gradient and bank of one big batch, and what DDP does to a bank."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlcorr import DualContrastiveLoss
from mlcorr.functional import sample_contrastive_loss
from tests.ranks import run_ranks

LABELS, DIM, STEPS = 3, 4, 3
CASES = [
    {"bank": bank, "bank_size": 3, "bank_threshold": 0.5, "max_active": max_active}
    for bank in (None, "per_label", "global")
    for max_active in (None, 30)
]
HALF = len(CASES)  # of float16 features, as under autocast
CASES.append({"bank": "per_label", "bank_size": 3, "bank_warmup_steps": 1})


class Model(nn.Module):
    """Features of labels by one linear layer, and the loss with its prototypes."""

    def __init__(self, case: dict[str, object], group: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.half_features = case is CASES[HALF]
        self.linear = nn.Linear(DIM, DIM)
        self.loss = DualContrastiveLoss(LABELS, DIM, **case, group=group)
        self.double()

    def forward(self, images: Tensor, targets: Tensor, scores: Tensor) -> Tensor:
        features = self.linear(images)
        return self.loss(features.half() if self.half_features else features, targets, scores)


def batch(rows: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch in whose first rows nothing is positive, so that a rank may have no active feature."""
    generator = torch.Generator().manual_seed(100 * step + rows)
    images = torch.randn(rows, LABELS, DIM, dtype=torch.float64, generator=generator)
    targets = torch.randint(-1, 2, (rows, LABELS), generator=generator)
    targets[:2] = targets[:2].clamp(max=0)
    return images, targets, torch.rand(rows, LABELS, generator=generator)


def train(model: nn.Module, sizes: list[int], rank: int | None) -> list[list[Tensor]]:
    """Return value and gradients of some steps on a rank's rows, or on all."""
    steps = []
    for step in range(STEPS):
        own = slice(None) if rank is None else slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        model.zero_grad()
        value = model(*(x[own] for x in batch(sum(sizes), step)))
        value.backward()
        steps.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    return steps


def work(rank: int, sizes: list[int]) -> list[object]:
    results = []
    for case in CASES:
        model = Model(case, dist.group.WORLD)
        steps = train(DistributedDataParallel(model), sizes, rank)
        results.append((steps, model.loss.state_dict()))
    return results


@pytest.mark.parametrize("sizes", [[7], [5, 5], [2, 6], [6, 1], [4, 0, 3]])
def test_ranks_are_one_big_batch(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    for index, case in enumerate(CASES):
        model = Model(case, None)
        expected = train(model, sizes, None)
        for results in ranks:
            steps, state = results[index]
            for actual, truth in zip(steps, expected, strict=True):
                tolerance = 2e-3 if index == HALF else 1e-10
                for a, t in zip(actual, truth, strict=True):
                    torch.testing.assert_close(a, t, rtol=tolerance, atol=tolerance * max(1.0, float(t.abs().max())))
            for name, value in model.loss.state_dict().items():
                torch.testing.assert_close(state[name], value, rtol=1e-14, atol=0.0)


def count_terms(rank: int) -> dict[str, Tensor]:
    loss = DualContrastiveLoss(LABELS, DIM, max_active=3, group=dist.group.WORLD).double()
    images, targets, scores = (x[5 * rank : 5 * rank + 5] for x in batch(10, 0))
    loss = copy.deepcopy(loss)  # as an average of weights does; the group is shared
    images.requires_grad_()
    terms = loss.terms(images, targets, scores, prototypes=prototypes())
    for name in ("sample", "prototype"):
        with pytest.raises(RuntimeError, match="no second derivatives over the processes of a group"):
            torch.autograd.grad(terms[name], images, create_graph=True)
    return {name: term.detach() for name, term in terms.items()}


def prototypes() -> Tensor:
    return torch.linspace(-1, 1, LABELS * DIM, dtype=torch.float64).view(LABELS, DIM)


def test_counts_are_those_of_all_ranks() -> None:
    ranks = run_ranks(count_terms, 2)
    active = [int((batch(10, 0)[1][5 * rank : 5 * rank + 5] == 1).sum()) for rank in range(2)]
    assert max(active) > 3
    for terms in ranks:
        assert terms["active"] == sum(min(3, number) for number in active)
        assert terms["dropped"] == sum(max(0, number - 3) for number in active)
        alone = DualContrastiveLoss(LABELS, DIM, bank=None).double()
        images, targets, _ = batch(10, 0)
        classes = alone.terms(images, targets, prototypes=prototypes())
        assert terms["classes"] == classes["classes"]
        torch.testing.assert_close(terms["prototype"], classes["prototype"])
        # S2S is that of each rank's first three active features.
        places = [
            (targets[5 * rank : 5 * rank + 5] == 1).nonzero()[:3] + torch.tensor([5 * rank, 0]) for rank in (0, 1)
        ]
        kept = torch.zeros_like(targets).index_put(tuple(torch.cat(places).T), torch.tensor(1))
        sample = alone.terms(images, kept, prototypes=prototypes())
        assert terms["anchors"] == sample["anchors"] > 0
        torch.testing.assert_close(terms["sample"], sample["sample"])


def broadcast(rank: int) -> dict[str, dict[str, Tensor]]:
    banks = {}
    for together in (False, True):
        for broadcast_buffers in (False, True):
            model = Model({"bank": "per_label", "bank_size": 8}, dist.group.WORLD if together else None)
            train(DistributedDataParallel(model, broadcast_buffers=broadcast_buffers), [5, 5], rank)
            banks[f"{together} {broadcast_buffers}"] = model.loss.state_dict()
    return banks


def test_what_broadcast_buffers_does_to_a_bank() -> None:
    """With a group all ranks hold one bank, and broadcasting it changes nothing. Without, it takes rank 0's for all."""
    first, second = run_ranks(broadcast, 2)

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.equal(value, b[name]) for name, value in a.items() if name.startswith("bank"))

    assert same(first["True True"], second["True True"])
    assert same(first["True True"], first["True False"])
    assert same(second["True True"], second["True False"])
    # On its own, each rank has its own images' features; DDP replaces all but those of the last step by rank 0's.
    assert not same(first["False False"], second["False False"])
    assert same(first["False True"], first["False False"])
    assert not same(second["False True"], second["False False"])


def test_a_wrong_backend_is_named_before_ranks_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        monkeypatch.setattr(dist, "all_gather", lambda *_, **__: pytest.fail("waits for others"))
        with pytest.raises(ValueError, match=r"^backend: .*'loops'"):
            sample_contrastive_loss(prototypes(), torch.arange(LABELS), backend="loops", group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
