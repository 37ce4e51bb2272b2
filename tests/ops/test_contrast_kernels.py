"""The kernels of streamed similarities against dense ones: in Triton's interpreter, unless there is a device."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import triton
from torch import Tensor

from mlcorr.ops.contrast import streamed_triton
from tests.ops.kernels import DEVICE, assert_equal

SIZES = (0, 1, 5, 19) if DEVICE == "cpu" else (0, 1, 67, 203)


class Case(NamedTuple):
    rows: Tensor
    columns: Tensor | None
    row_labels: Tensor
    column_labels: Tensor | None
    scale: float

    @property
    def other(self) -> Tensor:
        return self.rows if self.columns is None else self.columns

    def to(self, dtype: torch.dtype) -> Case:
        columns = None if self.columns is None else self.columns.to(dtype)
        return self._replace(rows=self.rows.to(dtype), columns=columns)


def draw(
    rows: int,
    columns: int | None,
    dims: int,
    scale: float = 5.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    labels: int = 3,
) -> Case:
    """Unit vectors, some of them twice, and labels that are partly unknown."""
    generator = torch.Generator().manual_seed(seed)

    def side(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, dims, generator=generator, dtype=torch.float64)
        x[size // 2 : size // 2 + 2] = x[:1]
        x = x / x.norm(dim=1, keepdim=True)
        return x.to(DEVICE, dtype), torch.randint(-1, labels, (size,), generator=generator).to(DEVICE)

    of_columns = (None, None) if columns is None else side(columns)
    x, of_rows = side(rows)
    return Case(x, of_columns[0], of_rows, of_columns[1], scale)


def similarities(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """All of them, which count, and which are positives."""
    labels = case.row_labels if case.column_labels is None else case.column_labels
    s = case.scale * (case.rows @ case.other.mT)
    valid = (labels >= 0).expand(s.shape).clone()
    if case.columns is None:
        valid.fill_diagonal_(False)
    return s, valid, valid & (case.row_labels.unsqueeze(1) == labels)


def dense_statistics(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    s, valid, alike = similarities(case)
    lse = s.masked_fill(~valid, -torch.inf).logsumexp(dim=1)
    return lse, s.masked_fill(~alike, 0.0).sum(dim=1), alike.sum(dim=1)


def dense_gradient(grad_lse: Tensor, grad_positive: Tensor | None, case: Case, lse: Tensor) -> tuple[Tensor, Tensor]:
    s, valid, alike = similarities(case)
    base = lse.masked_fill(lse == -torch.inf, torch.inf).unsqueeze(1)
    weights = grad_lse.unsqueeze(1) * (s - base).exp()
    if grad_positive is not None:
        weights = weights + grad_positive.unsqueeze(1) * alike
    weights = case.scale * weights.masked_fill(~valid, 0.0)
    if case.columns is None:
        return (weights + weights.mT) @ case.rows, case.rows.new_zeros(0)
    return weights @ case.columns, weights.mT @ case.rows


def upstream(case: Case, more: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, and a log-sum-exp over more than these columns; of a row without any, −inf."""
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(len(case.rows), generator=generator, dtype=torch.float64).to(case.rows) for _ in range(2)]
    return grads[0], grads[1], dense_statistics(case)[0] + more


def gradient(
    grad_lse: Tensor,
    grad_positive: Tensor | None,
    case: Case,
    lse: Tensor,
    to_rows: bool = True,
    to_columns: bool = True,
) -> tuple[Tensor, Tensor]:
    return streamed_triton.gradient(grad_lse, grad_positive, *case[:4], lse, case.scale, to_rows, to_columns)


