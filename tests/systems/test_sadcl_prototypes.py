"""SADCL's prototypes: as the loop has them, whatever the batches, and nothing changes where something is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlcorr.systems._prototypes import PrototypeMeans
from tests.reference import sadcl_system
from tests.systems.sadcl_cases import (
    CHANNELS,
    LABELS,
    features,
    sadcl,
    targets,
)


def some_batches() -> list[tuple[Tensor, Tensor]]:
    batches = [(features(5) * scale, targets(5)) for scale in (1.0, 2.0, 0.5)]
    for _, target in batches:
        target[:, 3] = target[:, 3].clamp(max=0)  # no positive
        target[0, :3] = 1
    return batches


def test_prototypes_equal_the_loop_with_both_fallbacks() -> None:
    model = sadcl(small := nn.BatchNorm2d(CHANNELS), dropout=0.3)
    small.eval()  # as of a frozen trunk
    model.classifier.bias.data[:] = torch.tensor([0.5, 1.2, -9.0, 0.0, 0.4])  # nobody is sure of label 2
    batches = some_batches()
    before = model.prototypes.detach().clone()
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "prototypes"}
    modes = {name: part.training for name, part in model.named_modules()}
    random = torch.get_rng_state()
    with pytest.warns(UserWarning, match="^prototypes: ") as warned:
        model.initialize_prototypes(batches, threshold=0.6)
    assert modes == {name: part.training for name, part in model.named_modules()}
    assert torch.equal(random, torch.get_rng_state())
    assert model.prototypes.requires_grad
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())

    model.eval()
    with torch.no_grad():
        outputs = [model(images) for images, _ in batches]
    expected, unsure, absent = sadcl_system.prototypes(
        torch.cat([output.label_features for output in outputs]).double(),
        torch.cat([output.logits for output in outputs]).sigmoid(),
        torch.cat([target for _, target in batches]),
        0.6,
        before.double(),
    )
    assert (unsure, absent) == ([2], [3])
    torch.testing.assert_close(model.prototypes.double(), expected, rtol=1e-6, atol=1e-7)
    assert [str(each.message) for each in warned] == [
        "prototypes: 1 of 5 labels have no positive of a probability of 0.6, and take the mean of them all: 2",
        "prototypes: 1 of 5 labels have no positive at all, and start at random: 3",
    ]


def test_prototypes_do_not_depend_on_the_split_into_batches_nor_on_unknown_labels() -> None:
    images, target = torch.cat([x for x, _ in some_batches()]), torch.cat([y for _, y in some_batches()])
    assert (target == -1).any()
    found = []
    for sizes, known in ((15, target), (4, target), (4, target.clamp(min=0))):
        model = sadcl()
        with pytest.warns(UserWarning, match="no positive at all"):
            model.initialize_prototypes(zip(images.split(sizes), known.split(sizes), strict=True), threshold=0.0)
        found.append(model.prototypes)
    torch.testing.assert_close(found[1], found[0])
    assert torch.equal(found[1], found[2])


def test_a_probability_at_the_threshold_is_enough() -> None:
    model = sadcl()
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    batches = [(features(), torch.ones(3, LABELS))]
    model.initialize_prototypes(batches, threshold=0.5)  # and nothing is warned of
    with pytest.warns(UserWarning, match=r"^prototypes: 5 of 5 labels have no positive of a probability of 0\.51"):
        model.initialize_prototypes(batches, threshold=0.51)


def test_prototypes_with_padding() -> None:
    tokens = features(5).flatten(2).mT
    target = torch.ones(5, LABELS)
    padded = torch.cat([tokens, torch.full((5, 2, CHANNELS), 3.0)], dim=1)
    valid = torch.arange(14).expand(5, -1) < 12
    with_padding, without = sadcl(), sadcl()
    with_padding.initialize_prototypes([(padded, target, valid)], threshold=0.0)
    without.initialize_prototypes([(tokens, target)], threshold=0.0)
    torch.testing.assert_close(with_padding.prototypes, without.prototypes)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, r"^batches: expected at least one label with a positive"),
        ([(features(), -targets().abs())], ValueError, r"^batches: expected at least one label with a positive"),
        ([(features(), torch.ones(3, LABELS)), (features(), torch.ones(3, 4))], ValueError, r"^target: .*\(3, 4\)"),
        ([(features() * float("nan"), torch.ones(3, LABELS))], ValueError, r"^batches: expected finite"),
    ],
)
def test_failed_prototypes_change_nothing(batches, error, message) -> None:
    model = sadcl()
    model.projector.eval()
    before = model.prototypes.detach().clone()
    with pytest.raises(error, match=message):
        model.initialize_prototypes(batches)
    assert torch.equal(model.prototypes, before)
    assert model.training
    assert not model.projector.training
    with pytest.raises(ValueError, match=r"^threshold: "):
        model.initialize_prototypes([], threshold=1.5)


def test_prototypes_of_half_precision() -> None:
    model = sadcl().bfloat16()
    model.initialize_prototypes([(features(dtype=torch.bfloat16), torch.ones(3, LABELS))], threshold=0.0)
    expected = model(features(dtype=torch.bfloat16)).label_features.double().mean(0)
    torch.testing.assert_close(model.prototypes, expected.bfloat16())


def test_what_is_no_positive_need_not_be_finite() -> None:
    target = torch.tensor([[1, 0, -1], [0, 1, 1]])
    features, logits = torch.randn(2, 3, 4), torch.randn(2, 3)
    means, soiled = (PrototypeMeans(torch.zeros(3, 4), 0.0) for _ in range(2))
    means.update(features, logits, target)
    soiled.update(features.masked_fill((target != 1).unsqueeze(-1), torch.nan), logits, target)
    assert torch.equal(soiled.result(torch.ones(3, 4), None), means.result(torch.ones(3, 4), None))
