"""P2S against the paper's sums, its limits, and what PyTorch asks of a loss."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr.functional import prototype_contrastive_loss
from mlcorr.losses.prototype_contrastive import ClassTerms, class_terms, of_classes, of_ranks
from tests.losses.compilers import need_compiler
from tests.reference import contrast as reference

NORMALIZATIONS = ["positives", "classes", "sum"]


def draw(
    batch: int, labels: int = 3, *, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, labels, dim, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(labels, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 2, (batch, labels), generator=generator)
    return z.to(dtype).requires_grad_(), prototypes.to(dtype).requires_grad_(), targets


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(0, 6),
    labels=st.integers(1, 4),
    temperature=st.sampled_from([0.01, 0.07, 1.0]),
    normalize_by=st.sampled_from(NORMALIZATIONS),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(batch: int, labels: int, temperature: float, normalize_by: str, seed: int) -> None:
    z, prototypes, targets = draw(batch, labels, seed=seed)
    actual = prototype_contrastive_loss(z, prototypes, targets, temperature=temperature, normalize_by=normalize_by)
    expected = reference.prototype_contrastive(z, prototypes, targets, temperature, normalize_by)
    for a, e in zip(
        value_and_gradients(actual, z, prototypes), value_and_gradients(expected, z, prototypes), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12 * max(1, 0.01 / temperature))


def test_identical_features_cost_the_logarithm_of_known_over_positive() -> None:
    z, prototypes = torch.ones(5, 3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    targets = torch.tensor([[1, 1, 0], [0, 1, 0], [0, -1, 0], [0, -1, -1], [-1, -1, 0]])
    loss = prototype_contrastive_loss(z, prototypes, targets, normalize_by="sum")
    # 4 known and 1 positive; 2 and 2, which costs nothing; no positive, which is left out.
    assert loss.item() == pytest.approx(math.log(4), abs=1e-14)
    assert prototype_contrastive_loss(z, prototypes, targets).item() == pytest.approx(math.log(4) / 3, abs=1e-14)
    by_classes = prototype_contrastive_loss(z, prototypes, targets, normalize_by="classes")
    assert by_classes.item() == pytest.approx(math.log(4) / 2, abs=1e-14)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_is_never_negative(seed: int) -> None:
    z, prototypes, targets = draw(5, seed=seed, dtype=torch.float32)
    assert prototype_contrastive_loss(z, prototypes, targets).item() >= 0


def test_classes_without_a_positive_change_nothing() -> None:
    z, prototypes, targets = draw(6)
    loss = prototype_contrastive_loss(z, prototypes, targets)
    wider = [torch.cat([t, t], dim=d) for t, d in ((z, 1), (prototypes, 0))]
    empty = torch.cat([targets, targets.clamp(max=0)], dim=1)
    torch.testing.assert_close(prototype_contrastive_loss(*wider, empty), loss)


@pytest.mark.parametrize("normalize_by", NORMALIZATIONS)
@pytest.mark.parametrize("target", [-1, 0])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_without_a_positive_there_is_no_loss_and_no_gradient(batch: int, target: int, normalize_by: str) -> None:
    z, prototypes, targets = draw(batch, dtype=torch.float16)
    loss = prototype_contrastive_loss(z, prototypes, torch.full_like(targets, target), normalize_by=normalize_by)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (z, prototypes)))


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.float16, torch.float64])
def test_what_is_neither_0_nor_1_is_as_if_it_were_not_there(kind: torch.dtype) -> None:
    z, prototypes, targets = draw(6)
    of = targets.to(kind)
    if kind.is_floating_point:
        of[of < 0] = 0.4
    unknown = targets < 0
    with torch.no_grad():
        z[unknown] = torch.nan
    loss, of_z, _ = value_and_gradients(prototype_contrastive_loss(z, prototypes, of), z, prototypes)
    expected = 0.0
    for j in range(3):
        known = ~unknown[:, j]
        column = prototype_contrastive_loss(
            z[known, j : j + 1], prototypes[j : j + 1], targets[known, j : j + 1], normalize_by="sum"
        )
        expected = expected + column.detach() / (targets == 1).sum()
    torch.testing.assert_close(loss, expected)
    assert not of_z[unknown].any()


def test_boolean_and_unsigned_targets_are_all_known() -> None:
    z, prototypes, targets = draw(6)
    signed = targets.clamp(min=0)
    expected = prototype_contrastive_loss(z, prototypes, signed)
    assert torch.equal(prototype_contrastive_loss(z, prototypes, signed.bool()), expected)
    assert torch.equal(prototype_contrastive_loss(z, prototypes, signed.to(torch.uint8)), expected)


def test_lengths_do_not_matter() -> None:
    z, prototypes, targets = draw(6)
    loss = prototype_contrastive_loss(z, prototypes, targets)
    lengths = torch.rand(6, 3, 1, dtype=torch.float64) * 100 + 0.01
    torch.testing.assert_close(prototype_contrastive_loss(z * lengths, prototypes * lengths[0], targets), loss)


def test_first_and_second_derivatives_and_transforms() -> None:
    z, prototypes, targets = draw(4)

    def loss(z: Tensor, prototypes: Tensor) -> Tensor:
        return prototype_contrastive_loss(z, prototypes, targets)

    assert torch.autograd.gradcheck(loss, (z, prototypes))
    assert torch.autograd.gradgradcheck(loss, (z, prototypes))
    both = torch.stack([z, 1 - z]).detach()
    of = torch.func.vmap(torch.func.grad(loss), (0, None))(both, prototypes.detach())
    torch.testing.assert_close(of[1], torch.func.grad(loss)(both[1], prototypes.detach()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1.0, 1e4])
def test_low_precision_against_the_truth(size: float, dtype: torch.dtype) -> None:
    z, prototypes, targets = draw(6)
    z, prototypes = ((t.detach() * size).to(dtype).requires_grad_() for t in (z, prototypes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = prototype_contrastive_loss(z, prototypes, targets)
    assert loss.dtype == torch.float32
    exact = [t.detach().double().requires_grad_() for t in (z, prototypes)]
    truth = prototype_contrastive_loss(*exact, targets)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    limit, epsilon = torch.finfo(dtype).max, max(2 * torch.finfo(dtype).eps, 1e-5)
    for actual, of_truth in zip(
        torch.autograd.grad(loss, (z, prototypes)), torch.autograd.grad(truth, exact), strict=True
    ):
        assert actual.dtype == dtype
        scale = of_truth.abs().max().item()
        torch.testing.assert_close(
            actual.double(), of_truth.clamp(-limit, limit), rtol=epsilon, atol=max(epsilon * scale, 1e-7)
        )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph_in_autocast_and_out_of_it(backend: str) -> None:
    need_compiler(backend)
    z, prototypes, targets = draw(6, dim=64, dtype=torch.float32)
    compiled = torch.compile(prototype_contrastive_loss, fullgraph=True, backend=backend)
    expected = value_and_gradients(prototype_contrastive_loss(z, prototypes, targets), z, prototypes)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = compiled(z, prototypes, targets)
        for a, e in zip(value_and_gradients(value, z, prototypes), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_a_zero_vector_has_finite_second_derivatives() -> None:
    z, prototypes, targets = draw(4)
    with torch.no_grad():
        z[0] = 0.0
    hessian = torch.func.jacrev(torch.func.grad(prototype_contrastive_loss))(z.detach(), prototypes.detach(), targets)
    assert hessian.isfinite().all()


def test_terms_of_parts_are_those_of_the_whole() -> None:
    z, prototypes, targets = draw(6)
    targets[:, 1] = -1  # nothing is known anywhere of one class
    targets[:3, 2] = 0
    whole = class_terms(z, prototypes, targets, 0.07)
    parts = [class_terms(z[part], prototypes, targets[part], 0.07) for part in (slice(0, 3), slice(3, 6))]
    joined = of_ranks(ClassTerms(*(torch.stack(each) for each in zip(*parts, strict=True))))
    for a, e in zip(joined, whole, strict=True):
        torch.testing.assert_close(a, e)
    found, expected = (of_classes(terms)[0] for terms in (joined, whole))
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))
    with torch.no_grad():
        z[5] = torch.nan
    targets[5] = 1
    parts = [class_terms(z[part], prototypes, targets[part], 0.07) for part in (slice(0, 3), slice(3, 6))]
    joined = of_ranks(ClassTerms(*(torch.stack(each) for each in zip(*parts, strict=True))))
    assert of_classes(joined)[0].isnan()


Z, C, Y = torch.randn(2, 3, 4), torch.randn(3, 4), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((Z[0], C, Y), {}, ValueError, "z: expected at least 3 dimension"),
        ((Z[None], C, Y), {}, ValueError, r"z: expected the shape \(B, L, D\) with D >= 1"),
        ((Z[..., :0], C[:, :0], Y), {}, ValueError, r"z: expected the shape \(B, L, D\) with D >= 1"),
        ((Z.to_sparse(), C, Y), {}, TypeError, "z: expected a dense tensor, got torch.sparse_coo"),
        ((Z.int(), C, Y), {}, TypeError, "z: expected a floating-point tensor"),
        ((Z, C[:2], Y), {}, ValueError, r"prototypes: expected the shape \(L, D\) of z, \(3, 4\), got \(2, 4\)"),
        ((Z, C.int(), Y), {}, TypeError, "prototypes: expected a floating-point tensor"),
        ((Z, C.to("meta"), Y), {}, ValueError, "prototypes: expected the device of z"),
        ((Z, C, Y[:1]), {}, ValueError, "targets: expected the shape of z without its last dimension"),
        ((Z, C, Y + 1j), {}, TypeError, "targets: expected a bool, integer or floating-point tensor"),
        ((Z, C, None), {}, TypeError, "targets: expected a torch.Tensor, got NoneType"),
        ((Z, C, Y), {"temperature": -1.0}, ValueError, "temperature: expected a number >= 1e-12"),
        ((Z, C, Y), {"normalize_by": "mean"}, ValueError, "normalize_by: expected one of"),
    ],
)
def test_bad_arguments(
    arguments: tuple[object, ...], keywords: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prototype_contrastive_loss(*arguments, **keywords)
