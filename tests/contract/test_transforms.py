"""``torch.func``: what transforms a function transforms everything here, or says why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.contract.case import Arguments, Case, differentiable, each_case, tensors
from tests.contract.cases import CASES
from tests.contract.comparing import (
    PROTOTYPES_GIVEN,
    SIZES,
    Called,
    assert_same,
    leaves_of,
    of_leaves,
    once,
    ready,
    scalar_of,
    with_weights,
)

BATCH = 3


def problems(case: Case) -> list[Arguments]:
    """Return several problems of one form."""
    return [case.draw(SIZES._replace(seed=seed)) for seed in range(BATCH)]


def stacked(arguments: list[Arguments], name: str, at: int) -> Tensor:
    return torch.stack([each[name] for each in arguments], dim=at)


@pytest.fixture(autouse=True)
def _attention() -> Iterator[None]:
    """Choose that of PyTorch's forms of attention that can be transformed; the others warn or raise."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


FITS = {"SpectralLabelGrouping": "fits inside the call, outside PyTorch; see the test of what is fitted"}
COUNTS_ACTIVE = ("DualContrastiveLoss", "DualContrastiveLoss, no bank", "SADCL")
OWN_FUNCTIONS = [
    *("mld_loss", "mld_loss, no mask", "MLDLoss", "MDKDObjective", "MDKDObjective, no mask", "SADCL"),
    *(name for name in CASES if name.startswith(("multi_order", "MultiOrder")) and not name.endswith("masked")),
    *(name for name in CASES if name.startswith(("sample_contrastive", "DualContrastive"))),
]


@each_case("torch.func.grad and jacrev give what backward gives", needs=differentiable, but=FITS)
def test_grad(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    function, leaves = of_leaves(case, ready(case, training=True), arguments), leaves_of(case, arguments)
    expected = torch.autograd.grad(function(*leaves), leaves)
    plain = tuple(leaf.detach() for leaf in leaves)
    every = tuple(range(len(leaves)))
    assert_same(torch.func.grad(function, argnums=every)(*plain), expected, "grad")
    assert_same(torch.func.jacrev(function, argnums=every)(*plain), expected, "jacrev")
    assert_same(torch.func.vjp(function, *plain)[1](torch.tensor(3.0).double()), [3 * x for x in expected], "vjp")


@each_case("vmap over problems is a loop over them", needs=differentiable, but=FITS)
def test_vmap(name: str) -> None:
    case = CASES[name]
    first, *_ = given = problems(case)
    thing = ready(case, training=True)
    for mapped in [case.leaves, *([leaf] for leaf in case.leaves)]:
        for at in (0, 1):
            batched = [stacked(given, leaf, at) if leaf in mapped else first[leaf] for leaf in case.leaves]
            in_dims = tuple(at if leaf in mapped else None for leaf in case.leaves)
            function = of_leaves(case, thing, first)
            loop = [[each[leaf] if leaf in mapped else first[leaf] for leaf in case.leaves] for each in given]
            found = torch.func.vmap(function, in_dims)(*batched)
            assert_same(found, torch.stack([function(*each) for each in loop]), f"{mapped} at {at}")
            gradient = torch.func.grad(function, argnums=tuple(range(len(case.leaves))))
            found = torch.func.vmap(gradient, in_dims)(*batched)
            each = zip(*[gradient(*each) for each in loop], strict=True)
            assert_same(found, [torch.stack(x) for x in each], f"gradient, {mapped} at {at}")


@each_case(
    "vmap over all arguments is a loop over problems",
    needs=differentiable,
    but={
        **FITS,
        **dict.fromkeys(COUNTS_ACTIVE, "takes as many features as are active, unless max_active= fixes a number"),
    },
)
def test_vmap_over_everything(name: str) -> None:
    case = CASES[name]
    given = problems(case)
    thing = ready(case, training=True)
    names = [key for key, value in given[0].items() if isinstance(value, Tensor)]

    def function(*values: Tensor) -> list[Tensor]:
        return tensors(once(case, thing, {**given[0], **dict(zip(names, values, strict=True))}))

    found = torch.func.vmap(function)(*[stacked(given, key, 0) for key in names])
    each = [function(*[one[key] for key in names]) for one in given]
    assert_same(found, [torch.stack(x) for x in zip(*each, strict=True)], "all")


@pytest.mark.parametrize("name", COUNTS_ACTIVE)
def test_vmap_over_targets_is_refused_where_shapes_would_follow_from_them(name: str) -> None:
    case = CASES[name]
    given = problems(case)
    thing = ready(case)
    key = "targets" if "targets" in given[0] else "target"
    with pytest.raises(RuntimeError, match="dynamic shape"):
        torch.func.vmap(lambda targets: tensors(case.call(thing, {**given[0], key: targets})))(stacked(given, key, 0))


WRITES = [name for name in CASES if name.startswith("DualContrastiveLoss")] + ["SADCL"]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *((name, torch.func.grad) for name in WRITES),
        *((name, torch.func.vmap) for name in WRITES if name != "DualContrastiveLoss, no bank"),
    ],
)
def test_training_that_writes_a_state_is_refused(name: str, transform: Any) -> None:
    """And nothing is written by halves."""
    case = CASES[name]
    arguments = case.draw(SIZES)
    thing = ready(case)
    thing.train()
    before = {key: value.clone() for key, value in thing.state_dict().items()}
    leaf = case.leaves[0]
    x = arguments[leaf] if transform is torch.func.grad else stacked(problems(case), leaf, 0)
    with pytest.raises(RuntimeError, match=r"^vmap: \w+_\(self|in-?place"):
        transform(lambda x: scalar_of(case.call(thing, {**arguments, leaf: x}), [0]))(x)
    for key, value in thing.state_dict().items():
        assert torch.equal(value, before[key]), key


