"""Copies of modules and of records: by ``copy``, by ``pickle``, by files, in other dtypes and in shared memory."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_leaves

from mlcorr import AsymmetricLoss
from mlcorr.grouping import LabelGroups
from tests.contract.case import (
    Arguments,
    Case,
    Sizes,
    Thing,
    a_module,
    cast,
    each_case,
    scalar,
    tensors,
    with_gradients,
)
from tests.contract.cases import CASES


def results(case: Case, thing: Thing, arguments: Arguments) -> list[Tensor]:
    """Return values, dense, and gradients, those of a module's parameters too."""
    arguments = with_gradients(case, arguments)
    output = case.call(thing, arguments)
    found = tensors(output)
    if case.leaves:
        own = [each for each in thing.parameters() if each.requires_grad] if isinstance(thing, nn.Module) else []
        wanted = [*(arguments[name] for name in case.leaves), *own]
        gradients = torch.autograd.grad(scalar(output), wanted, allow_unused=True)
        found = [*found, *(each for each in gradients if each is not None)]
    found += [torch.tensor(leaf) for leaf in tree_leaves(output) if isinstance(leaf, float)]
    found += [leaf.co for leaf in tree_leaves(output) if isinstance(leaf, LabelGroups)]
    return [each.detach().to_dense() if each.is_sparse else each.detach() for each in found]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """To the last bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def to_file(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": to_file,
}


@each_case("is copied and pickled, new and used")
def test_copies(name: str) -> None:
    case, arguments = CASES[name], CASES[name].draw(Sizes())
    used = case.module(arguments)
    results(case, used, arguments)
    for thing in (case.module(arguments), used):
        copies = {how: make(thing) for how, make in COPIES.items()}
        expected = results(case, thing, arguments)  # of a module with state, after its copies were made
        for made in copies.values():
            if isinstance(thing, nn.Module):
                assert repr(made) == repr(thing)
                assert not {each.data_ptr() for each in made.parameters()} & {x.data_ptr() for x in thing.parameters()}
            assert_same(results(case, made, arguments), expected)
    assert expected or case.kind == "choice"


def test_a_record_is_copied_and_pickled() -> None:
    groups = LabelGroups(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), ("a", "b", "c"), 2, ncut_co=0.5)
    for make in COPIES.values():
        made = make(groups)
        assert made == groups
        assert (made.names, made.tau, made.method, made.ncut_co) == (groups.names, 2.0, "given", 0.5)
        assert made.members("dis") == groups.members("dis")


def test_a_copy_of_a_compiled_module_calls_itself() -> None:
    loss, arguments = AsymmetricLoss(weight=torch.ones(3)), (torch.zeros(2, 3), torch.ones(2, 3))
    loss.compile(backend="eager")
    expected = loss(*arguments)
    copied = copy.deepcopy(loss)
    copied.weight.zero_()
    assert copied(*arguments) == 0
    assert loss(*arguments) == expected > 0


def first_linear(module: nn.Module) -> nn.Linear | None:
    inside_attention = {
        id(each) for one in module.modules() if isinstance(one, nn.MultiheadAttention) for each in one.modules()
    }
    frozen = {id(each) for each in module.modules() if not any(p.requires_grad for p in each.parameters())}
    return next(
        (m for m in module.modules() if isinstance(m, nn.Linear) and id(m) not in inside_attention | frozen), None
    )


def with_linear(case: Case) -> str | None:
    reason = a_module(case)
    return reason or (None if first_linear(case.make(Sizes())) else "has no linear layer that learns")


@each_case("a layer of it takes a parametrization", needs=with_linear)
def test_weight_norm(name: str) -> None:
    case, arguments = CASES[name], CASES[name].draw(Sizes())
    model, plain = case.module(arguments), case.module(arguments)
    linear = first_linear(model)
    assert linear is not None
    parametrizations.weight_norm(linear)
    output = case.call(model, arguments)
    torch.testing.assert_close(tensors(output), tensors(case.call(plain, arguments)))
    scalar(output).backward()
    assert (linear.parametrizations.weight.original1.grad != 0).any()
    again = case.module(arguments)
    again_linear = first_linear(again)
    assert again_linear is not None
    parametrizations.weight_norm(again_linear)
    again.load_state_dict(model.state_dict())
    assert parametrize.is_parametrized(copy.deepcopy(linear))


@each_case("model.apply reaches every part", needs=a_module)
def test_apply(name: str) -> None:
    case, arguments = CASES[name], CASES[name].draw(Sizes())
    model, reached = case.module(arguments), []

    def halve(part: nn.Module) -> None:
        reached.append(part)
        for parameter in part.parameters(recurse=False):
            nn.init.constant_(parameter, 0.5)

    assert model.apply(halve) is model
    assert len(reached) == len(list(model.modules()))
    assert all((parameter == 0.5).all() for parameter in model.parameters())
    assert all(each.isfinite().all() for each in results(case, model, arguments) if each.is_floating_point())


@each_case(
    "moves to half precision, with its whole numbers as they are",
    needs=a_module,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype(name: str, dtype: torch.dtype) -> None:
    case, arguments = CASES[name], CASES[name].draw(Sizes())
    module = case.module(arguments)
    before = {key: value.dtype for key, value in module.state_dict().items()}
    assert module.to(dtype) is module
    for key, value in module.state_dict().items():
        assert value.dtype == (dtype if before[key].is_floating_point else before[key]), key
    with torch.no_grad():
        output = case.call(module, cast(arguments, dtype))
    assert all(each.isfinite().all() for each in tensors(output) if each.is_floating_point() and not each.is_sparse)


@each_case("moves into shared memory", needs=a_module)
def test_share_memory(name: str) -> None:
    case, arguments = CASES[name], CASES[name].draw(Sizes())
    module = case.module(arguments).share_memory()
    assert all(each.is_shared() for each in (*module.parameters(), *module.buffers()) if each.numel())
    assert_same(results(case, module, arguments), results(case, case.module(arguments), arguments))


@each_case("is shown in a few lines", needs=a_module)
def test_repr(name: str) -> None:
    lines = repr(CASES[name].make(Sizes())).splitlines()
    assert lines[0].startswith(type(CASES[name].make(Sizes())).__name__ + "(")
    assert max(map(len, lines)) <= 240, max(lines, key=len)
    assert not [line for line in lines if "object at 0x" in line]
    own = [line for line in lines if "tensor(" in line]
    assert not own


def test_a_function_with_settings_is_pickled_by_name() -> None:
    from mlcorr import functional

    loss = partial(functional.asymmetric_loss, gamma_neg=2.0)
    again = pickle.loads(pickle.dumps(loss))
    assert again.func is functional.asymmetric_loss
    assert again.keywords == {"gamma_neg": 2.0}
