"""The kernel that enumerates label sequences, against the definition and against its form in PyTorch.

Triton's interpreter takes milliseconds for a step of the kernel: there, the matrices are small and the programs few.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mlcorr.ops.norder import enumeration, enumeration_triton
from tests.reference import norder as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ORDERS = (2, 3, 4, 5, 6)
DELTAS = (0.1, 0.5, inf)
# As many labels as are worth their time.
LABELS = {2: 8, 3: 8, 4: 8, 5: 6, 6: 6}

each_order = pytest.mark.parametrize("order", ORDERS)
low_orders = pytest.mark.parametrize("order", [2, 3, 4])
kernel_orders = pytest.mark.parametrize("order", [3, 4, 5])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(enumeration_triton, "_PROGRAMS", 8)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill whatever is allocated without a value, with NaN."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def draw(matrices: int, labels: int, seed: int = 0) -> Tensor:
    """Symmetric matrices with entries in [−1, 1] and a diagonal of zeros."""
    generator = torch.Generator().manual_seed(seed)
    upper = (2 * torch.rand(matrices, labels, labels, dtype=torch.float64, generator=generator) - 1).triu(1)
    return upper + upper.mT


def draw_mask(matrices: int, labels: int, seed: int = 0) -> Tensor:
    return torch.rand(matrices, labels, generator=torch.Generator().manual_seed(seed)) < 0.8


def run(differences: Tensor, order: int, delta: float, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    valid = None if valid is None else valid.to(DEVICE)
    loss, gradient = enumeration_triton.measure(differences.to(DEVICE), valid, order, delta)
    return loss.cpu(), gradient.cpu()


def definition(differences: Tensor, order: int, delta: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in a pair's two entries alike."""
    if valid is None:
        valid = torch.ones(differences.shape[:2], dtype=torch.bool)
    differences = differences.clone().requires_grad_()
    loss = reference.order_losses(differences, order, delta, valid)
    if not loss.requires_grad:
        return loss, torch.zeros_like(differences)
    (gradient,) = torch.autograd.grad(loss.sum(), differences)
    return loss.detach(), (gradient + gradient.mT) / 2


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-14) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=0)


@each_order
def test_equals_the_definition(order: int) -> None:
    for labels in range(order - 1, LABELS[order] + 1):
        differences, delta = draw(1, labels, seed=labels), DELTAS[labels % len(DELTAS)]
        expected = definition(differences, order, delta, None)
        assert_same(run(differences, order, delta), expected)
        assert_same(enumeration.measure(differences, None, order, delta), expected)


@each_order
def test_masks_and_soil(order: int) -> None:
    """What an invalid entry holds reaches nothing, nor does the diagonal."""
    labels = max(5, order + 1)
    differences, left_out = draw(2, labels, seed=order), torch.arange(labels)
    valid = torch.stack((left_out != 2, left_out < order - 1))
    outside = ~(valid.unsqueeze(-1) & valid.unsqueeze(-2))
    soiled = differences.masked_fill(outside | torch.eye(labels, dtype=torch.bool), torch.nan)
    actual = run(soiled, order, 0.2, valid)
    assert_same(actual, definition(differences, order, 0.2, valid))
    assert actual[0][1] == 0
    assert actual[1].masked_select(outside).eq(0).all()
    assert actual[1].diagonal(dim1=1, dim2=2).eq(0).all()
    torch.testing.assert_close(actual[1], actual[1].mT, atol=0, rtol=0)


@each_order
def test_ties_at_delta(order: int) -> None:
    delta, labels = 0.25, order + (order < 6)
    levels = delta * torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    upper = levels[(draw(1, labels).abs() * 1e6).long() % len(levels)].triu(1)
    differences = upper + upper.mT
    assert_same(run(differences, order, delta), definition(differences, order, delta, None))


