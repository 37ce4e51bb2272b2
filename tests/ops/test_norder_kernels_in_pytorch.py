"""The kernels as a part of PyTorch: operators, derivatives, transforms, compilation; and the ladder that picks them."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
import triton

from mlcorr import MultiOrderDependencyLoss
from mlcorr.functional import multi_order_dependency_loss
from mlcorr.ops import availability, contrast, norder
from mlcorr.ops.norder import fused, fused_batch, probabilities_triton, select_backend
from mlcorr.ops.norder.coefficients import coefficients
from mlcorr.systems.mdkd import MDKDObjective
from tests.ops.kernels import DEVICE, ORDERS, assert_equal, draw, draw_mask, value_and_gradients


def test_operators_are_well_registered() -> None:
    student, teacher = (x.detach() for x in draw(3, 5))
    mask, target = draw_mask(3, 5), draw_mask(3, 5).long()
    numbers, operators = (*coefficients(((2, 1.0),), 5), True, True), torch.ops.mlcorr
    plan = torch.rand(3, 3, dtype=torch.float64, device=DEVICE)
    terms, statistics = operators.norder_rows(student, teacher, mask, target, plan, *numbers)
    u, v, sums = operators.norder_centred(student, teacher, statistics, True)
    differences = torch.rand(2, 4, 4, dtype=torch.float64, device=DEVICE)
    calls = [
        (operators.norder_rows, (student, teacher, mask, target, plan, *numbers)),
        (operators.norder_rows, (student.half(), teacher, None, None, None, *numbers)),
        (
            operators.norder_rows_backward,
            (terms, student, teacher, mask, target, plan, statistics, *numbers, True, False),
        ),
        (operators.norder_rows_backward, (terms, student, teacher, None, None, None, statistics, *numbers, True, True)),
        (operators.norder_centred, (student, teacher, statistics, True)),
        (operators.norder_batch_gradient, (u, u, v, sums[0], statistics[:, 0], student.half(), True, -1)),
        (operators.norder_enumerated, (differences, None, 3, 0.2)),
        (operators.norder_enumerated, (differences, draw_mask(2, 4), 4, 0.2)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("level", ["instance", "batch"])
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_probabilities(level: str, masked: bool) -> None:
    pair = [x.detach().sigmoid().requires_grad_() for x in draw(2, 4, scale=1.0)]
    mask = torch.tensor([[True] * 4, [True, False, True, True]], device=DEVICE) if masked else None
    loss = MultiOrderDependencyLoss({2: 1.0, 3: 0.5}, level=level, inputs="probabilities", backend="closed_form_triton")
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, mask), pair)
    assert torch.autograd.gradgradcheck(lambda s, t: loss(s, t, mask), pair)


@pytest.mark.parametrize("level", ["instance", "batch"])
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives(level: str, masked: bool) -> None:
    pair, target = draw(2, 4, scale=1.0), draw_mask(2, 4)
    mask = torch.tensor([[True] * 4, [True, False, True, True]], device=DEVICE) if masked else None
    loss = MultiOrderDependencyLoss({2: 1.0, 3: 0.5}, level=level, backend="closed_form_triton")
    objective = MDKDObjective({2: 1.0, 3: 0.5}, level="instance", backend="closed_form_triton")
    for function in (
        lambda s, t: loss(s, t, mask),
        lambda s, t: objective(s, t, target, mask),
    )[: 2 if level == "instance" else 1]:
        assert torch.autograd.gradcheck(function, pair)
        assert torch.autograd.gradgradcheck(function, pair)


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_function_transforms(level: str) -> None:
    student, teacher = (x.detach() for x in draw(3, 5, scale=1.0))
    many = torch.stack([student, teacher, student - teacher], dim=1)
    losses = [MultiOrderDependencyLoss(ORDERS, level=level, backend=b) for b in ("closed_form_triton", "closed_form")]
    for transform in (
        lambda loss: torch.func.grad(loss)(student, teacher),
        lambda loss: torch.func.grad(loss, argnums=1)(student, teacher),
        lambda loss: torch.vmap(loss, in_dims=(1, None))(many, teacher),
        lambda loss: torch.vmap(torch.func.grad(loss), in_dims=(1, None))(many, teacher),
        lambda loss: torch.func.grad(lambda x: torch.vmap(loss, in_dims=(1, None))(x, teacher).sum())(many),
        lambda loss: torch.func.jacrev(torch.func.grad(loss))(student, teacher),
    ):
        assert_equal([transform(losses[0])], [transform(losses[1])])


@pytest.mark.parametrize("level", ["instance", "batch", "both"])
def test_compiles_whole(level: str) -> None:
    objective = MDKDObjective(level=level, backend="closed_form_triton")
    compiled = torch.compile(objective, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (7, 9):
        student, teacher = draw(rows, 5, seed=rows)
        target = draw_mask(rows, 5)
        for mask in (None, draw_mask(rows, 5, seed=2)):
            run = [
                value_and_gradients(lambda s, t, f=f, rest=(target, mask): f(s, t, *rest), student, teacher)
                for f in (compiled, objective)
            ]
            assert_equal(*run)


def test_autocast_and_empty_batches() -> None:
    student, teacher = draw(3, 5, dtype=torch.float32)
    loss = MultiOrderDependencyLoss(backend="closed_form_triton")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = value_and_gradients(loss, student, teacher)
    assert_equal(inside, value_and_gradients(loss, student, teacher), 0)
    empty = value_and_gradients(loss, *draw(0, 5))
    assert empty[0] == 0
    assert empty[1].shape == (0, 5)


def test_every_run_gives_the_same_bits() -> None:
    pair = draw(40, 70, dtype=torch.float32)
    objective = MDKDObjective(backend="closed_form_triton")
    target = draw_mask(40, 70)
    first, again = (value_and_gradients(lambda s, t: objective(s, t, target), *pair) for _ in range(2))
    assert_equal(first, again, 0)


@pytest.mark.usefixtures("tile")
def test_plain_terms_are_the_kernels_terms() -> None:
    """What the higher derivatives are taken of."""
    student, teacher = draw(4, 7)
    mask, target = draw_mask(4, 7), draw_mask(4, 7, seed=3).long() - draw_mask(4, 7, seed=4).long()
    plan = torch.rand(4, 3, dtype=torch.float64, device=DEVICE)
    for logits, chosen, known, mld in (
        (True, mask, target, True),
        (True, mask, target, False),
        (True, None, None, True),
        (False, mask, None, False),
    ):
        pair = [x if logits else x.detach().sigmoid() for x in (student, teacher)]
        keywords = {"mask": chosen, "target": known, "logits": logits, "mld": mld}
        given = (chosen, known, plan, 0.0, 0.0, 0.0, logits, mld)
        assert_equal(
            value_and_gradients(lambda s, t, k=keywords: fused.row_terms(s, t, plan, **k), *pair),
            value_and_gradients(lambda s, t, g=given: fused._plain_terms(s, t, *g), *pair),
        )
    unasked = fused.row_terms(student, teacher, plan)
    assert (unasked[:, 1:] == 0).all()  # neither target nor MLD
    numbers = coefficients(((3, 1.0),), 7)
    for logits in (True, False):
        pair = [x if logits else x.detach().sigmoid() for x in (student, teacher)]
        plain = fused_batch._plain_loss(*pair, *numbers, logits)
        assert_equal([plain], [fused_batch.batch_loss(*pair, numbers, logits)])


def test_numbers_of_a_graph_are_those_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler traces, which tests cannot watch, run by Python."""
    student, teacher = draw(4, 7)
    target, numbers = draw_mask(4, 7).long(), coefficients(((3, 1.0), (4, 0.5)), 7)

    def terms(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return fused.row_terms(s.unflatten(0, (2, 2)), t.unflatten(0, (2, 2)), numbers, target=target, mld=True)

    target = target.unflatten(0, (2, 2))
    expected = value_and_gradients(terms, student, teacher)
    rows = []
    operator = torch.ops.mlcorr.norder_rows
    monkeypatch.setattr(torch.ops.mlcorr, "norder_rows", lambda *given: (rows.append(given[4:8]), operator(*given))[1])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_equal(value_and_gradients(terms, student, teacher), expected)
    (plan, *constants), *more = rows
    assert not more
    assert constants == [0.0, 0.0, 0.0]
    assert plan.tolist() == [list(numbers)] * 4


def test_ladder() -> None:
    assert select_backend("instance", batch_size=4).backend == "closed_form"
    assert select_backend("instance", batch_size=4, device="cuda").backend == "closed_form_triton"
    assert select_backend("batch", batch_size=4, device="cuda").backend == "closed_form_triton"
    assert select_backend("batch", batch_size=4, device="cuda", masked=True).backend == "closed_form"
    assert select_backend("instance", batch_size=4, device="cuda", backend="closed_form").backend == "closed_form"
    low = {"batch_size": 4, "delta": 0.5, "orders": (2, 5), "device": "cuda"}
    assert select_backend("instance", **low).backend == "enumeration_triton"
    assert "order 2 by tail, order 5 by kernel" in select_backend("instance", **low).reason
    assert "order 5 by 9 samples" in select_backend("instance", samples=9, **low).reason
    asked = select_backend("instance", **low, backend="enumeration_triton")
    assert "order 2 by enumeration, order 5 by kernel" in asked.reason


@pytest.mark.parametrize(
    ("capability", "hip", "able"), [((7, 0), None, True), ((6, 1), None, False), ((6, 1), "6.2", True)]
)
def test_old_gpus_of_nvidia_have_no_kernels(capability, hip, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    of_orders = select_backend("instance", batch_size=4, device="cuda")
    of_contrast = contrast.select_backend(device="cuda")
    assert of_orders.backend == ("closed_form_triton" if able else "closed_form")
    assert of_contrast.backend == ("streamed_triton" if able else "streamed")
    assert of_contrast.reason == f"device 'cuda' has {'' if able else 'no '}kernels"


def test_what_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [x.detach().cpu() for x in draw(2, 8)]
    with pytest.raises(ValueError, match=r"^backend: 'closed_form_triton' .*delta"):
        multi_order_dependency_loss(*pair, delta=0.5, backend="closed_form_triton")
    with pytest.raises(ValueError, match=r"^backend: 'enumeration_triton' .*order 7"):
        multi_order_dependency_loss(*pair, orders=(7,), backend="enumeration_triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for backend in ("closed_form_triton", "enumeration_triton"):
        with pytest.raises(ValueError, match=rf"^backend: '{backend}' .*CUDA or ROCm.*'cpu'"):
            multi_order_dependency_loss(*pair, backend=backend)


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    with pytest.raises(ImportError, match=r"3\.2 or later.*3\.1\.0"):
        runpy.run_path(probabilities_triton.__file__)
    monkeypatch.delitem(sys.modules, probabilities_triton.__name__)
    monkeypatch.delattr(norder, "probabilities_triton")
    found = runpy.run_path(availability.__file__)["ERROR"]
    assert found == "ImportError: Triton 3.2 or later is needed, found 3.1.0"


def test_too_many_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^orders: order 6 of 400 labels"):
        multi_order_dependency_loss(*draw(2, 400), orders=(6,), delta=0.5, backend="enumeration_triton")


def test_compiles_where_triton_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is found out before, not by an import that fails while a compiler looks."""
    monkeypatch.setattr(availability, "ERROR", "ImportError: no triton")
    compiled = torch.compile(lambda: select_backend("instance", batch_size=4, device="cuda").backend, backend="eager")
    assert compiled() == "closed_form"
    pair = draw(2, 8)
    loss = torch.compile(multi_order_dependency_loss, fullgraph=True, backend="aot_eager")
    assert loss(*pair).isfinite()


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the import raises, ``auto`` does without and an explicit wish says what is missing."""
    monkeypatch.setattr(availability, "ERROR", "OSError: no libcuda")
    assert select_backend("instance", batch_size=4, device="cuda").backend == "closed_form"
    pair = draw(2, 8)
    assert multi_order_dependency_loss(*pair).isfinite()
    with pytest.raises(ImportError, match=r"^backend: 'closed_form_triton' needs Triton.*no libcuda.*pip install"):
        multi_order_dependency_loss(*pair, backend="closed_form_triton")
