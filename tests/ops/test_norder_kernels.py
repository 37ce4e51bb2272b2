"""The kernels of the closed form: on the device where there is one, in Triton's interpreter elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr.functional import multi_order_dependency_loss
from mlcorr.ops.norder import closed_form_triton
from mlcorr.systems.mdkd import MDKDObjective
from tests.ops.kernels import DEVICE, DTYPES, ORDERS, assert_equal, draw, draw_mask, value_and_gradients
from tests.reference import norder as reference


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("labels", [4, 5, 7])
@pytest.mark.parametrize("level", ["instance", "batch"])
@pytest.mark.parametrize("inputs", ["logits", "probabilities"])
def test_equals_the_definition(inputs: str, level: str, labels: int) -> None:
    student, teacher = (x if inputs == "logits" else x.sigmoid() for x in draw(3, labels))
    options = {"orders": ORDERS, "level": level, "inputs": inputs, "backend": "closed_form_triton"}
    actual = value_and_gradients(lambda s, t: multi_order_dependency_loss(s, t, **options), student, teacher)

    def definition(s: Tensor, t: Tensor) -> Tensor:
        s, t = (x.cpu().sigmoid() if inputs == "logits" else x.cpu() for x in (s, t))
        if level == "batch":
            return reference.batch_loss(s, t, ORDERS)
        return reference.instance_loss(s, t, ORDERS).mean()

    expected = value_and_gradients(definition, student, teacher)
    assert_equal([x.cpu() for x in actual], [x.cpu() for x in expected])


@st.composite
def configurations(draw_from: st.DrawFn) -> tuple[dict[str, object], tuple[int, ...], bool]:
    level = draw_from(st.sampled_from(["instance", "batch", "both"]))
    reductions = ["mean", "sum", "batchmean"] + ["none"] * (level == "instance")
    keywords = {
        "level": level,
        "inputs": draw_from(st.sampled_from(["logits", "probabilities"])),
        "normalization": draw_from(st.sampled_from(["sequences", "labels"])),
        "reduction": draw_from(st.sampled_from(reductions)),
        "orders": draw_from(st.sampled_from([{2: 1.0}, {3: 0.3}, ORDERS, {2: 0.0, 6: 1.0}])),
        "batch_dependency": draw_from(st.sampled_from(["mean_square", "square_of_sums"])),
    }
    keywords["delta"] = 1.0 if keywords["batch_dependency"] == "mean_square" else 100.0
    rows, labels = draw_from(st.integers(0, 9)), draw_from(st.integers(max(keywords["orders"]), 13))
    shape = (2, rows, labels) if level == "instance" and draw_from(st.booleans()) else (rows, labels)
    return keywords, shape, draw_from(st.booleans())


@settings(max_examples=60, deadline=None)
@given(configuration=configurations(), seed=st.integers(0, 2**16), chunk=st.sampled_from([2048, 8]))
def test_equals_the_other_backend(configuration, seed: int, chunk: int) -> None:
    keywords, shape, masked = configuration
    mask = draw_mask(*shape, seed=seed) if masked else None
    pair = draw(*shape, seed=seed)
    if keywords["inputs"] == "probabilities":
        pair = [x.detach().sigmoid() for x in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form_triton, "_TILE", chunk)
        results = [
            value_and_gradients(
                lambda s, t, b=backend: multi_order_dependency_loss(s, t, mask, backend=b, **keywords), *pair
            )
            for backend in ("closed_form_triton", "closed_form")
        ]
    assert_equal(*results)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("labels", [5, 80, 301])
@pytest.mark.parametrize("apart", [3.0, 1e-3])
@pytest.mark.parametrize("masked", [False, True])
def test_errors_are_those_of_pytorch(dtype: torch.dtype, labels: int, apart: float, masked: bool, tile: int) -> None:
    """At most twice PyTorch's own error in that dtype, for students far from the teacher and near it."""
    if tile == 4 and labels > 100:
        return
    student, _ = draw(16, labels, dtype=torch.float32)
    teacher = (student + apart * draw(16, labels, seed=1, scale=1.0)[0]).to(dtype)
    student, mask = student.to(dtype), draw_mask(16, labels) if masked else None
    for level in ("instance", "batch"):

        def loss(s: Tensor, t: Tensor, backend: str, level: str = level) -> Tensor:
            return multi_order_dependency_loss(s, t, mask, level=level, reduction="sum", backend=backend)

        truth = value_and_gradients(lambda s, t: loss(s, t, "closed_form"), student.double(), teacher.double())
        plain = value_and_gradients(lambda s, t: loss(s, t, "closed_form"), student, teacher)
        fused = value_and_gradients(lambda s, t: loss(s, t, "closed_form_triton"), student, teacher)
        for true, one, other in zip(truth, fused, plain, strict=True):
            assert other.dtype == one.dtype
            ulp = torch.finfo(one.dtype).eps * true.abs().max()
            error, allowed = ((x.double() - true).abs().max() for x in (one, other))
            assert error <= 2 * allowed + ulp


