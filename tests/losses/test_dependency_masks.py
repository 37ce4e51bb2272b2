"""MultiOrderDependencyLoss with masks and with any delta, against the definition."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import MultiOrderDependencyLoss
from mlcorr.functional import multi_order_dependency_loss
from mlcorr.ops import norder
from tests.reference import norder as reference
from tests.reference import norder_masks as masked_reference


def draw(rows: int, labels: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.rand(rows, labels, dtype=torch.float64, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher.requires_grad_()


def assert_same(actual: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
    gradients = torch.autograd.grad(actual, inputs)
    for a, e in zip(gradients, torch.autograd.grad(expected, inputs, retain_graph=True), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


@st.composite
def masked_batches(draw_from: st.DrawFn) -> tuple[int, int, list[list[bool]], int]:
    rows, labels = draw_from(st.integers(1, 4)), draw_from(st.integers(4, 6))
    row = st.lists(st.booleans(), min_size=labels, max_size=labels)
    row = row | st.just([False] * labels) | st.just([True] * labels)
    return rows, labels, draw_from(st.lists(row, min_size=rows, max_size=rows)), draw_from(st.integers(0, 10_000))


deltas = st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0])
orders = st.sampled_from([{2: 1.0}, {3: 1.0}, {4: 1.0}, {2: 0.5, 3: 1.0, 4: 2.0}])


@settings(max_examples=60, deadline=None)
@given(case=masked_batches(), delta=deltas, orders=orders)
def test_masked_instances_equal_the_definition(case, delta: float, orders: dict[int, float]) -> None:
    rows, labels, mask, seed = case
    student, teacher = draw(rows, labels, seed)
    mask = torch.tensor(mask)
    expected = masked_reference.instance_mean(student, teacher, mask, orders, delta)
    actual = multi_order_dependency_loss(
        student, teacher, mask, orders=orders, delta=delta, level="instance", inputs="probabilities"
    )
    assert_same(actual, expected, student, teacher)


@settings(max_examples=60, deadline=None)
@given(
    case=masked_batches(),
    delta=deltas,
    orders=orders,
    dependency=st.sampled_from(["mean_square", "square_of_sums"]),
)
def test_masked_batch_equals_the_definition(case, delta: float, orders: dict[int, float], dependency: str) -> None:
    rows, labels, mask, seed = case
    student, teacher = draw(rows, labels, seed)
    mask = torch.tensor(mask)
    expected = masked_reference.batch_loss(student, teacher, mask, orders, delta, dependency)
    actual = multi_order_dependency_loss(
        student,
        teacher,
        mask,
        orders=orders,
        delta=delta,
        level="batch",
        batch_dependency=dependency,
        inputs="probabilities",
    )
    assert_same(actual, expected, student, teacher)


@pytest.mark.parametrize("order", [5, 6])
@pytest.mark.parametrize("delta", [0.1, 1.0])
@pytest.mark.parametrize("level", ["instance", "batch"])
def test_high_orders_with_masks(order: int, delta: float, level: str) -> None:
    student, teacher = draw(3, 7, order)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 1] = mask[1, :4] = False
    if level == "instance":
        expected = masked_reference.instance_mean(student, teacher, mask, {order: 1.0}, delta)
    else:
        expected = masked_reference.batch_loss(student, teacher, mask, {order: 1.0}, delta)
    actual = multi_order_dependency_loss(
        student, teacher, mask, orders=[order], delta=delta, level=level, inputs="probabilities"
    )
    assert_same(actual, expected, student, teacher)


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("dependency", ["mean_square", "square_of_sums"])
def test_every_delta_equals_the_definition(delta: float, dependency: str) -> None:
    student, teacher = draw(3, 6, 1)
    weights = {2: 1.0, 3: 0.5, 4: 2.0, 5: 1.5}
    expected = reference.instance_loss(student, teacher, weights, delta).mean()
    expected = expected + reference.batch_loss(student, teacher, weights, delta, dependency)
    for backend in ("auto", "enumeration"):
        actual = multi_order_dependency_loss(
            student,
            teacher,
            orders=weights,
            delta=delta,
            batch_dependency=dependency,
            inputs="probabilities",
            backend=backend,
        )
        assert_same(actual, expected, student, teacher)


@pytest.mark.parametrize("labels", [5, 30])
@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("normalization", ["sequences", "labels"])
def test_a_full_mask_is_no_mask(labels: int, level: str, normalization: str) -> None:
    student, teacher = draw(4, labels, 2)
    loss = MultiOrderDependencyLoss(level=level, inputs="probabilities", normalization=normalization)
    assert_same(
        loss(student, teacher, torch.ones_like(student, dtype=torch.bool)), loss(student, teacher), student, teacher
    )


@pytest.mark.parametrize("labels", [5, 30])
@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("delta", [0.2, 1.0])
def test_an_unknown_row_changes_nothing(labels: int, level: str, reduction: str, delta: float) -> None:
    student, teacher = draw(4, labels, 3)
    mask = torch.rand(4, labels, generator=torch.Generator().manual_seed(0)) < 0.8
    nan = torch.full((1, labels), torch.nan, dtype=torch.float64)
    loss = MultiOrderDependencyLoss(level=level, reduction=reduction, delta=delta, inputs="probabilities")
    expected = loss(student, teacher, mask)
    more = (torch.cat([x, nan]) for x in (student, teacher))
    actual = loss(*more, torch.cat([mask, torch.zeros(1, labels, dtype=torch.bool)]))
    assert_same(actual, expected, student, teacher)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.parametrize("normalization", ["sequences", "labels"])
def test_masked_reductions(reduction: str, normalization: str) -> None:
    student, teacher = draw(5, 6, 4)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    for row, count in enumerate((6, 4, 2, 1, 0)):
        mask[row, :count] = True
    counts = mask.sum(-1)
    total = torch.zeros(5, dtype=torch.float64)
    means = 0.0
    for order, weight in {2: 1.0, 4: 0.5}.items():
        losses = torch.zeros(5, dtype=torch.float64)
        for row, loss in masked_reference.instance_losses(student, teacher, mask, order).items():
            losses[row] = loss.detach() * (counts[row] if normalization == "labels" else 1)
        total += weight * losses
        means += weight * losses.sum() / (counts >= order).sum()
    expected = {"none": total, "sum": total.sum(), "mean": means, "batchmean": total.sum() / 4}[reduction]
    actual = multi_order_dependency_loss(
        student,
        teacher,
        mask,
        orders={2: 1.0, 4: 0.5},
        level="instance",
        reduction=reduction,
        normalization=normalization,
        inputs="probabilities",
    )
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("delta", [0.2, 1.0])
@pytest.mark.parametrize("labels", [4, 20])
def test_the_contract_of_the_closed_form_holds(level: str, delta: float, labels: int) -> None:
    student, teacher = draw(3, labels, 5)
    mask = torch.rand(3, labels, generator=torch.Generator().manual_seed(1)) < 0.8
    loss = MultiOrderDependencyLoss(level=level, delta=delta, inputs="probabilities")
    small = [x.detach().requires_grad_() for x in (student, teacher)]
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, mask), small)
    if labels == 4 or delta == 1.0:
        torch._dynamo.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert_same(compiled(student, teacher, mask), loss(student, teacher, mask), student, teacher)
    gradient = torch.func.grad(loss)(student, teacher, mask)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(student, teacher, mask), student)[0])
    half = MultiOrderDependencyLoss(level=level, delta=delta)(student.half(), teacher.half(), mask)
    assert half.isfinite()


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_masked_entries_are_nobodys_business(level: str) -> None:
    student, teacher = draw(3, 6, 6)
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) < 0.7
    spoiled = student.detach().masked_fill(~mask, torch.nan).requires_grad_()
    loss = MultiOrderDependencyLoss(level=level)
    expected = torch.autograd.grad(loss(student, teacher, mask), student)[0]
    gradient = torch.autograd.grad(loss(spoiled, teacher.masked_fill(~mask, torch.inf), mask), spoiled)[0]
    torch.testing.assert_close(gradient, expected)
    assert (gradient[~mask] == 0).all()


def test_samples_estimate_what_enumeration_gives() -> None:
    student, teacher = draw(2, 9, 7)
    settings = {"orders": [5], "delta": 0.05, "level": "instance", "inputs": "probabilities"}
    exact = multi_order_dependency_loss(student, teacher, **settings).item()
    estimates = torch.tensor(
        [
            multi_order_dependency_loss(
                student, teacher, samples=50, generator=torch.Generator().manual_seed(seed), **settings
            ).item()
            for seed in range(400)
        ]
    )
    assert abs(estimates.mean() - exact) <= 3 * estimates.std() / 400**0.5
    # The documented standard error: that of 50 draws an instance, averaged over the instances.
    differences = norder.instance_differences(student, teacher).detach()
    sequences = torch.tensor(list(reference.label_sequences(range(9), 5)))
    means = torch.stack([differences[:, a, b] for a, b in zip(sequences.T[:-1], sequences.T[1:], strict=True)]).mean(0)
    values = torch.where(means.abs() <= 0.05, 0.5 * means**2, 0.05 * (means.abs() - 0.025))
    standard_error = (values.var(dim=1, correction=0) / 50).sum().sqrt() / 2
    torch.testing.assert_close(estimates.std().double(), standard_error, rtol=0.15, atol=0)
    again = [
        multi_order_dependency_loss(
            student, teacher, samples=50, generator=torch.Generator().manual_seed(0), **settings
        )
        for _ in range(2)
    ]
    assert again[0] == again[1]


def test_chunks_of_instances_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = draw(5, 6, 8)
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(3)) < 0.8
    loss = MultiOrderDependencyLoss(delta=0.1, inputs="probabilities", level="instance")
    expected = loss(student, teacher, mask)
    monkeypatch.setattr(norder, "_CHUNK", 2 * 36)
    assert_same(loss(student, teacher, mask), expected, student, teacher)


def test_value_and_gradient_of_chunks_are_of_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = draw(4, 7, 9)
    loss = MultiOrderDependencyLoss([5], delta=0.1, inputs="probabilities", level="instance", samples=20)
    monkeypatch.setattr(norder, "_CHUNK", 2 * 49)
    assert torch.autograd.gradcheck(
        lambda s, t: loss(s, t, generator=torch.Generator().manual_seed(0)), (student, teacher)
    )


def test_the_ladder_says_what_runs() -> None:
    reason = norder.select_backend("instance", batch_size=8, orders=(4, 6), delta=0.5, samples=100).reason
    assert reason.endswith("order 4 by tail, order 6 by 100 samples")
    assert norder.select_backend("batch", batch_size=8, orders=(5,), delta=0.5).reason.endswith("5 by enumeration")
    assert norder.select_backend("batch", batch_size=8, delta=8.0, batch_dependency="square_of_sums").backend == (
        "closed_form"
    )
    assert norder.select_backend("batch", batch_size=9, delta=8.0, batch_dependency="square_of_sums").backend == (
        "enumeration"
    )
    assert norder.select_backend("instance", batch_size=8, delta=0.5).backend == "enumeration"
    assert norder.select_backend("instance", batch_size=8, backend="enumeration").backend == "enumeration"
    with pytest.raises(ValueError, match=r"^backend: .*delta >= 1"):
        norder.select_backend("instance", batch_size=8, delta=0.5, backend="closed_form")


ZEROS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, r"^mask: .*float32", lambda: multi_order_dependency_loss(ZEROS, ZEROS, ZEROS)),
        (ValueError, r"^mask: .*\(4,\)", lambda: multi_order_dependency_loss(ZEROS, ZEROS, torch.ones(4).bool())),
        (ValueError, r"^samples: .*0", lambda: MultiOrderDependencyLoss(samples=0)),
        (ValueError, r"^samples: .*integer >= 1, got -1", lambda: MultiOrderDependencyLoss(samples=-1)),
        (TypeError, r"^samples: .*1.5", lambda: MultiOrderDependencyLoss(samples=1.5)),
        (TypeError, r"^group: .*str", lambda: MultiOrderDependencyLoss(group="world")),
        (
            ValueError,
            r"^orders: .*sequences",
            lambda: multi_order_dependency_loss(torch.zeros(2, 400), torch.zeros(2, 400), orders=[6], delta=0.5),
        ),
        (
            ValueError,
            r"^backend: .*delta",
            lambda: multi_order_dependency_loss(ZEROS, ZEROS, delta=0.5, backend="closed_form"),
        ),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("backend", ["auto", "enumeration", "enumeration_triton"])
@pytest.mark.parametrize("delta", [1e29, 1e39, float("inf")])
def test_a_delta_that_nothing_reaches(delta: float, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 6, generator=generator) for _ in range(2))
    student.requires_grad_()
    expected = multi_order_dependency_loss(student, teacher, orders=(2, 3, 4, 5))
    actual = multi_order_dependency_loss(student, teacher, orders=(2, 3, 4, 5), delta=delta, backend=backend)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (actual, expected)))
