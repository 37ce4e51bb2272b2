"""S2S against the paper's sums, its limits, and what PyTorch asks of a loss."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mlcorr.functional import sample_contrastive_loss
from mlcorr.ops.contrast import select_backend
from tests.losses.compilers import need_compiler
from tests.reference import contrast as reference

TEMPERATURES = [0.01, 0.2, 1.0]
BACKENDS = ["streamed", "streamed_triton"]


def draw(
    anchors: int, keys: int, *, labels: int = 3, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors and their labels, −1 among them, then keys and theirs."""
    generator = torch.Generator().manual_seed(seed)
    x, more = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (anchors, keys))
    of, of_more = (torch.randint(-1, labels, (n,), generator=generator) for n in (anchors, keys))
    return x.to(dtype).requires_grad_(), of, more.to(dtype).requires_grad_(), of_more


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@settings(max_examples=120, deadline=None)
@given(
    anchors=st.integers(0, 9),
    keys=st.integers(0, 7),
    labels=st.sampled_from([1, 3, 8]),
    by_sums=st.booleans(),
    block_size=st.sampled_from([1, 2, 3, 100]),
    temperature=st.sampled_from(TEMPERATURES),
    twins=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(
    anchors: int, keys: int, labels: int, by_sums: bool, block_size: int, temperature: float, twins: bool, seed: int
) -> None:
    x, of, more, of_more = draw(anchors, keys, labels=labels, seed=seed)
    if twins and anchors > 1:
        with torch.no_grad():
            x[0] = x[-1]  # a duplicate is a key like any other
            more[:1] = x[-1]
    actual = sample_contrastive_loss(
        x, of, keys=more, key_labels=of_more, num_labels=labels if by_sums else None,
        temperature=temperature, block_size=block_size,
    )  # fmt: skip
    expected = reference.sample_contrastive(x, of, more, of_more, temperature) + 0 * more.sum()
    # Of a float64 similarity of 1 / temperature, the last digit.
    assert_same(
        value_and_gradients(actual, x, more), value_and_gradients(expected, x, more), 1e-12 * max(1, 0.01 / temperature)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_labels", [None, 2])
def test_equals_the_value_worked_out_by_hand(backend: str, num_labels: int | None) -> None:
    x, labels, value = reference.by_hand()
    loss = sample_contrastive_loss(x, labels, num_labels=num_labels, temperature=1.0, backend=backend)
    assert loss.item() == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_vectors_cost_the_logarithm_of_the_number_of_other_keys(backend: str) -> None:
    x = torch.ones(6, 5, dtype=torch.float64)
    loss = sample_contrastive_loss(
        x, torch.tensor([0, 0, 1, 1, 2, 2]), keys=x[:3], key_labels=torch.tensor([0, 1, -1]), backend=backend
    )
    assert loss.item() == pytest.approx(math.log(6 + 2 - 1), abs=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("labels", "key_labels"),
    [([], []), ([], [0]), ([0], []), ([0, 1, 2], [-1]), ([-1, -1], [0, 1]), ([0, 1], [2, -1])],
    ids=["nothing", "keys alone", "one anchor", "no positive", "padding alone", "no positive among keys"],
)
def test_without_a_positive_there_is_no_loss_and_no_gradient(
    labels: list[int], key_labels: list[int], backend: str
) -> None:
    x, keys = (torch.randn(len(of), 3, requires_grad=True) for of in (labels, key_labels))
    loss = sample_contrastive_loss(
        x, torch.tensor(labels, dtype=torch.int64), keys=keys, key_labels=torch.tensor(key_labels, dtype=torch.int64),
        backend=backend,
    )  # fmt: skip
    value, *gradients = value_and_gradients(loss, x, keys)
    assert value.item() == 0.0
    assert all(not gradient.any() for gradient in gradients)


def test_an_anchor_whose_positives_are_keys_alone() -> None:
    x, keys = torch.randn(1, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, dtype=torch.float64)
    loss = sample_contrastive_loss(x, torch.tensor([4]), keys=keys, key_labels=torch.tensor([4, 0]))
    assert loss.item() == pytest.approx(
        reference.sample_contrastive(x, torch.tensor([4]), keys, torch.tensor([4, 0]), 0.2).item(), rel=1e-13
    )


@pytest.mark.parametrize("num_labels", [None, 3])
def test_padding_is_as_if_it_were_not_there_whatever_it_holds(num_labels: int | None) -> None:
    x, labels, keys, key_labels = draw(9, 6)
    held, kept = labels >= 0, key_labels >= 0
    with torch.no_grad():
        x[~held] = torch.nan
        keys[~kept] = torch.inf
    assert 0 < held.sum() < 9
    assert 0 < kept.sum() < 6
    loss = sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, num_labels=num_labels)
    value, of_x, of_keys = value_and_gradients(loss, x, keys)
    without = [t.detach().requires_grad_() for t in (x[held], keys[kept])]
    expected = sample_contrastive_loss(
        without[0], labels[held], keys=without[1], key_labels=key_labels[kept], num_labels=num_labels
    )
    assert_same([value, of_x[held], of_keys[kept]], value_and_gradients(expected, *without))
    assert not of_x[~held].any()
    assert not of_keys[~kept].any()


def test_labels_beyond_their_number_are_padding() -> None:
    x, labels, _, _ = draw(8, 0)
    loss = sample_contrastive_loss(x, torch.where(labels == 2, 7, labels), num_labels=2)
    torch.testing.assert_close(loss, sample_contrastive_loss(x, torch.where(labels == 2, -1, labels)))


def test_lengths_orders_and_names_of_labels_do_not_matter() -> None:
    x, labels, keys, key_labels = draw(8, 5)
    given = {"keys": keys, "key_labels": key_labels}
    loss = sample_contrastive_loss(x, labels, **given)
    lengths = torch.rand(8, 1, dtype=torch.float64) * 100 + 0.01
    torch.testing.assert_close(sample_contrastive_loss(x * lengths, labels, **given), loss)
    order = torch.randperm(8)
    torch.testing.assert_close(sample_contrastive_loss(x[order], labels[order], **given), loss)
    names = torch.tensor([17, 4, 2, -1])
    renamed = sample_contrastive_loss(x, names[labels], keys=keys, key_labels=names[key_labels])
    torch.testing.assert_close(renamed, loss)


@pytest.mark.parametrize("num_labels", [None, 3])
def test_first_and_second_derivatives(num_labels: int | None) -> None:
    x, labels, keys, key_labels = draw(6, 4, seed=3)

    def loss(x: Tensor, keys: Tensor) -> Tensor:
        return sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, num_labels=num_labels, block_size=3)

    assert torch.autograd.gradcheck(loss, (x, keys))
    assert torch.autograd.gradgradcheck(loss, (x, keys))
    assert torch.autograd.gradcheck(lambda x: loss(x, keys.detach()), (x,))
    assert torch.autograd.gradcheck(lambda keys: loss(x.detach(), keys), (keys,))


