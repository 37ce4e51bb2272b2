"""MDKDObjective: the sum of its parts, and what its reports say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlcorr import AsymmetricLoss, MultiOrderDependencyLoss
from mlcorr.functional import binary_cross_entropy_loss, mld_loss, multi_order_dependency_loss
from mlcorr.systems.mdkd import MDKDObjective


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
