"""MultiOrderDependencyLoss against the definition, and what a user may rely on."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import MultiOrderDependencyLoss
from mlcorr.functional import multi_order_dependency_loss
from tests.reference import norder as reference


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest magnitude of what is expected."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
    return difference / scale if scale > 0 else difference


def draw(rows: int, labels: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(rows, labels, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, teacher


def value_and_gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def definition(student: Tensor, teacher: Tensor, orders: dict[int, float], level: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    if level != "batch":
        total = total + reference.instance_loss(student, teacher, orders).mean()
    if level != "instance":
        total = total + reference.batch_loss(student, teacher, orders)
    return total


@pytest.mark.parametrize(("order", "labels"), [(n, c) for n in range(2, 7) for c in range(n, 9)])
@pytest.mark.parametrize("inputs", ["logits", "probabilities"])
@pytest.mark.parametrize("level", ["instance", "batch"])
def test_equals_the_definition(order: int, labels: int, inputs: str, level: str) -> None:
    # One row takes the Gram matrices of rows, as many rows as labels those of labels.
    for rows in (1, 2) if order == 6 and labels > 6 else (1, 2, labels):
        if rows == labels and order > 4:
            continue
        student, teacher = draw(rows, labels, seed=17 * order + labels)
        if inputs == "probabilities":
            student, teacher = student.sigmoid(), teacher.sigmoid()
        student.requires_grad_()
        teacher.requires_grad_()
        orders = {order: 0.75}
        p, q = (student.sigmoid(), teacher.sigmoid()) if inputs == "logits" else (student, teacher)
        expected = value_and_gradient(definition(p, q, orders, level), student, teacher)
        loss = multi_order_dependency_loss(student, teacher, orders=orders, level=level, inputs=inputs)
        actual = value_and_gradient(loss, student, teacher)
        assert relative_difference(actual[0], expected[0]) <= 1e-12
        assert relative_difference(actual[1], expected[1]) <= 1e-10
        assert relative_difference(actual[2], expected[2]) <= 1e-10


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5),
    labels=st.integers(4, 6),
    weights=st.dictionaries(st.integers(2, 4), st.just(0.0) | st.floats(1e-9, 5.0), min_size=1),
    level=st.sampled_from(["instance", "batch", "both"]),
    seed=st.integers(0, 10_000),
)
def test_random_orders_and_weights_equal_the_definition(
    rows: int, labels: int, weights: dict[int, float], level: str, seed: int
) -> None:
    student, teacher = (x.sigmoid().requires_grad_() for x in draw(rows, labels, seed))
    expected = value_and_gradient(definition(student, teacher, weights, level), student, teacher)
    loss = multi_order_dependency_loss(student, teacher, orders=weights, level=level, inputs="probabilities")
    actual = value_and_gradient(loss, student, teacher)
    assert relative_difference(actual[0], expected[0]) <= 1e-12
    assert relative_difference(actual[1], expected[1]) <= 1e-10
    assert relative_difference(actual[2], expected[2]) <= 1e-10


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("labels", [3, 9])
def test_agreement_costs_nothing_and_pulls_nowhere(level: str, labels: int) -> None:
    student, _ = draw(4, labels, seed=0)
    student.requires_grad_()
    loss = multi_order_dependency_loss(student, student.detach().clone(), orders=(2, 3), level=level)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.abs().max().item() == 0.0


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("labels", [20, 80, 1000])
@pytest.mark.parametrize("distance", [1e-7, 1e-6, 1e-3, 1.0])
def test_float32_keeps_small_differences(level: str, labels: int, distance: float) -> None:
    generator = torch.Generator().manual_seed(labels)
    teacher = torch.rand(16, labels, generator=generator)
    shift = distance * torch.randn(16, labels, generator=generator)
    student = (teacher + shift).clamp(0, 1).requires_grad_()
    exact = student.detach().double().requires_grad_()
    orders = (2, 3, 4, 5, 6)
    expected = value_and_gradient(
        multi_order_dependency_loss(exact, teacher.double(), orders=orders, level=level, inputs="probabilities"), exact
    )
    actual = value_and_gradient(
        multi_order_dependency_loss(student, teacher, orders=orders, level=level, inputs="probabilities"), student
    )
    assert actual[0].dtype == torch.float32
    assert relative_difference(actual[0].double(), expected[0]) <= 1e-5
    assert relative_difference(actual[1].double(), expected[1]) <= 1e-5


def test_square_of_sums_equals_the_definition_where_delta_allows() -> None:
    for rows, labels, level in itertools.product((1, 3), (4, 6), ("batch", "both")):
        student, teacher = (x.sigmoid().requires_grad_() for x in draw(rows, labels, seed=rows))
        orders = {2: 1.0, 3: 0.5, 4: 2.0}
        expected = reference.batch_loss(student, teacher, orders, delta=rows, batch_dependency="square_of_sums")
        if level == "both":
            expected = expected + reference.instance_loss(student, teacher, orders).mean()
        loss = multi_order_dependency_loss(
            student,
            teacher,
            orders=orders,
            level=level,
            delta=rows,
            batch_dependency="square_of_sums",
            inputs="probabilities",
        )
        for a, e in zip(
            value_and_gradient(loss, student, teacher), value_and_gradient(expected, student, teacher), strict=True
        ):
            assert relative_difference(a, e) <= 1e-10


shapes = st.tuples(st.integers(1, 6), st.integers(4, 9))
levels = st.sampled_from(["instance", "batch", "both"])
seeds = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, level=levels, seed=seeds)
def test_properties(shape: tuple[int, int], level: str, seed: int) -> None:
    student, teacher = draw(*shape, seed)
    generator = torch.Generator().manual_seed(seed)
    loss = MultiOrderDependencyLoss(level=level)
    value = loss(student, teacher)
    assert value >= 0
    close = {"rtol": 1e-11, "atol": 1e-16}
    labels = torch.randperm(shape[1], generator=generator)
    rows = torch.randperm(shape[0], generator=generator)
    torch.testing.assert_close(loss(student[:, labels], teacher[:, labels]), value, **close)
    torch.testing.assert_close(loss(student[rows], teacher[rows]), value, **close)
    torch.testing.assert_close(loss(teacher, student), value, **close)
    separate = sum(MultiOrderDependencyLoss([n], level=level)(student, teacher) for n in (2, 3, 4))
    torch.testing.assert_close(separate, value, **close)
    doubled = MultiOrderDependencyLoss({2: 2.0, 3: 2.0, 4: 2.0}, level=level)(student, teacher)
    torch.testing.assert_close(doubled, 2 * value, **close)
    labels_scale = MultiOrderDependencyLoss(level=level, normalization="labels")(student, teacher)
    torch.testing.assert_close(labels_scale, shape[1] * value, **close)
    if level == "instance":
        more = MultiOrderDependencyLoss(level=level, normalization="labels")(student.unsqueeze(1), teacher.unsqueeze(1))
        torch.testing.assert_close(more, labels_scale, **close)


@settings(max_examples=20, deadline=None)
@given(level=levels, order=st.sampled_from([5, 6]), labels=st.integers(6, 12), seed=seeds)
def test_orders_beyond_four_span_nothing_new(level: str, order: int, labels: int, seed: int) -> None:
    def losses(orders: tuple[int, ...], seed: int) -> list[float]:
        student, teacher = draw(5, labels, seed)
        return [MultiOrderDependencyLoss([n], level=level)(student, teacher).item() for n in orders]

    # The combination that holds on three pairs of inputs holds on a fourth.
    basis = np.array([losses((2, 3, 4), seed + k) for k in range(8)])
    target = np.array([losses((order,), seed + k)[0] for k in range(8)])
    combination, *_ = np.linalg.lstsq(basis[:5], target[:5], rcond=None)
    np.testing.assert_allclose(basis[5:] @ combination, target[5:], rtol=1e-9)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_reductions_over_instances_and_leading_dimensions(reduction: str) -> None:
    student, teacher = draw(6, 5, seed=3)
    per_instance = torch.stack(
        [multi_order_dependency_loss(s, t, level="instance") for s, t in zip(student, teacher, strict=True)]
    )
    expected = {
        "none": per_instance.reshape(2, 3),
        "mean": per_instance.mean(),
        "sum": per_instance.sum(),
        "batchmean": per_instance.mean(),
    }[reduction]
    actual = multi_order_dependency_loss(
        student.reshape(2, 3, 5), teacher.reshape(2, 3, 5), level="instance", reduction=reduction
    )
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0)


def test_reduction_leaves_the_batch_level_alone() -> None:
    student, teacher = draw(6, 5, seed=3)
    terms = {r: MultiOrderDependencyLoss(reduction=r).terms(student, teacher) for r in ("mean", "sum")}
    torch.testing.assert_close(terms["sum"]["instance"], 6 * terms["mean"]["instance"])
    assert terms["sum"]["batch"] == terms["mean"]["batch"]
    loss = MultiOrderDependencyLoss(reduction="sum")(student, teacher)
    assert loss == terms["sum"]["instance"] + terms["sum"]["batch"]


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("shape", [(3, 7), (7, 4)])
@pytest.mark.parametrize("inputs", ["logits", "probabilities"])
def test_first_and_second_derivatives(level: str, shape: tuple[int, int], inputs: str) -> None:
    student, teacher = draw(*shape, seed=1)
    if inputs == "probabilities":
        student, teacher = student.sigmoid(), teacher.sigmoid()
    arguments = (student.requires_grad_(), teacher.requires_grad_())

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return multi_order_dependency_loss(s, t, level=level, inputs=inputs)

    assert torch.autograd.gradcheck(loss, arguments)
    assert torch.autograd.gradgradcheck(loss, arguments)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("shape", [(3, 7), (7, 4)])
def test_function_transforms(level: str, shape: tuple[int, int]) -> None:
    student, teacher = draw(*shape, seed=2)
    loss = MultiOrderDependencyLoss(level=level)
    leaf = student.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, teacher), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(student, teacher), expected, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(torch.func.jacrev(loss)(student, teacher), expected, rtol=1e-12, atol=1e-16)

    stacked = torch.stack([student, student.flip(0), student + 1])
    mapped = torch.func.vmap(loss, in_dims=(0, None))(stacked, teacher)
    torch.testing.assert_close(mapped, torch.stack([loss(s, teacher) for s in stacked]), rtol=1e-12, atol=1e-16)
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, teacher)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-12, atol=1e-16)

    by_functions = torch.func.jacrev(torch.func.grad(loss))(student, teacher)
    by_autograd = torch.autograd.functional.hessian(lambda s: loss(s, teacher), student)
    torch.testing.assert_close(by_functions, by_autograd, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_compiles_to_one_graph_for_all_batch_sizes(level: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    loss = MultiOrderDependencyLoss(level=level)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for rows in (2, 3, 5, 8):
        student, teacher = draw(rows, 12, seed=rows)
        student.requires_grad_()
        expected = value_and_gradient(loss(student, teacher), student)
        actual = value_and_gradient(compiled(student, teacher), student)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-16)
        graphs.append(counter.frame_count)
    assert graphs == [graphs[0]] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_half_precision_is_only_a_format(dtype: torch.dtype, level: str) -> None:
    student, teacher = (x.to(dtype) for x in draw(5, 30, seed=4))
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    loss = MultiOrderDependencyLoss(level=level)
    value, gradient = value_and_gradient(loss(student, teacher), student)
    expected, expected_gradient = value_and_gradient(loss(exact, teacher.double()), exact)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    # The gradient is rounded to the student's dtype once, at the end.
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_autocast_changes_nothing(level: str) -> None:
    student, teacher = (x.float() for x in draw(6, 40, seed=5))
    loss = MultiOrderDependencyLoss(level=level)
    expected = loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student, teacher) == expected
        gradient = torch.func.grad(loss)(student, teacher)
    torch.testing.assert_close(gradient, torch.func.grad(loss)(student, teacher), rtol=0, atol=0)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits(level: str, dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, 1e30)
    values = torch.tensor([0.0, 1e-7, -1e-7, 20.0, -20.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, largest, -largest])
    student = values.to(dtype).repeat(3, 1).requires_grad_()
    teacher = values.flip(0).to(dtype).repeat(3, 1)
    value, gradient = value_and_gradient(multi_order_dependency_loss(student, teacher, level=level), student)
    exact = student.detach().double().requires_grad_()
    expected, _ = value_and_gradient(multi_order_dependency_loss(exact, teacher.double(), level=level), exact)
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_an_empty_batch_gives_zero(level: str) -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    loss = multi_order_dependency_loss(student, torch.zeros(0, 5), level=level)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.shape == (0, 5)


def test_layouts_are_read_and_inputs_left_alone() -> None:
    student, teacher = draw(4, 6, seed=6)
    loss = MultiOrderDependencyLoss()
    expected = loss(student, teacher)
    before = student.clone()
    strided = student.repeat_interleave(2, dim=1)[:, ::2]
    transposed = teacher.T.contiguous().T
    torch.testing.assert_close(loss(strided, transposed), expected, rtol=1e-14, atol=0)
    expanded = student[:1].expand(4, 6)
    torch.testing.assert_close(loss(expanded, teacher), loss(expanded.clone(), teacher), rtol=1e-14, atol=0)
    assert torch.equal(student, before)


def test_gradient_is_asked_of_one_side_only() -> None:
    student, teacher = draw(4, 6, seed=6)
    teacher.requires_grad_()
    loss = MultiOrderDependencyLoss()
    (to_teacher,) = torch.autograd.grad(loss(student, teacher), teacher)
    student.requires_grad_()
    _, both = torch.autograd.grad(loss(student, teacher), (student, teacher))
    torch.testing.assert_close(to_teacher, both, rtol=1e-13, atol=0)


def test_no_labels_by_labels_matrix_and_a_million_labels() -> None:
    # float32 (B, C) takes 8 MB here; a (C, C) matrix would take 160 GB.
    student = torch.randn(10, 200_000, requires_grad=True)
    loss = multi_order_dependency_loss(student, torch.randn(10, 200_000), orders=(2, 3, 4, 5, 6))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


STUDENT = torch.zeros(3, 4)
META, OF_CPU = STUDENT.to("meta"), torch.Generator()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"^orders: expected orders of at most 4.*order 5", lambda: _call(orders=(2, 5))),
        (ValueError, r"^orders: .*>= 2.*got 1", lambda: _call(orders=(1, 2))),
        (ValueError, r"^orders: expected at least one order", lambda: _call(orders=())),
        (ValueError, r"^orders: .*each order once", lambda: _call(orders=(2, 2))),
        (TypeError, r"^orders: .*2\.5", lambda: _call(orders=(2.5,))),
        (TypeError, r"^orders: .*True", lambda: _call(orders=(True,))),
        (TypeError, r"^orders: ", lambda: _call(orders=3)),
        (TypeError, r"^orders: ", lambda: _call(orders="23")),
        (ValueError, r"^orders\[3\]: .*-0\.5", lambda: _call(orders={2: 1.0, 3: -0.5})),
        (ValueError, r"^orders\[2\]: .*nan", lambda: _call(orders={2: math.nan})),
        (ValueError, r"^orders\[2\]: .*inf", lambda: _call(orders={2: math.inf})),
        (TypeError, r"^orders\[2\]: ", lambda: _call(orders={2: "1"})),
        (ValueError, r"^delta: .*got 0", lambda: _call(delta=0)),
        (ValueError, r"^delta: .*got -1", lambda: _call(delta=-1.0)),
        (ValueError, r"^delta: .*nan", lambda: _call(delta=math.nan)),
        (ValueError, r"^backend: .*'cuda'", lambda: _call(backend="cuda")),
        (ValueError, r"^level: .*'row'", lambda: _call(level="row")),
        (ValueError, r"^reduction: .*'max'", lambda: _call(reduction="max")),
        (ValueError, r"^reduction: .*'none'", lambda: _call(reduction="none", level="batch")),
        (ValueError, r"^reduction: .*'none'", lambda: _call(reduction="none", level="both")),
        (ValueError, r"^normalization: ", lambda: _call(normalization="pairs")),
        (ValueError, r"^inputs: ", lambda: _call(inputs="odds")),
        (ValueError, r"^batch_dependency: ", lambda: _call(batch_dependency="mean")),
        (TypeError, r"^student: .*torch.int64", lambda: multi_order_dependency_loss(STUDENT.long(), STUDENT)),
        (TypeError, r"^teacher: .*torch.int64", lambda: multi_order_dependency_loss(STUDENT, STUDENT.long())),
        (TypeError, r"^student: .*list", lambda: multi_order_dependency_loss([[0.0]], STUDENT)),
        (ValueError, r"^teacher: .*\(3, 4\).*\(3, 5\)", lambda: _call(teacher=torch.zeros(3, 5))),
        (ValueError, r"^teacher: .*device", lambda: _call(teacher=STUDENT.to("meta"))),
        (ValueError, "^generator: .*meta.*cpu", lambda: multi_order_dependency_loss(META, META, generator=OF_CPU)),
        (ValueError, r"^student: .*\(B, C\)", lambda: multi_order_dependency_loss(STUDENT[None], STUDENT[None])),
        (ValueError, r"^student: .*dimension", lambda: multi_order_dependency_loss(STUDENT[0, 0], STUDENT[0, 0])),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


def _call(teacher: Tensor = STUDENT, **keywords: object) -> Tensor:
    return multi_order_dependency_loss(STUDENT, teacher, **keywords)
