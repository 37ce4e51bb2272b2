"""Latent context in training: it learns, correlations too, the branch leaves no trace, processes agree."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from mlcorr.metrics import multilabel_scores
from mlcorr.systems.latent_context import LatentContext
from tests.ranks import run_ranks
from tests.systems.latent_context_cases import (
    CHANNELS,
    DIM,
    LABELS,
    assert_all_have_gradients,
    features,
    hidden,
    latent_context,
    pictures,
    small_backbone,
    targets,
)
from tests.systems.planted import planted

# ------------------------------------------------------------------------------------------------------- learning


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, target.clamp(min=0).to(logits.dtype), reduction="none")


def test_it_learns_64_images_by_heart() -> None:
    images, target = planted(64, LABELS)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU())
    model = LatentContext(backbone, 16, LABELS, dim=32, units=8, heads=4, width=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def evaluate() -> tuple[Tensor, Tensor]:
        """Return mAP, and the share of wrong answers."""
        model.eval()
        with torch.no_grad():
            logits = model(images).logits
        return multilabel_scores(logits, target, inputs="logits")["mAP"], ((logits > 0) != target).float().mean()

    assert evaluate()[0] < 0.7
    model.train()
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(model.objective(model(images, target), target))
        losses[-1].backward()
        optimizer.step()
    score, wrong = evaluate()
    assert score > 0.999
    assert wrong < 0.01
    assert losses[-1] < 0.1 * losses[0]


def twins(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (number, 6, 6), targets of 4 labels of which the second is the first, and what is visible.

    A token is noise, or noise and the mark of label 0, 2 or 3; label 1 has none. In half of the images there is no
    mark at all.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (number, 4), generator=generator)
    target[:, 1] = target[:, 0]
    visible = torch.rand(number, generator=generator) < 0.5
    tokens = 0.3 * torch.randn(number, 6, CHANNELS, generator=generator)
    for label in (0, 2, 3):
        marked = (target[:, label] == 1) & visible
        place = torch.randint(0, 6, (number,), generator=generator)
        tokens[marked, place[marked], label] += 2
    return tokens, target, visible


def test_a_label_is_inferred_from_its_twin() -> None:
    torch.manual_seed(0)
    options = {"dim": 16, "units": 4, "heads": 2, "width": 32, "dropout": 0.0, "mask_ratio": 0.5, "beta": 1.0}
    model = LatentContext(nn.Identity(), CHANNELS, 4, base_loss=cross_entropy, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        tokens, target, _ = twins(128, step)
        optimizer.zero_grad()
        model.objective(model(tokens, target), target).backward()
        optimizer.step()

    model.eval()
    tokens, target, visible = twins(400, 1000)
    hide = torch.zeros(400, 4, dtype=torch.bool)
    hide[:, 1] = True
    with torch.no_grad():
        output = model(tokens, target, hide=hide, return_partial=True)
        turned = model(tokens, 1 - target, hide=hide, return_partial=True)
        evidence = model.logits_given(tokens, target.masked_fill(hide, -1))

    def right(logits: Tensor, rows: Tensor) -> float:
        return float(((logits[:, 1] > 0) == target[:, 1])[rows].float().mean())

    assert right(output.logits, visible) > 0.97
    assert 0.35 < right(output.logits, ~visible) < 0.65  # as the toss of a coin: nothing is to be seen, none shown
    assert right(output.partial_logits, ~visible) > 0.97
    assert right(turned.partial_logits, ~visible) < 0.03
    torch.testing.assert_close(evidence, output.partial_logits)


def test_without_an_encoder_there_is_nothing_to_infer_from() -> None:
    model, hide = latent_context(depth=0), torch.zeros(4, LABELS, dtype=torch.bool)
    hide[:, 1] = True
    ones, zeros = (model(features(), torch.full((4, LABELS), label), hide=hide).partial_logits for label in (1, 0))
    assert torch.equal(ones[:, 1], zeros[:, 1])
    assert ((ones - zeros).abs()[:, [0, 2, 3, 4]] > 1e-4).all()


@pytest.mark.parametrize("fusion", ["gate", "sum", "concat", "none"])
@pytest.mark.parametrize("options", [{}, {"share_encoder": False}, {"partial_mode": "feature"}])
def test_gradients_reach_every_parameter(fusion: str, options: dict[str, object]) -> None:
    model = latent_context(small_backbone(), fusion=fusion, **options)
    images = pictures()
    model.objective(model(images, targets(), hide=hidden()), targets()).backward()
    assert_all_have_gradients(model)
    for name, parameter in model.named_parameters():
        # A constant added to all keys of a softmax changes nothing; a bias before batch norm neither.
        expected = not name.endswith("key.bias") and name != "backbone.0.bias"
        assert not expected or parameter.grad.any(), name


# --------------------------------------------------------------------------------------------- without the branch


def history(model: LatentContext, *, partial: bool | None) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """Train for some steps; return the losses, the weights and the state of the generator."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(5)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(model.objective(model(features(), targets(), return_partial=partial), targets()))
        losses[-1].backward()
        optimizer.step()
    return losses, model.state_dict(), torch.get_rng_state()


@pytest.mark.parametrize("options", [{}, {"share_encoder": False}, {"partial_mode": "feature"}])
def test_beta_0_is_training_without_the_branch(options: dict[str, object]) -> None:
    settings = {"dropout": 0.3, **options}
    zero, off, gone = (latent_context(beta=beta, **settings) for beta in (0.0, 0.1, 0.1))
    before = copy.deepcopy(zero.partial.state_dict())
    runs = [history(zero, partial=None), history(off, partial=False), history(gone.deploy(), partial=None)]
    (losses, weights, state), *others = runs
    assert losses[-1] < losses[0]
    for found, other, after in others:
        assert torch.equal(after, state)
        assert all(torch.equal(*pair) for pair in zip(found, losses, strict=True))
        for name, value in other.items():
            assert torch.equal(value, weights[name]), name
    assert not any(parameter.requires_grad for parameter in zero.partial.parameters())
    assert all(parameter.requires_grad for parameter in off.partial.parameters())
    assert all(torch.equal(value, before[name]) for name, value in zero.partial.state_dict().items())
    assert not torch.equal(history(latent_context(**settings), partial=None)[0][-1], losses[-1])