def test_transforms_of_functions() -> None:
    x, labels, keys, key_labels = draw(5, 4)

    def loss(x: Tensor) -> Tensor:
        return sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels)

    both = torch.stack([x, 1 - x]).detach()
    torch.testing.assert_close(torch.func.vmap(loss)(both), torch.stack([loss(each) for each in both]))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(loss))(both), torch.stack([torch.func.grad(loss)(each) for each in both])
    )
    hessian = torch.func.jacrev(torch.func.grad(loss))(x.detach())
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(loss, x.detach()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_half_precision_is_only_a_format_to_come_in(dtype: torch.dtype, temperature: float) -> None:
    x, labels, keys, key_labels = draw(9, 5, dtype=dtype)
    loss = sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, temperature=temperature)
    assert loss.dtype == torch.float32
    value, of_x, of_keys = value_and_gradients(loss, x, keys)
    assert (of_x.dtype, of_keys.dtype) == (dtype, dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, keys)]
    expected = value_and_gradients(
        sample_contrastive_loss(exact[0], labels, keys=exact[1], key_labels=key_labels, temperature=temperature), *exact
    )
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=1e-5)
    for actual, truth in zip((of_x, of_keys), expected[1:], strict=True):
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(actual.double(), truth, rtol=2 * epsilon, atol=2 * epsilon)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    x, labels, keys, key_labels = draw(20, 9, dim=64, dtype=torch.float32)
    outside = value_and_gradients(
        sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, num_labels=3), x, keys
    )
    with torch.autocast("cpu", dtype=dtype):
        inside = sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, num_labels=3)
    for a, b in zip(value_and_gradients(inside, x, keys), outside, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_labels", [None, 2])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e4, "largest"])
def test_vectors_of_any_size_give_finite_gradients(
    size: float | str, dtype: torch.dtype, temperature: float, num_labels: int | None
) -> None:
    torch.manual_seed(0)
    scale = torch.finfo(dtype).max if size == "largest" else size
    x = (torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=dtype) * scale).requires_grad_()
    loss = sample_contrastive_loss(x, torch.tensor([0, 0, 1, 1]), num_labels=num_labels, temperature=temperature)
    exact = x.detach().double().requires_grad_()
    truth = sample_contrastive_loss(exact, torch.tensor([0, 0, 1, 1]), temperature=temperature)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()
    (of_truth,) = torch.autograd.grad(truth, exact)
    limit = torch.finfo(dtype).max
    epsilon = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(
        gradient.double(), of_truth.clamp(-limit, limit), rtol=4 * epsilon, atol=epsilon * of_truth.abs().max().item()
    )