def parts(objective: MDKDObjective) -> Callable[..., dict[str, Tensor]]:
    """The same terms, each by itself."""

    def terms(student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {
            "base": objective.base_loss(student, target),
            "mld": objective.mld_weight * objective.mld(student, teacher, mask),
            **{
                k: objective.dependency_weight * v
                for k, v in objective.dependency.terms(student, teacher, mask).items()
            },
        }

    return terms


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalization", ["sequences", "labels"])
@pytest.mark.parametrize("kind", ["bool", "uint8", "long", "unknown", "soft", "unknown half"])
def test_objective_in_one_pass(kind: str, normalization: str, masked: bool) -> None:
    student, teacher = draw(6, 11)
    uniform = torch.rand(6, 11, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    target = {
        "bool": uniform < 0.4,
        "uint8": (uniform < 0.4).byte(),
        "long": (uniform < 0.4).long(),
        "unknown": torch.where(uniform < 0.3, -1, (uniform < 0.6).long()),
        "soft": uniform.double(),
        "unknown half": torch.where(uniform < 0.3, -1.0, uniform).half(),
    }[kind]
    mask = None
    if masked:
        mask = draw_mask(6, 11)
        mask[2:5] = False  # three valid rows: a third is no float32
    if "unknown" in kind:
        target[4] = -1
    fused = MDKDObjective(ORDERS, backend="closed_form_triton", normalization=normalization, dependency_weight=3.0)
    plain = MDKDObjective(ORDERS, backend="closed_form", normalization=normalization, dependency_weight=3.0)
    actual, expected = (f(student, teacher, target, mask) for f in (fused.terms, parts(plain)))
    assert list(actual) == list(expected) == ["base", "mld", "instance", "batch"]
    for name in expected:
        results = [
            [
                term[name].detach(),
                *torch.autograd.grad(term[name], (student, teacher), retain_graph=True, allow_unused=True),
            ]
            for term in (actual, expected)
        ]
        if name == "base":  # of which the teacher has no part
            assert results[0][2].eq(0).all()
            results = [result[:2] for result in results]
        assert_equal(*results)


def test_objective_drops_what_is_not_a_number() -> None:
    student, teacher = (x.detach() for x in draw(4, 6))
    target, mask = torch.ones(4, 6, dtype=torch.long, device=DEVICE), draw_mask(4, 6)
    target[~mask] = -1
    objective = MDKDObjective(backend="closed_form_triton")
    soiled = [torch.where(mask, x, torch.nan) for x in (student, teacher)]
    clean = value_and_gradients(lambda s, t: objective(s, t, target, mask), student, teacher)
    assert_equal(value_and_gradients(lambda s, t: objective(s, t, target, mask), *soiled), clean, 0)
    assert all(gradient[~mask].eq(0).all() for gradient in clean[1:])
    not_masked = objective(soiled[0], teacher, target)
    assert not_masked.isnan()


@pytest.mark.parametrize("rows", [1, 3])
def test_jacobian_of_all_terms(rows: int) -> None:
    """Which takes vmap over cotangents, and hands kernels tensors of unusual strides."""
    student, teacher = (x.detach() for x in draw(rows, 5))
    target = draw_mask(rows, 5)

    def jacobian(backend: str) -> Tensor:
        objective = MDKDObjective(backend=backend)
        return torch.func.jacrev(lambda x: torch.stack([*objective.terms(x, teacher, target).values()]))(student)

    results = [jacobian("closed_form_triton"), jacobian("closed_form")]
    assert_equal(results[:1], results[1:])


def test_second_derivatives_of_soft_targets() -> None:
    pair, target = draw(2, 4, scale=1.0), torch.rand(2, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    objective = MDKDObjective({2: 1.0}, level="instance", backend="closed_form_triton")
    assert torch.autograd.gradgradcheck(objective, (*pair, target))


def test_one_instance_without_a_batch() -> None:
    student, teacher = (x.detach()[0] for x in draw(1, 5))
    target = draw_mask(5)
    results = [
        MDKDObjective(level="instance", backend=b)(student, teacher, target)
        for b in ("closed_form_triton", "closed_form")
    ]
    assert_equal(results[:1], results[1:])


@pytest.mark.parametrize("of_logits", [False, True])
def test_gradient_of_soft_targets(of_logits: bool) -> None:
    student, teacher = (x.requires_grad_(of_logits) for x in draw(3, 5))
    target = torch.rand(3, 5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    results = [
        torch.autograd.grad(MDKDObjective(backend=b)(student, teacher, target), target)[0]
        for b in ("closed_form_triton", "closed_form")
    ]
    assert_equal(results[:1], results[1:])


@pytest.mark.filterwarnings("ignore:overflow encountered in reduce")  # the interpreter's sums of the largest numbers
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype: torch.dtype) -> None:
    top = torch.finfo(dtype).max
    values = [0.0, 1e-7, 20, -20, 88, -88, 104, -104, 1e4, -1e4, top, -top]
    pairs = torch.tensor(list(itertools.product(values, values)), dtype=torch.float64).clamp(-top, top).T
    student, teacher = (x.reshape(24, 6).to(DEVICE, dtype).requires_grad_() for x in pairs)
    target = (torch.arange(144, device=DEVICE) % 2).reshape(24, 6)
    objective = MDKDObjective(backend="closed_form_triton")
    terms = objective.terms(student, teacher, target)
    gradients = torch.autograd.grad(sum(terms.values()), (student, teacher))
    assert all(gradient.isfinite().all() for gradient in gradients)
    exact = [x.detach().double().requires_grad_() for x in (student, teacher)]
    truth = parts(MDKDObjective(backend="closed_form"))(*exact, target, None)
    for name, term in terms.items():
        if truth[name] < torch.finfo(term.dtype).max:
            torch.testing.assert_close(term.double(), truth[name], rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(truth["base"] + truth["instance"] + truth["batch"] + truth["mld"], exact)
    torch.testing.assert_close(gradients[0].double(), expected[0], rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_any_strides_and_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_: pytest.fail("copied"))
    base, other = (x.detach() for x in draw(24, 26))
    mask = draw_mask(24, 26)
    views = {
        "transposed": lambda x: x[:12, :9].T,
        "every second": lambda x: x[1::2, 3::3],
        "expanded rows": lambda x: x[3, 2:11].expand(5, 9),
        "expanded labels": lambda x: x[:5, 4:5].expand(5, 9),
        "one label apart": lambda x: x.flatten().as_strided((6, 7), (1, 1)),
    }
    for name, view in views.items():
        for level in ("instance", "batch"):
            keywords = {"level": level, "orders": (2, 3), "backend": "closed_form_triton"}
            pair, taken = (view(base), view(other)), view(mask) if level == "instance" else None
            actual = multi_order_dependency_loss(*pair, taken, **keywords)
            dense = [x.clone(memory_format=torch.contiguous_format) for x in pair]
            assert_equal([actual], [multi_order_dependency_loss(*dense, taken, **keywords)], 1e-15), name


def test_offsets_beyond_32_bits() -> None:
    """Entries more than 2³¹ apart, in memory that is never touched elsewhere."""
    step = 2**31 // 6 + 1
    if DEVICE == "cuda":
        storage = torch.empty(8 * step, dtype=torch.float16, device=DEVICE)
    else:
        storage = torch.empty(8 * step, dtype=torch.float16)
    near = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    for strides in ((step, 1), (1, step)):
        far = storage.as_strided((8, 5), strides)
        far.copy_(near)
        for level in ("instance", "batch"):
            keywords = {"level": level, "backend": "closed_form_triton"}
            expected = value_and_gradients(lambda s, k=keywords: multi_order_dependency_loss(s, -near, **k), near)
            leaf = far.detach().requires_grad_()
            actual = multi_order_dependency_loss(leaf, -near, **keywords)
            assert_equal([actual.detach(), torch.autograd.grad(actual, leaf)[0]], expected, 0)


@pytest.mark.usefixtures("tile")
def test_memory_is_written_before_it_is_read() -> None:
    """PyTorch fills new memory with NaN here."""
    student, teacher = draw(5, 9, dtype=torch.float32)
    target = draw_mask(5, 9)
    objective = MDKDObjective(backend="closed_form_triton")

    def run() -> list[Tensor]:
        return value_and_gradients(lambda s, t: objective(s, t, target), student, teacher)

    clean = run()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = run()
    finally:
        torch.use_deterministic_algorithms(before)
    assert_equal(poisoned, clean, 0)