def test_beta_0_needs_no_labels() -> None:
    output = latent_context(beta=0.0)(features())
    assert output.partial_logits is None
    assert torch.equal(output.logits, latent_context(beta=0.0)(features(), targets()).logits)


# --------------------------------------------------------------------------------------------------------- deploy


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({}, 2 * DIM + LABELS * DIM + LABELS),
        ({"num_labels": 3, "fusion": "sum"}, 2 * DIM + 3 * DIM + 3),
        ({"beta": 0.0}, 2 * DIM + LABELS * DIM + LABELS),
        ({"partial_mode": "feature"}, DIM + LABELS * DIM + LABELS),
    ],
)
def test_deploy_removes_what_only_training_needs(options: dict[str, object], removed: int) -> None:
    model = latent_context(**options).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deployed = model.deploy()
    count = [sum(p.numel() for p in each.parameters()) for each in (model, deployed)]
    assert count[0] - count[1] == removed
    assert {name for name in before if name not in deployed.state_dict()} == {
        name for name in before if name.startswith("partial.")
    }
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for one, other in zip(model(features()), deployed.eval()(features()), strict=True):
                assert one is other is None or torch.equal(one, other)
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_deployed_model_of_a_separate_encoder_keeps_one() -> None:
    shared, apart = latent_context().deploy(), latent_context(share_encoder=False)
    assert apart.deploy().state_dict().keys() == shared.state_dict().keys()
    assert torch.equal(apart.deploy().eval()(features()).logits, apart.eval()(features()).logits)


def test_a_deployed_state_loads_strictly() -> None:
    model = latent_context(small_backbone())
    model(pictures(), targets())  # moves the statistics of batch norm
    other = latent_context(small_backbone())
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other = other.deploy()
    other.load_state_dict(model.deploy().state_dict(), strict=True)
    images = pictures()
    assert torch.equal(other.eval()(images).logits, model.eval()(images).logits)
    with pytest.raises(RuntimeError, match="partial"):
        model.load_state_dict(other.state_dict(), strict=True)


def test_a_deployed_model_can_be_trained_and_deployed_again() -> None:
    model = latent_context(small_backbone()).deploy().deploy().train()
    images = pictures()
    output = model(images)
    assert output.partial_logits is None
    assert list(model.terms(output, targets())) == ["aux", "full"]
    model.objective(output, targets()).backward()
    assert_all_have_gradients(model)
    assert torch.equal(model(images, targets()).logits, output.logits)


def test_a_deployed_model_says_what_it_lacks() -> None:
    model = latent_context().deploy()
    with pytest.raises((ValueError, RuntimeError), match="deploy"):
        model(features(), targets(), return_partial=True)
    with pytest.raises((ValueError, RuntimeError), match="deploy"):
        model.logits_given(features(), targets())


# ------------------------------------------------------------------------------------------------------ processes

STEPS = 3
CASES = [{}, {"beta": 0.0}, {"share_encoder": False, "base_loss": cross_entropy}, {"partial_mode": "feature"}]


def build(case: dict[str, object], group: object) -> LatentContext:
    return latent_context(alpha=1.3, group=group, **{"beta": 0.4, **case}).double()


def batch(rows: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    images, generator = features(rows, dtype=torch.float64) + step, torch.Generator().manual_seed(step)
    target, hide = targets(rows).roll(step, 1), torch.rand(rows, LABELS, generator=generator) < 0.3
    if step == 1:
        hide[1:] = False  # on one rank only
    if step == 2:
        target[: rows - 1] = -1
    return images, target, hide


def train(model: nn.Module, system: LatentContext, rows: int, own: slice) -> list[Tensor]:
    """Train for a few steps and return losses and gradients of all steps, and the weights."""
    trained = [parameter for parameter in system.parameters() if parameter.requires_grad]
    optimizer, results = torch.optim.SGD(trained, lr=1e-2), []
    for step in range(STEPS):
        images, target, hide = (each[own] for each in batch(rows, step))
        optimizer.zero_grad()
        loss = system.objective(model(images, target, hide=hide), target)
        loss.backward()
        optimizer.step()
        results += [loss.detach(), *(parameter.grad.clone() for parameter in trained)]
    return [*results, *(parameter.detach().clone() for parameter in system.parameters())]


def work(rank: int, sizes: list[int]) -> list[object]:
    own, results = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), []
    for case in CASES:
        # Copies, as an average of weights or `deploy` makes them, share the group.
        system = copy.deepcopy(build(case, dist.group.WORLD))
        results.append(train(DistributedDataParallel(system), system, sum(sizes), own))  # no search for unused ones
    system = build({}, dist.group.WORLD).deploy()
    results.append(train(DistributedDataParallel(system), system, sum(sizes), own))
    return results


@pytest.mark.parametrize("sizes", [[4, 4], [5, 2], [3, 0], [2, 1, 3]])
def test_every_rank_trains_as_one_process_with_the_whole_batch(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    systems = [*(build(case, None) for case in CASES), build({}, None).deploy()]
    for index, system in enumerate(systems):
        expected = train(system, system, sum(sizes), slice(None))
        for results in ranks:
            for found, wanted in zip(results[index], expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