@each_case(
    "forward derivatives are those that backward gives",
    needs=differentiable,
    but={**FITS, **dict.fromkeys(OWN_FUNCTIONS, "has backward derivatives alone, and raises where forward is asked")},
)
def test_forward(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    function, leaves = of_leaves(case, ready(case, training=True), arguments), leaves_of(case, arguments)
    expected = torch.autograd.grad(function(*leaves), leaves)
    plain, tangents = tuple(leaf.detach() for leaf in leaves), tangents_of(case)
    slope = sum((x * t).sum() for x, t in zip(expected, tangents, strict=True))
    assert_same(torch.func.jvp(function, plain, tangents), (function(*plain), slope), "jvp")
    with forward_ad.dual_level():
        dual = function(*[forward_ad.make_dual(x, t) for x, t in zip(plain, tangents, strict=True)])
        assert_same(forward_ad.unpack_dual(dual).tangent, slope, "dual numbers")


def tangents_of(case: Case) -> tuple[Tensor, ...]:
    return tuple(case.draw(SIZES._replace(seed=BATCH))[leaf] for leaf in case.leaves)


@pytest.mark.parametrize("name", OWN_FUNCTIONS)
def test_forward_derivatives_that_are_not_there_are_refused(name: str) -> None:
    """For each argument alone, too: a derivative that is silently 0 would be wrong."""
    case = CASES[name]
    arguments = case.draw(SIZES)
    function = of_leaves(case, ready(case), arguments)
    plain, tangents = tuple(arguments[leaf] for leaf in case.leaves), tangents_of(case)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(function, plain, tangents)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        function(*[forward_ad.make_dual(x, t) for x, t in zip(plain, tangents, strict=True)])


# ------------------------------------------------------------------------------------------ weights, and what is fitted


@each_case(
    "several modules of one form are one call under vmap",
    needs=with_weights,
    but=dict.fromkeys(PROTOTYPES_GIVEN, "is given prototypes, and uses none of its own"),
)
def test_vmap_over_weights(name: str) -> None:
    case = CASES[name]
    arguments = case.draw(SIZES)
    things = [ready(case, SIZES._replace(seed=seed), training=True) for seed in range(BATCH)]
    weights, buffers = torch.func.stack_module_state(things)
    called = Called(case, things[0])

    def function(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> list[Tensor]:
        named = {f"thing.{key}": value for key, value in (weights | buffers).items()}
        return tensors(torch.func.functional_call(called, named, (arguments,)))

    found = torch.func.vmap(function)(weights, buffers)
    each = [tensors(case.call(thing, arguments)) for thing in things]
    assert_same(found, [torch.stack(x) for x in zip(*each, strict=True)], "weights")


def test_fitted_groups_are_transformed() -> None:
    case = CASES["SpectralLabelGrouping"]
    arguments = case.draw(SIZES)
    fitted = ready(case)
    case.call(fitted, arguments)
    of_groups = torch.stack([each["group_features"] for each in problems(case)])
    of_labels = torch.randn(BATCH, SIZES.rows, SIZES.labels, 3, dtype=torch.float64, requires_grad=True)
    for function, batch in ((fitted, of_groups), (fitted.pool, of_labels)):
        assert_same(torch.func.vmap(function)(batch), torch.stack([function(x) for x in batch]), "vmap")
        whole = torch.func.jacrev(function)(batch[0].detach())
        assert_same(torch.func.jacfwd(function)(batch[0].detach()), whole, "jacfwd")
        assert torch.autograd.gradcheck(function, batch[0].detach().requires_grad_())
