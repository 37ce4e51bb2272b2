"""MDKDObjective: the sum of its parts, and what its reports say."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from torch import Tensor

from mlcorr import AsymmetricLoss, BinaryCrossEntropyLoss, MultiOrderDependencyLoss
from mlcorr.functional import binary_cross_entropy_loss, mld_loss, multi_order_dependency_loss
from mlcorr.systems.mdkd import MDKDObjective
from tests.ranks import run_ranks


def batch(rows: int = 6, labels: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, labels, dtype=torch.float64, generator=generator) for _ in range(2))
    return student.requires_grad_(), 3 * teacher, torch.randint(2, (rows, labels), generator=generator)


def test_default_is_the_objective_of_the_paper() -> None:
    student, teacher, target = batch()
    expected = (
        binary_cross_entropy_loss(student, target)
        + 10 * mld_loss(student, teacher)
        + multi_order_dependency_loss(student, teacher, orders=(2, 3, 4), level="instance")
        + multi_order_dependency_loss(student, teacher, orders=(2, 3, 4), level="batch")
    )
    torch.testing.assert_close(MDKDObjective()(student, teacher, target), expected, rtol=1e-12, atol=0)


def test_terms_add_up_and_weigh_what_they_say() -> None:
    student, teacher, target = batch()
    objective = MDKDObjective(
        {2: 1.0, 5: 0.5},
        mld_weight=3.0,
        dependency_weight=7.0,
        base_loss=AsymmetricLoss(reduction="batchmean"),
        temperature=2.0,
        normalization="labels",
    )
    terms = objective.terms(student, teacher, target)
    torch.testing.assert_close(objective(student, teacher, target), sum(terms.values()))
    torch.testing.assert_close(terms["base"], AsymmetricLoss(reduction="batchmean")(student, target))
    torch.testing.assert_close(terms["mld"], 3 * mld_loss(student, teacher, temperature=2.0))
    dependency = MultiOrderDependencyLoss({2: 1.0, 5: 0.5}, normalization="labels").terms(student, teacher)
    torch.testing.assert_close(terms["instance"], 7 * dependency["instance"])
    torch.testing.assert_close(terms["batch"], 7 * dependency["batch"])


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_gradient_norms_are_those_of_the_terms_and_leave_no_trace(level: str) -> None:
    student, teacher, target = batch()
    objective = MDKDObjective(level=level)
    with torch.no_grad():
        norms = objective.gradient_norms(student, teacher, target)
    assert student.grad is None
    terms = objective.terms(student, teacher, target)
    assert list(norms) == list(terms)
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, student, retain_graph=True)
        torch.testing.assert_close(norms[name], gradient.norm())


def norms_of_ranks(rank: int) -> dict[str, Tensor]:
    own = slice(0, 2) if rank == 0 else slice(2, None)
    student, teacher, target = (x[own] for x in batch())
    return MDKDObjective(group=dist.group.WORLD).gradient_norms(student, teacher, target)


def test_gradient_norms_over_ranks_are_those_of_the_whole_batch() -> None:
    expected = MDKDObjective().gradient_norms(*batch())
    for norms in run_ranks(norms_of_ranks, 2):
        assert list(norms) == list(expected)
        torch.testing.assert_close(norms, expected, rtol=1e-10, atol=0)


def test_an_unknown_label_still_learns_from_the_teacher() -> None:
    student, teacher, target = batch()
    objective = MDKDObjective()
    unknown = target.clone()
    unknown[:, 0] = -1
    known, partly = (objective.terms(student, teacher, y) for y in (target, unknown))
    assert partly["base"] < known["base"]
    for name in ("mld", "instance", "batch"):
        assert partly[name] == known[name]


def test_compiles_and_maps() -> None:
    student, teacher, target = batch()
    objective = MDKDObjective()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher, target), objective(student, teacher, target))
    mapped = torch.func.vmap(objective, in_dims=(0, None, None))(torch.stack([student, teacher]), teacher, target)
    expected = torch.stack([objective(student, teacher, target), objective(teacher, teacher, target)])
    torch.testing.assert_close(mapped, expected)


def test_autocast_and_half_precision_train() -> None:
    student, teacher, target = batch()
    expected = MDKDObjective()(student.float(), teacher.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = MDKDObjective()(student.float(), teacher.float(), target)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    half = student.detach().half().requires_grad_()
    MDKDObjective()(half, teacher.half(), target).backward()
    assert half.grad.dtype == torch.float16
    assert half.grad.isfinite().all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"^mld_weight: .*-1"):
        MDKDObjective(mld_weight=-1.0)
    with pytest.raises(ValueError, match=r"^dependency_weight: .*nan"):
        MDKDObjective(dependency_weight=float("nan"))
    with pytest.raises(TypeError, match=r"^base_loss: .*int"):
        MDKDObjective(base_loss=3)
    with pytest.raises(ValueError, match=r"^orders: "):
        MDKDObjective(orders=())
    with pytest.raises(ValueError, match=r"^target: .*\(2, 3\)"):
        MDKDObjective()(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 3))


class Apart(BinaryCrossEntropyLoss):
    """Not known to the objective, so that it takes every term in a pass of its own."""


def composed(objective: MDKDObjective, student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The terms from the parts, each in a pass of its own."""
    settings = objective.dependency.settings
    apart = MDKDObjective(
        dict(settings.orders),
        mld_weight=objective.mld_weight,
        dependency_weight=objective.dependency_weight,
        base_loss=Apart(),
        level=settings.level,
        normalization=settings.normalization,
    )
    return apart.terms(student, teacher, target)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 6),
    labels=st.integers(4, 9),
    level=st.sampled_from(["instance", "both"]),
    normalization=st.sampled_from(["sequences", "labels"]),
    kind=st.sampled_from(["hard", "soft", "unknown", "bool"]),
    seed=st.integers(0, 2**31),
)
def test_one_pass_equals_the_parts(
    rows: int, labels: int, level: str, normalization: str, kind: str, seed: int
) -> None:
    student, teacher, target = batch(rows, labels, seed)
    teacher.requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    if kind == "soft":
        target = torch.rand(rows, labels, dtype=torch.float64, generator=generator)
    elif kind == "unknown":
        target = torch.randint(-1, 2, (rows, labels), generator=generator)
    elif kind == "bool":
        target = target.bool()
    objective = MDKDObjective({2: 1.0, 4: 0.5}, dependency_weight=5.0, level=level, normalization=normalization)
    together, apart = objective.terms(student, teacher, target), composed(objective, student, teacher, target)
    assert list(together) == list(apart)
    for name in apart:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-11, atol=1e-15)
        actual = torch.autograd.grad(together[name], (student, teacher), retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(apart[name], (student, teacher), retain_graph=True, allow_unused=True)
        for a, e in zip(actual, expected, strict=True):
            zero = torch.zeros_like(student)
            torch.testing.assert_close(zero if a is None else a, zero if e is None else e, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("level", ["instance", "both"])
def test_one_pass_has_first_and_second_derivatives(level: str) -> None:
    student, teacher, _ = batch(3, 5)
    teacher.requires_grad_()
    soft = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    objective = MDKDObjective(level=level)
    assert torch.autograd.gradcheck(objective, (student, teacher, soft))
    assert torch.autograd.gradgradcheck(objective, (student, teacher, soft))
    expected = torch.autograd.grad(objective(student, teacher, soft), student)[0]
    torch.testing.assert_close(torch.func.grad(objective)(student, teacher, soft), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_pass_on_extreme_logits(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = [0.0, 1e-7, -1e-7, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4, largest / 64, -largest / 64, largest, -largest]
    logits = torch.tensor(values, dtype=torch.float64).to(dtype)
    objective = MDKDObjective(level="instance")
    for shift in range(len(values)):
        student = logits[None].clone().requires_grad_()
        teacher = logits.roll(shift)[None].clone().requires_grad_()
        target = (logits.roll(2 * shift) > 0)[None]
        terms = objective.terms(student, teacher, target)
        exact_student, exact_teacher = (x.detach().double().requires_grad_() for x in (student, teacher))
        exact = objective.terms(exact_student, exact_teacher, target)
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, student, retain_graph=True)
            assert gradient.isfinite().all()
            if exact[name].abs() <= torch.finfo(term.dtype).max / 2:
                torch.testing.assert_close(term.double(), exact[name], rtol=1e-5, atol=1e-6)
            if name != "base":  # a teacher's gradient of MLD grows with the logits, and may exceed their dtype
                (gradient,) = torch.autograd.grad(term, teacher, retain_graph=True)
                (truth,) = torch.autograd.grad(exact[name], exact_teacher, retain_graph=True)
                assert gradient[truth.abs() <= torch.finfo(dtype).max / 2].isfinite().all()


@pytest.mark.parametrize("sure", [-12.0, 8.0, 17.0])
def test_the_gradient_of_mld_survives_where_both_networks_are_sure(sure: float) -> None:
    """In the pass of all terms, too: the probabilities of float32 there have no digits for a difference."""
    student, teacher = sure + torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    unknown = torch.full((20, 6), -1)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = student.to(dtype).requires_grad_()
        return torch.autograd.grad(MDKDObjective()(leaf, teacher.to(dtype), unknown), leaf)[0].double()

    torch.testing.assert_close(gradient(torch.float32), gradient(torch.float64), rtol=1e-4, atol=0)
