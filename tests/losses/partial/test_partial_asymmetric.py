"""PartialAsymmetricLoss against its definition and the authors' program, and what it ignores."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr import PartialAsymmetricLoss
from mlcorr.functional import asymmetric_loss, partial_asymmetric_loss
from tests.losses.partial.terms import assert_entries, exponents, logits, random_batch, soft_labels
from tests.reference import partial as reference

factors = st.floats(0, 2)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[float]]:
    width = draw(st.integers(1, 4))
    row = st.lists(st.tuples(logits | st.sampled_from([0.0, 1.0]), soft_labels), min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    prior = draw(st.lists(st.floats(0, 1), min_size=width, max_size=width))
    return [[x for x, _ in row] for row in rows], [[y for _, y in row] for row in rows], prior


@settings(max_examples=250, deadline=None)
@given(
    batch=batches(),
    gammas=st.tuples(exponents, exponents, exponents),
    alphas=st.tuples(factors, factors, factors),
    clip=st.sampled_from([0.0, 0.05]),
    with_prior=st.booleans(),
    threshold=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    topk=st.integers(0, 3),
    detach=st.booleans(),
)
def test_equals_the_definition(batch, gammas, alphas, clip, with_prior, threshold, topk, detach) -> None:
    rows, targets, prior = batch
    expected = reference.partial_asymmetric(
        rows, targets, gammas, alphas, clip, prior if with_prior else None, threshold, topk, detach
    )
    names = ("pos", "neg", "unknown")
    parameters = {f"gamma_{name}": gamma for name, gamma in zip(names, gammas, strict=True)}
    parameters |= {f"alpha_{name}": alpha for name, alpha in zip(names, alphas, strict=True)}
    assert_entries(
        partial_asymmetric_loss,
        rows,
        targets,
        expected,
        rel=1e-8,  # the reference takes logarithms of 1 − p
        abs=1e-13,
        **parameters,
        clip=clip,
        prior=torch.tensor(prior, dtype=torch.float64) if with_prior else None,
        prior_threshold=threshold,
        likelihood_topk=topk,
        detach_focal=detach,
    )


@pytest.mark.parametrize("gammas", [(0.0, 1.0, 2.0), (0.5, 4.0, 4.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("prior", [None, [0.5, 0.01, 0.06, 0.049, 0.2]])
@pytest.mark.parametrize("topk", [1, 2, 5])
def test_equals_the_official_program(gammas, clip: float, prior: list[float] | None, topk: int) -> None:
    x, y = random_batch(0, 7, 5, unknown=True)
    alphas = (1.0, 0.7, 0.5)
    expected = reference.official_selective(x.tolist(), y.tolist(), gammas, alphas, clip, prior, 0.05, topk)
    actual = partial_asymmetric_loss(
        x,
        y,
        gamma_pos=gammas[0],
        gamma_neg=gammas[1],
        gamma_unknown=gammas[2],
        alpha_pos=alphas[0],
        alpha_neg=alphas[1],
        alpha_unknown=alphas[2],
        clip=clip,
        prior=None if prior is None else torch.tensor(prior, dtype=torch.float64),
        likelihood_topk=topk,
    )
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_without_unknown_labels_it_is_the_asymmetric_loss() -> None:
    x, y = random_batch(1, 6, 5, unknown=False)
    actual = partial_asymmetric_loss(x, y, gamma_neg=4, gamma_pos=1, clip=0.05, prior=torch.ones(5))
    assert actual == asymmetric_loss(x, y)


def test_what_is_ignored() -> None:
    x = torch.tensor([[9.0, 1.0, 1.0], [8.0, 1.0, 5.0]])
    y = torch.tensor([[1, -1, -1], [0, -1, -1]])

    def ignored(**keywords: object) -> list[list[bool]]:
        return (partial_asymmetric_loss(x, y, reduction="none", **keywords) == 0).tolist()

    assert ignored(likelihood_topk=0) == [[False] * 3] * 2
    # Two of the four unknown entries; of three equal ones the first. Known ones never, however large.
    assert ignored(likelihood_topk=1) == [[False, True, False], [False, False, True]]
    assert ignored(likelihood_topk=9) == [[False, True, True]] * 2
    prior = torch.tensor([1.0, 0.05, 0.06])
    assert ignored(likelihood_topk=0, prior=prior) == [[False, False, True]] * 2
    assert ignored(likelihood_topk=0, prior=prior, prior_threshold=0.0) == [[False, True, True]] * 2


def test_all_unknown_and_all_ignored() -> None:
    x = torch.full((3, 4), float("nan"), requires_grad=True)
    unknown = torch.full((3, 4), -1)
    loss = partial_asymmetric_loss(x, unknown, likelihood_topk=4)
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    x = torch.randn(3, 4)
    assert (partial_asymmetric_loss(x, unknown, reduction="none") == 0).all()
    assert (partial_asymmetric_loss(x, unknown, likelihood_topk=2, reduction="none") == 0).sum() == 6


def test_the_prior_is_a_buffer() -> None:
    prior = torch.tensor([0.5, 0.1, 0.0])
    criterion = PartialAsymmetricLoss(prior=prior)
    assert list(criterion.state_dict()) == ["prior"]
    assert criterion.to(torch.float64).prior.dtype == torch.float64
    assert list(PartialAsymmetricLoss().state_dict()) == []


@pytest.mark.parametrize(
    ("error", "message", "prior"),
    [
        (ValueError, r"^prior: .*\(3,\).*\(2,\)", torch.zeros(2)),
        (ValueError, r"^prior: .*\(3,\).*\(1, 3\)", torch.zeros(1, 3)),
        (ValueError, "^prior: .*device.*meta", torch.zeros(3, device="meta")),
        (TypeError, "^prior: .*int64", torch.zeros(3, dtype=torch.int64)),
        (TypeError, "^prior: .*list", [0.1, 0.2, 0.3]),
    ],
)
def test_a_bad_prior_is_named(error: type[Exception], message: str, prior: object) -> None:
    with pytest.raises(error, match=message):
        partial_asymmetric_loss(torch.zeros(2, 3), torch.zeros(2, 3), prior=prior)
    if error is TypeError:
        with pytest.raises(error, match=message):
            PartialAsymmetricLoss(prior=prior)


def test_a_count_is_an_integer() -> None:
    with pytest.raises(TypeError, match=r"^likelihood_topk: .*1\.5"):
        PartialAsymmetricLoss(likelihood_topk=1.5)