def test_a_gradient_scaler_sees_what_float16_cannot_hold() -> None:
    x, labels, _, _ = draw(8, 0, dim=64, dtype=torch.float16)
    exact = x.detach().double().requires_grad_()
    for scale in (1.0, 2.0**16, 2.0**24):
        (actual,) = torch.autograd.grad(100 * sample_contrastive_loss(x, labels) * scale, x)
        (truth,) = torch.autograd.grad(100 * sample_contrastive_loss(exact, labels) * scale, exact)
        torch.testing.assert_close(actual, truth.half(), rtol=2e-3, atol=1e-3 * scale)
    assert not actual.isfinite().all()


@pytest.mark.parametrize("num_labels", [None, 3])
def test_a_zero_vector_has_finite_second_derivatives(num_labels: int | None) -> None:
    x, labels, _, _ = draw(5, 0)
    x = torch.cat([x.detach(), torch.zeros(1, 4, dtype=torch.float64)])
    labels = torch.cat([labels, torch.tensor([0])])

    def loss(x: Tensor) -> Tensor:
        return sample_contrastive_loss(x, labels, num_labels=num_labels)

    assert torch.func.jacrev(torch.func.grad(loss))(x).isfinite().all()


def test_a_backward_pass_in_autocast_is_not_rounded() -> None:
    x, labels, keys, key_labels = draw(20, 9, dim=64, dtype=torch.float32)

    def gradients() -> tuple[Tensor, ...]:
        loss = sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, num_labels=3)
        return torch.autograd.grad(loss, (x, keys))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients()
    assert all(torch.equal(a, b) for a, b in zip(inside, gradients(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lowest_temperature_has_finite_gradients(dtype: torch.dtype, backend: str) -> None:
    """A similarity of 1e12 rounds to another number where row and column change places."""
    for seed in range(4):
        x, labels, keys, key_labels = draw(12, 5, seed=seed, dtype=dtype)
        loss = sample_contrastive_loss(
            x, labels, keys=keys, key_labels=key_labels, temperature=1e-12, block_size=7, backend=backend
        )
        assert all(each.isfinite().all() for each in value_and_gradients(loss, x, keys))


def test_wrong_signs_at_a_low_temperature_keep_their_digits() -> None:
    # All similarities are −100: a sum of exponentials shifted by the largest possible one, 100, would be 0.
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    keys, labels = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    loss = sample_contrastive_loss(x, torch.tensor([0]), keys=keys, key_labels=labels, temperature=0.01)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(backend: str) -> None:
    need_compiler(backend)
    x, labels, keys, key_labels = draw(9, 5, dtype=torch.float32)

    def loss(x: Tensor, keys: Tensor) -> Tensor:
        return sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, num_labels=3)

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    expected = value_and_gradients(loss(x, keys), x, keys)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = compiled(x, keys)
        for a, e in zip(value_and_gradients(value, x, keys), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_layouts_and_inputs_are_left_alone() -> None:
    x, labels, keys, key_labels = draw(8, 6)
    wide = torch.zeros(4, 16, dtype=torch.float64)
    wide[:, ::2] = x.detach().T
    view = wide.T[::2].requires_grad_()
    assert not view.is_contiguous()
    expected = value_and_gradients(sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels), x)
    before = view.detach().clone()
    actual = sample_contrastive_loss(view, labels.int(), keys=keys, key_labels=key_labels.to(torch.int8))
    assert_same(value_and_gradients(actual, view), expected)
    assert torch.equal(view.detach(), before)


def test_no_matrix_of_all_similarities_is_ever_held() -> None:
    x, labels, keys, key_labels = draw(600, 900, dim=8, dtype=torch.float32)

    def largest(block_size: int) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            sample_contrastive_loss(
                x, labels, keys=keys, key_labels=key_labels, num_labels=3, block_size=block_size
            ).backward()
        return max(event.self_cpu_memory_usage for event in profiler.events())

    assert largest(60) < 4 * 600 * 60  # a matrix of 600×600 is a hundred times a block
    assert largest(5000) >= 4 * 600 * 600  # what the measure sees where blocks are as large


def test_the_ladder_of_backends() -> None:
    assert select_backend(device="cpu").backend == "streamed"
    assert select_backend(device="cpu", backend="streamed").reason == "backend='streamed' was asked for"
    with pytest.raises(ValueError, match="backend: expected one of 'auto', 'streamed', 'streamed_triton', got 'fast'"):
        select_backend(backend="fast")


X, LABELS = torch.randn(3, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (([1.0], LABELS), {}, TypeError, "x: expected a torch.Tensor, got list"),
        ((X.long(), LABELS), {}, TypeError, "x: expected a floating-point tensor, got torch.int64"),
        ((X[0], LABELS), {}, ValueError, "x: expected at least 2 dimension"),
        ((X[None], LABELS), {}, ValueError, r"x: expected the shape \(rows, D\) with D >= 1, got \(1, 3, 4\)"),
        ((X.to_sparse(), LABELS), {}, TypeError, "x: expected a dense tensor, got torch.sparse_coo"),
        ((X[:, :0], LABELS), {}, ValueError, r"x: expected the shape \(rows, D\) with D >= 1, got \(3, 0\)"),
        ((X, LABELS.float()), {}, TypeError, "labels: expected a tensor of integers, got torch.float32"),
        ((X, LABELS > 0), {}, TypeError, "labels: expected a tensor of integers, got torch.bool"),
        ((X, LABELS[:2]), {}, ValueError, r"labels: expected the shape \(3,\) of x, got \(2,\)"),
        ((X, LABELS.to("meta")), {}, ValueError, "labels: expected the device of x, cpu, got meta"),
        ((X, LABELS), {"keys": X}, ValueError, "key_labels: expected a tensor"),
        ((X, LABELS), {"key_labels": LABELS}, ValueError, "keys: expected a tensor"),
        ((X, LABELS), {"keys": X[:, :2], "key_labels": LABELS}, ValueError, "keys: expected vectors of x's dimension"),
        ((X, LABELS), {"keys": X, "key_labels": LABELS[:1]}, ValueError, "key_labels: expected the shape"),
        ((X, LABELS), {"keys": X.to("meta"), "key_labels": LABELS.to("meta")}, ValueError, "keys: expected the device"),
        ((X, LABELS), {"num_labels": 0}, ValueError, "num_labels: expected an integer >= 1, got 0"),
        ((X, LABELS), {"num_labels": 2.0}, TypeError, "num_labels: expected an integer"),
        ((X, LABELS), {"temperature": 0}, ValueError, "temperature: expected a number >= 1e-12, got 0"),
        ((X, LABELS), {"temperature": "cold"}, TypeError, "temperature: expected a number"),
        ((X, LABELS), {"block_size": 0}, ValueError, "block_size: expected an integer >= 1, got 0"),
        ((X, LABELS), {"backend": "fast"}, ValueError, "backend: expected one of"),
    ],
)
def test_bad_arguments(
    arguments: tuple[object, ...], keywords: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sample_contrastive_loss(*arguments, **keywords)


@pytest.mark.parametrize("temperature", [1 / 29, 1 / 31])  # each side of where a running maximum becomes needed
def test_similarities_as_wide_as_can_be_keep_their_digits(temperature: float) -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1e-3], [-1.0, 1e-3]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1])
    loss = sample_contrastive_loss(x, labels, temperature=temperature) * 2.0**24
    exact = x.detach().double().requires_grad_()
    truth = sample_contrastive_loss(exact, labels, temperature=temperature) * 2.0**24
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0.0)
    (actual,), (expected,) = torch.autograd.grad(loss, x), torch.autograd.grad(truth, exact)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("block_size", [16, 1024])
@pytest.mark.parametrize("temperature", [1e-12, 1e-9, 1e-6])
def test_gradients_of_a_low_temperature_are_those_of_the_log_sum_exp(temperature: float, block_size: int) -> None:
    """A similarity and the one the other way round differ by more than 1 when rounded."""
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 3

    def gradient(x: Tensor) -> Tensor:
        x = x.requires_grad_()
        loss = sample_contrastive_loss(x, labels, temperature=temperature, block_size=block_size)
        return torch.autograd.grad(loss, x)[0].double()

    expected = gradient(x.double())
    assert (gradient(x) - expected).abs().max() <= 2e-6 * expected.abs().max()