@low_orders
def test_unsymmetric_and_strided(order: int) -> None:
    labels = 5
    wide = torch.rand(2, labels, 2 * labels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    valid = draw_mask(2, 2 * labels, seed=2)[:, ::2]
    for differences, mask in (
        (wide[:, :, ::2].mT, valid),
        (wide[:1, :, 1::2].expand(2, -1, -1), valid),
        (wide[:, :, :labels], valid[:1].expand(2, -1)),
        (wide[:, :, ::2], None),
    ):
        expected = enumeration.measure(differences, mask, order, 0.2)
        assert_same(run(differences, order, 0.2, mask), expected)
        assert_same(run(differences.contiguous(), order, 0.2, mask), expected)


@each_order
def test_degenerate_shapes(order: int) -> None:
    for labels in (0, 1, 6):
        loss, gradient = run(draw(0, labels), order, 0.1)
        assert loss.shape == (0,)
        assert gradient.shape == (0, labels, labels)
    for labels in (1, order - 1):
        loss, gradient = run(draw(2, labels), order, 0.1)
        assert loss.tolist() == [0, 0]
        assert gradient.eq(0).all()


@pytest.mark.parametrize(("order", "labels"), [(2, 40), (3, 32), (4, 13), (5, 6), (6, 6)])
@pytest.mark.parametrize("delta", [0.1, inf])
def test_float32(order: int, labels: int, delta: float) -> None:
    """The error is at most twice that of the form in PyTorch, and one rounding."""
    single = draw(1, labels, seed=order).float()
    actual = run(single, order, delta)
    truth = enumeration.measure(single.double(), None, order, delta)
    of_torch = enumeration.measure(single, None, order, delta)
    for a, o, t in zip(actual, of_torch, truth, strict=True):
        assert a.dtype == torch.float32
        one_rounding = torch.finfo(torch.float32).eps * t.abs().max()
        assert (a - t).abs().max() <= 2 * (o - t).abs().max() + one_rounding


def test_sums_carry_their_rounding_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few losses of order 1, then a hundred thousand that each, in float32, would add nothing to them."""
    monkeypatch.setattr(enumeration_triton, "_PROGRAMS", 1)
    differences = torch.full((1, 48, 48), 2.0**-16)
    differences[0, 0, 1] = differences[0, 1, 0] = 1
    (expected,) = enumeration.measure(differences.double(), None, 3, inf)[0].tolist()
    assert run(differences, 3, inf)[0].item() == pytest.approx(expected, rel=1.5e-7)


@low_orders
def test_nan_shows(order: int) -> None:
    differences = draw(2, 6)
    differences[1, 0, 1] = torch.nan
    loss, gradient = run(differences, order, 0.1)
    assert loss.isnan().tolist() == [False, True]
    assert gradient[1, 0, 1].isnan()
    assert not gradient[0].isnan().any()


@kernel_orders
def test_same_bits_in_every_run_and_from_poisoned_memory(order: int, request: pytest.FixtureRequest) -> None:
    differences, valid = draw(2, 5).float(), torch.arange(5) != torch.tensor([[2 if order < 5 else 5], [5]])
    expected = run(differences, order, 0.1, valid)
    assert expected[0].gt(0).all()
    assert_same(run(differences, order, 0.1, valid), expected, 0)
    request.getfixturevalue("poisoned_memory")
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert_same(run(differences, order, 0.1, valid), expected, 0)


@kernel_orders
def test_programs_do_not_matter(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    differences, valid = draw(2, 5), draw_mask(2, 5, seed=1)
    expected = run(differences, order, 0.1, valid)
    for programs, scratch in ((1, 2**26), (2**20, 2**26), (2**20, 3 * differences.nbytes)):
        monkeypatch.setattr(enumeration_triton, "_PROGRAMS", programs)
        monkeypatch.setattr(enumeration_triton, "_SCRATCH", scratch)
        assert_same(run(differences, order, 0.1, valid), expected)


def test_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration_triton, "_PROGRAMS", 4096)
    monkeypatch.setattr(enumeration_triton, "_SCRATCH", 2**26)
    assert enumeration_triton._programs(1, 80, 240, 4) == 240
    assert enumeration_triton._programs(32, 80, 10**6, 4) == 2**26 // (32 * 80 * 80 * 4)
    assert enumeration_triton._programs(1000, 6, 10**6, 4) == 4
    assert enumeration_triton._programs(10**5, 80, 240, 4) == 1
    assert enumeration_triton._programs(0, 80, 0, 4) == 1


@pytest.mark.parametrize("many", [4, 128])
@kernel_orders
def test_tiles_do_not_matter(order: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles smaller than the labels, of one warp and of four; a device's warp goes no narrower than its lanes."""
    differences, valid = draw(1, 5), torch.arange(5)[None] != (2 if order < 5 else 5)
    expected = run(differences, order, 0.2, valid)
    monkeypatch.setattr(enumeration_triton, "_ROWS", {torch.float64: 2})
    if DEVICE == "cpu":
        monkeypatch.setattr(enumeration_triton, "_COLUMNS", 4 if many == 128 else 1)
    monkeypatch.setattr(enumeration_triton, "_MANY_LABELS", many)
    assert_same(run(differences, order, 0.2, valid), expected)


@pytest.mark.parametrize(("order", "labels"), [(3, 33), (4, 17)])
def test_more_labels_than_a_tile_holds(order: int, labels: int) -> None:
    differences, valid = draw(1, labels), draw_mask(1, labels, seed=3)
    assert_same(run(differences, order, 0.2, valid), enumeration.measure(differences, valid, order, 0.2))