@pytest.fixture(params=["whole", "shares", "through memory"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tiles of which there are several, with columns in one share or more, and weights in blocks or in programs."""
    set_tiles(monkeypatch, request.param)
    return request.param


def set_tiles(patch: pytest.MonkeyPatch, route: str, step: int = 16) -> None:
    if DEVICE == "cpu":
        tiles = dict.fromkeys((torch.float32, torch.float64), (8, 4, step, 4))
        patch.setattr(streamed_triton, "_STEP", step)
        patch.setattr(streamed_triton, "_PRODUCTS", tiles)
        patch.setattr(streamed_triton, "_GRADIENT", tiles)
    wide = route == "through memory"
    patch.setattr(streamed_triton, "_WIDTH", dict.fromkeys((torch.float32, torch.float64), 0 if wide else 512))
    patch.setattr(streamed_triton, "_PROGRAMS", 7 if route == "shares" else 1)
    if wide:
        patch.setattr(streamed_triton, "_HEIGHT", 7)
        patch.setattr(streamed_triton, "_SCRATCH", 8 * 16 * 7)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("columns", [None, *SIZES])
@pytest.mark.parametrize("rows", SIZES)
def test_equals_dense(rows: int, columns: int | None) -> None:
    for dims, scale in ((1, 5.0), (3, 100.0)):
        assert_right(draw(rows, columns, dims, scale))


@pytest.mark.usefixtures("route")
def test_equals_dense_without_a_product_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_triton, "_precision", lambda _: "sums")
    for columns in (None, 19):
        assert_right(draw(11, columns, 17))


@pytest.mark.parametrize("dims", [0, 100])
def test_equals_dense_in_other_dimensions(dims: int, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if route == "through memory":
        monkeypatch.setattr(streamed_triton, "_SCRATCH", 8 * 8 * 112)
    for columns in (None, 19):
        assert_right(draw(11, columns, dims))


def assert_right(case: Case) -> None:
    actual = streamed_triton.statistics(*case, True)
    assert_equal(actual, dense_statistics(case))
    assert actual[2].dtype == torch.int64
    grad_lse, grad_positive, lse = upstream(case)
    for positive in (grad_positive, None):
        found = gradient(grad_lse, positive, case, lse)
        assert_equal(found, dense_gradient(grad_lse, positive, case, lse))
        assert all(x.is_contiguous() for x in found)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("columns", [None, 19])
def test_equals_autograd(columns: int | None) -> None:
    case = draw(13, columns, 6, labels=20)
    leaves = [x.requires_grad_() for x in (case.rows, case.columns) if x is not None]
    (lse, positive, _), (grad_lse, grad_positive, _) = dense_statistics(case), upstream(case)
    expected = torch.autograd.grad((lse, positive), leaves, (grad_lse, grad_positive))
    found = gradient(grad_lse, grad_positive, case, lse.detach())
    assert_equal(found[: len(leaves)], expected)


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize("dims", [3, 300])
@pytest.mark.parametrize("columns", [None, 45])
def test_errors_are_those_of_pytorch(columns: int | None, dims: int, scale: float, monkeypatch) -> None:
    for route in ("whole", "shares", "through memory"):
        with monkeypatch.context() as patch:
            set_tiles(patch, route, step=64 if dims > 64 else 4)
            if route == "through memory":
                patch.setattr(streamed_triton, "_SCRATCH", 8 * 20 * 320)
            case = draw(21, columns, dims, scale, torch.float32)
            exact = case.to(torch.float64)
            grad_lse, grad_positive, lse = upstream(case)

            def results(case: Case, statistics: Callable, gradient: Callable, lse: Tensor = lse) -> list[Tensor]:
                given = [x.to(case.rows) for x in (grad_lse, grad_positive)]  # noqa: B023
                return [*statistics(case), *gradient(*given, case, lse.to(case.rows))]

            truth = results(exact, dense_statistics, dense_gradient)
            plain = results(case, dense_statistics, dense_gradient)
            found = results(case, lambda case: streamed_triton.statistics(*case, True), gradient)
            for true, one, other in zip(truth, found, plain, strict=True):
                assert one.dtype == other.dtype
                assert one.shape == true.shape
                if true.numel() and one.is_floating_point():
                    ulp = torch.finfo(one.dtype).eps * true.abs().max()
                    error, allowed = ((x.double() - true).abs().max() for x in (one, other))
                    assert error <= 2 * allowed + 2 * ulp
                else:
                    assert torch.equal(one, true)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("columns", [None, 6])
def test_what_is_not_asked_for_is_empty(columns: int | None) -> None:
    case = draw(9, columns, 3)
    lse, positive, count = streamed_triton.statistics(*case, False)
    assert positive.shape == count.shape == (0,)
    assert_equal([lse], [dense_statistics(case)[0]])
    given = upstream(case)
    both = gradient(*given[:2], case, given[2])
    for asked in itertools.product((False, True), repeat=2):
        found = gradient(*given[:2], case, given[2], *asked)
        for index, x in enumerate(found):
            there = asked[index] and not (index and columns is None)
            assert torch.equal(x, both[index]) if there else x.shape == (0,)


@pytest.mark.usefixtures("route")
def test_rows_without_columns() -> None:
    for columns in (None, 6):
        case = draw(9, columns, 3)
        labels = torch.full_like(case.row_labels, -1)
        known = torch.zeros_like(labels)
        if columns is None:
            labels[4] = 2  # alone
            case = case._replace(row_labels=labels)
            without = torch.arange(9, device=DEVICE) == 4
        else:
            case = case._replace(row_labels=known, column_labels=labels[:6])
            without = known == 0
        lse, positive, count = streamed_triton.statistics(*case, True)
        assert torch.equal(lse == -torch.inf, without)
        assert_equal((lse, positive, count), dense_statistics(case))
        assert not count.any()
        grad_lse, grad_positive, lse = upstream(case)
        found = gradient(grad_lse, grad_positive, case, lse)
        assert all(x.isfinite().all() for x in found)
        assert_equal(found, dense_gradient(grad_lse, grad_positive, case, lse))


@pytest.mark.usefixtures("route")
def test_a_row_is_itself_by_index_alone() -> None:
    """Items that are all the same are positives of one another: log-sum-exp is s + log of their number."""
    size, scale = 13, 100.0
    x = torch.ones(size, 4, dtype=torch.float64, device=DEVICE) / 2
    labels = torch.full((size,), 2**40, device=DEVICE)
    lse, positive, count = streamed_triton.statistics(x, None, labels, None, scale, True)
    assert_equal([lse], [torch.full_like(lse, scale) + torch.tensor(size - 1.0).to(lse).log()])
    assert_equal([positive], [torch.full_like(lse, scale * (size - 1))])
    assert count.eq(size - 1).all()
    differ = labels.clone()
    differ[0] += 2**32  # the same in 32 bits
    assert streamed_triton.statistics(x, None, differ, None, scale, True)[2][0] == 0


@pytest.mark.usefixtures("route")
def test_any_strides() -> None:
    base = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE) / 6
    numbers = torch.arange(80, device=DEVICE) % 5 - 1
    views = {
        "transposed": lambda x: x[:7, :9].T,
        "every second": lambda x: x[1:18:2, 3:20:3],
        "expanded rows": lambda x: x[3, 2:11].expand(9, 9),
        "expanded dimensions": lambda x: x[:9, 4:5].expand(9, 5),
    }
    for view in views.values():
        rows, columns = view(base), view(base.flip(0))
        case = Case(rows, columns, numbers[:18:2], numbers[4:5].expand(9), 5.0)
        given = [torch.stack([x, x], dim=1)[:, 0] for x in upstream(case)]
        assert_equal(streamed_triton.statistics(*case, True), dense_statistics(case))
        assert_equal(gradient(*given[:2], case, given[2]), dense_gradient(*given[:2], case, given[2]))


@pytest.mark.usefixtures("route")
def test_what_is_left_out_may_be_anything() -> None:
    case = draw(9, 19, 3)
    soiled = case.columns.clone()
    soiled[case.column_labels < 0] = torch.nan
    given = upstream(case)
    expected = [*streamed_triton.statistics(*case, True), *gradient(*given[:2], case, given[2])]
    case = case._replace(columns=soiled)
    actual = [*streamed_triton.statistics(*case, True), *gradient(*given[:2], case, given[2])]
    assert_equal(actual, expected, 0)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # the interpreter's maximum
@pytest.mark.usefixtures("route")
def test_what_is_not_a_number_stays_so() -> None:
    clean = draw(9, 19, 3)
    clean = clean._replace(column_labels=clean.column_labels.abs())
    for side in ("rows", "columns"):
        soiled = getattr(clean, side).clone()
        soiled[2, 1] = torch.nan
        case = clean._replace(**{side: soiled})
        given = upstream(clean)[:2]
        statistics = streamed_triton.statistics(*case, True)
        expected = dense_statistics(case)
        assert torch.equal(statistics[0].isnan(), expected[0].isnan())
        assert torch.equal(statistics[1].isnan(), expected[1].isnan())
        found = gradient(*given, case, statistics[0])
        assert found[0][2 if side == "rows" else slice(None)].isnan().all()
        assert found[1].isnan().all()
    case = draw(9, None, 3)._replace(rows=clean.rows.index_fill(0, torch.tensor([2], device=DEVICE), torch.nan))
    assert torch.equal(streamed_triton.statistics(*case, True)[0].isnan(), dense_statistics(case)[0].isnan())


def test_the_same_bits_and_memory_that_is_written_before_it_is_read(route: str) -> None:
    """PyTorch fills new memory with NaN in the third run."""
    for columns in (None, 19):
        case = draw(13, columns, 5, dtype=torch.float32)
        given = upstream(case)

        def run(case: Case = case, given: tuple[Tensor, ...] = given) -> list[Tensor]:
            return [*streamed_triton.statistics(*case, True), *gradient(*given[:2], case, given[2])]

        clean = run()
        assert_equal(run(), clean, 0)
        if DEVICE == "cuda" and route == "through memory":  # a setting of the vendor's is asked for then
            continue
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            poisoned = run()
        finally:
            torch.use_deterministic_algorithms(before)
        assert_equal(poisoned, clean, 0)


@pytest.mark.usefixtures("route")
def test_inputs_are_left_as_they_are() -> None:
    case = draw(9, None, 16)
    given = upstream(case)
    before = [x.clone() for x in (*given, *case[:1])]
    gradient(*given[:2], case, given[2])
    assert_equal([*given, *case[:1]], before, 0)


def test_products_of_float32_are_of_tf32_where_a_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", 1))  # as a tensor, which CPUs have not
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, precision in (((7, 5), "ieee"), ((8, 0), "tf32x3"), ((12, 0), "tf32x3")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", {there.device: capability}.get)
        assert streamed_triton._precision(there) == precision
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert streamed_triton._precision(there) == "ieee"
    assert streamed_triton._precision(torch.zeros(1)) == "ieee"


def test_an_older_triton_adds_products_of_float64_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.4.0")
    spec = importlib.util.spec_from_file_location("older", streamed_triton.__file__)
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    assert older._precision(torch.zeros(1, dtype=torch.float64)) == "sums"
    assert older._precision(torch.zeros(1)) == "ieee"
    assert older._PRODUCTS[torch.float64] == older._GRADIENT[torch.float64] == (16, 16, 16, 4)
    assert older._PRODUCTS[torch.float32] == streamed_triton._PRODUCTS[torch.float32]
    case = draw(21, 18, 35)
    actual = older.statistics(case.rows, case.columns, case.row_labels, case.column_labels, case.scale, True)
    assert_equal(list(actual), list(dense_statistics(case)))
    grads = upstream(case)
    found = older.gradient(*grads[:2], *case[:4], grads[2], case.scale, True, True)
    assert_equal(list(found), list(dense_gradient(*grads[:2], case, grads[2])))
