"""Any δ: enumeration, tails and samples of label sequences against a loop over every sequence."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr.ops.norder import enumeration, sampling, tail
from tests.reference import norder as reference

DELTAS = (0.01, 0.1, 0.5, 1.0, 3.0)
BACKENDS = {"enumeration": enumeration.mean_huber, "tail": tail.mean_huber}
REACHES = [("enumeration", order) for order in range(2, 7)] + [("tail", order) for order in range(2, 5)]

each_backend = pytest.mark.parametrize(("backend", "order"), REACHES)


def draw(matrices: int, labels: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Symmetric matrices with entries in [−1, 1] and a diagonal of zeros."""
    generator = torch.Generator().manual_seed(seed)
    upper = (2 * torch.rand(matrices, labels, labels, dtype=dtype, generator=generator) - 1).triu(1)
    return upper + upper.mT


def draw_mask(matrices: int, labels: int, seed: int = 0, rate: float = 0.7) -> Tensor:
    return torch.rand(matrices, labels, generator=torch.Generator().manual_seed(seed)) < rate


def value_and_gradient(function: Callable[[Tensor], Tensor], differences: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of their sum with weights of their own, in the pairs' two entries alike."""
    differences = differences.detach().clone().requires_grad_()
    losses = function(differences)
    weights = 1 + torch.arange(losses.shape[0], dtype=losses.dtype)
    if not losses.requires_grad:
        return losses, torch.zeros_like(differences)
    (gradient,) = torch.autograd.grad((weights * losses).sum(), differences)
    return losses.detach(), (gradient + gradient.mT) / 2


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-10) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=0)


@st.composite
def cases(draw_from: st.DrawFn, order: int) -> tuple[Tensor, float, Tensor]:
    """Matrices, among them ones of repeated entries that lie exactly δ apart, δ, and masks."""
    delta = draw_from(st.sampled_from(DELTAS))
    labels = draw_from(st.integers(1, 7 if order < 5 else 6))
    seed = draw_from(st.integers(0, 2**16))
    differences = draw(2, labels, seed)
    if draw_from(st.booleans()):
        levels = torch.tensor([-1.0, -delta, 0.0, delta, 2 * delta, 1.0], dtype=torch.float64)
        upper = levels[(differences.abs() * 1e6).long() % len(levels)].triu(1)
        differences = upper + upper.mT
    row = st.lists(st.booleans(), min_size=labels, max_size=labels)
    mask = draw_from(st.one_of(st.just([[True] * labels] * 2), st.just([[False] * labels] * 2), st.tuples(row, row)))
    return differences, delta, torch.tensor(mask)


@each_backend
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_definition(backend: str, order: int, data: st.DataObject) -> None:
    differences, delta, valid = data.draw(cases(order))
    expected = value_and_gradient(lambda d: reference.order_losses(d, order, delta, valid), differences)
    invalid = ~(valid.unsqueeze(-1) & valid.unsqueeze(-2))
    soiled = differences.masked_fill(invalid, torch.nan)
    actual = value_and_gradient(lambda d: BACKENDS[backend](d, order, delta, valid), soiled)
    assert_same(actual, expected)
    assert actual[1].masked_select(invalid).eq(0).all()
    if valid.all():
        assert_same(value_and_gradient(lambda d: BACKENDS[backend](d, order, delta), differences), expected)


@pytest.mark.parametrize("delta", DELTAS)
@each_backend
def test_equals_the_definition_at_every_delta(backend: str, order: int, delta: float) -> None:
    differences = draw(1, max(order, 5), seed=order)
    everything = torch.ones(differences.shape[:2], dtype=torch.bool)
    expected = value_and_gradient(lambda d: reference.order_losses(d, order, delta, everything), differences)
    assert_same(value_and_gradient(lambda d: BACKENDS[backend](d, order, delta), differences), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize(("order", "labels"), [(2, 20), (3, 20), (4, 12), (4, 17)])
def test_tail_equals_enumeration(order: int, labels: int, delta: float, masked: bool) -> None:
    differences = draw(3, labels, seed=labels)
    valid = draw_mask(3, labels) if masked else None
    expected = value_and_gradient(lambda d: enumeration.mean_huber(d, order, delta, valid), differences)
    assert_same(value_and_gradient(lambda d: tail.mean_huber(d, order, delta, valid), differences), expected, 1e-13)


@pytest.mark.parametrize("chunk", [1, 50, 700])
@each_backend
def test_chunks_do_not_matter(backend: str, order: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    differences, valid = draw(5, 6), draw_mask(5, 6, rate=0.9)

    def run() -> list[tuple[Tensor, Tensor]]:
        return [
            value_and_gradient(lambda d, v=v: BACKENDS[backend](d, order, 0.2, v), differences) for v in (None, valid)
        ]

    whole = run()
    monkeypatch.setattr(enumeration if backend == "enumeration" else tail, "_CHUNK", chunk)
    for actual, expected in zip(run(), whole, strict=True):
        assert_same(actual, expected, 1e-14)


@each_backend
def test_first_and_second_derivatives(backend: str, order: int) -> None:
    """Of the full matrix, and through a symmetric one; the diagonal does not count."""
    square = draw(2, 4 if order < 5 else 6, seed=3).triu().requires_grad_()
    valid = torch.ones(square.shape[:2], dtype=torch.bool)
    valid[0, -1] = False

    def through_symmetric(a: Tensor) -> Tensor:
        return BACKENDS[backend](a + a.mT - torch.diag_embed(a.diagonal(dim1=1, dim2=2)), order, 0.15, valid)

    for function in (through_symmetric, lambda a: BACKENDS[backend](a, order, 0.15)):
        assert torch.autograd.gradcheck(function, square)
        assert torch.autograd.gradgradcheck(function, square)


@each_backend
def test_gradient_is_symmetric(backend: str, order: int) -> None:
    differences = draw(2, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(BACKENDS[backend](differences, order, 0.1).sum(), differences)
    torch.testing.assert_close(gradient, gradient.mT, atol=0, rtol=0)


@each_backend
def test_float32(backend: str, order: int) -> None:
    differences = draw(2, 8)
    expected = value_and_gradient(lambda d: BACKENDS[backend](d, order, 0.1), differences)
    actual = value_and_gradient(lambda d: BACKENDS[backend](d, order, 0.1), differences.float())
    assert {a.dtype for a in actual} == {torch.float32}
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, atol=1e-7, rtol=2e-6)


@each_backend
def test_degenerate_shapes(backend: str, order: int) -> None:
    assert BACKENDS[backend](torch.zeros(0, 6, 6), order, 0.1).shape == (0,)
    for labels in (1, order - 1):
        losses, gradient = value_and_gradient(lambda d: BACKENDS[backend](d, order, 0.1), draw(2, labels))
        assert losses.eq(0).all()
        assert gradient.eq(0).all()


@each_backend
def test_vmap_and_fullgraph(backend: str, order: int) -> None:
    differences, valid = draw(3, 5), draw_mask(3, 5, rate=0.9)

    def loss(d: Tensor, v: Tensor | None = None) -> Tensor:
        return BACKENDS[backend](d, order, 0.1, v)

    one = torch.func.vmap(lambda d, v: torch.func.grad(lambda x: loss(x[None], v[None]).sum())(d))(differences, valid)
    weights = torch.arange(1.0, 4.0, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(one * weights, value_and_gradient(lambda d: loss(d, valid), differences)[1])

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    mask = valid if order % 2 == 0 else None
    expected = value_and_gradient(lambda d: loss(d, mask), differences)
    assert_same(value_and_gradient(lambda d: compiled(d, mask), differences), expected, 1e-14)


def test_tail_refuses_other_orders() -> None:
    with pytest.raises(ValueError, match="order: expected 2, 3 or 4, got 5"):
        tail.mean_huber(draw(1, 6), 5, 0.1)


@pytest.mark.parametrize(("order", "labels"), [(2, 5), (3, 5), (4, 6), (5, 5), (6, 7), (4, 3)])
def test_count_of_sequences(order: int, labels: int) -> None:
    assert enumeration.count_sequences(order, labels) == len(list(reference.label_sequences(range(labels), order)))


def test_reach() -> None:
    enumeration.check_reach(4, 80, 32)
    with pytest.raises(ValueError, match=r"^orders: order 6 of 80 labels has 108180072000 .* delta >= 1.* samples="):
        enumeration.check_reach(6, 80, 1)
    with pytest.raises(ValueError, match="orders"):
        enumeration.check_reach(3, 10, 2, limit=719)
    enumeration.check_reach(3, 10, 2, limit=720)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [3, 4, 5])
def test_samples_are_unbiased(order: int, masked: bool) -> None:
    differences, seeds = draw(2, 9, seed=order), 400
    valid = draw_mask(2, 9, seed=order, rate=0.8) if masked else None
    estimates, gradients = zip(
        *(
            value_and_gradient(
                lambda d, s=seed: sampling.mean_huber(d, order, 0.2, 64, torch.Generator().manual_seed(s), valid),
                differences,
            )
            for seed in range(seeds)
        ),
        strict=True,
    )
    loss, gradient = value_and_gradient(lambda d: enumeration.mean_huber(d, order, 0.2, valid), differences)
    for samples, expected, deviations in ((estimates, loss, 3), (gradients, gradient, 4.5)):
        stacked = torch.stack(samples)
        error = stacked.std(dim=0) / seeds**0.5
        assert ((stacked.mean(dim=0) - expected).abs() <= deviations * error + 1e-15).all()


def test_samples_are_distinct_valid_labels() -> None:
    valid = torch.tensor([[True, False, True, True, False, True], [False] * 5 + [True], [True] * 6])
    generator = torch.Generator().manual_seed(0)
    sequences = torch.stack(sampling._draw(valid, 4, 2400, generator), dim=-1)
    for matrix, expected in ((0, 24), (2, 360)):
        drawn, counts = sequences[matrix].unique(dim=0, return_counts=True)
        assert all(len(set(sequence)) == 4 and valid[matrix, sequence].all() for sequence in drawn.tolist())
        assert len(drawn) >= 0.95 * expected
        assert counts.max() <= 2400 / expected + 6 * (2400 / expected) ** 0.5


def test_samples_of_too_few_labels() -> None:
    valid = torch.tensor([[True, True, False], [False] * 3])
    losses, gradient = value_and_gradient(lambda d: sampling.mean_huber(d, 3, 0.1, 5, None, valid), draw(2, 3))
    assert losses.eq(0).all()
    assert gradient.eq(0).all()
    assert sampling.mean_huber(draw(2, 3), 4, 0.1, 5).eq(0).all()
    assert sampling.mean_huber(torch.zeros(0, 5, 5), 4, 0.1, 5).shape == (0,)


def test_samples_repeat_with_their_generator() -> None:
    differences = draw(2, 30)
    one, two = (sampling.mean_huber(differences, 4, 0.1, 9, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["enumeration", "tail"])
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-30])
def test_pairs_keep_their_digits_however_small_delta_is(delta: float, backend: str) -> None:
    differences = draw(3, 5)
    x = differences[(slice(None), *torch.triu_indices(5, 5, 1))]
    expected = torch.nn.functional.huber_loss(x, torch.zeros_like(x), delta=delta, reduction="none").mean(dim=1)
    loss, gradient = value_and_gradient(lambda d: BACKENDS[backend](d, 2, delta), differences)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert (gradient.abs().amax(dim=(1, 2)) > 0).all()
