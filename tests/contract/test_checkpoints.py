"""What a state holds is everything, and a state that does not fit changes nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlcorr.grouping import LabelGroups
from tests.contract.case import Case, Sizes, a_module, each_case, scalar, tensors, with_gradients
from tests.contract.cases import CASES

State = dict[str, Any]


def persistent(module: nn.Module) -> nn.Module:
    """Let a metric keep what it counted in its state, which torchmetrics does where it is asked to."""
    if hasattr(module, "persistent"):
        module.persistent(True)
    return module


def make(case: Case, sizes: Sizes = Sizes()) -> nn.Module:  # noqa: B008
    return persistent(case.module(case.draw(sizes), sizes))


def train(case: Case, module: nn.Module, steps: range, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """Return what the last step gave."""
    output = None
    for step in steps:
        arguments = with_gradients(case, case.draw(Sizes(seed=step)))
        output = case.call(module, arguments)
        if optimizer is not None:
            optimizer.zero_grad()
            (1e-2 * scalar(output)).backward()
            optimizer.step()
    return [each.detach().to_dense() if each.is_sparse else each.detach() for each in tensors(output)]


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer | None:
    learned = [each for each in module.parameters() if each.requires_grad]
    return torch.optim.AdamW(learned, lr=1e-3) if learned else None


def copied(module: nn.Module) -> State:
    return {name: each.clone() if isinstance(each, Tensor) else each for name, each in module.state_dict().items()}


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def from_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_state(case: Case) -> str | None:
    reason = a_module(case)
    if reason is not None:
        return reason
    module = make(case)
    if case.kind == "metric":  # whose state is there when something was counted
        train(case, module, range(1), None)
    return None if module.state_dict() else "has no state"


def of_fixed_form(case: Case) -> str | None:
    reason = a_module(case)
    if reason is None and case.kind == "metric":
        return "keeps lists of batches in its state, which torchmetrics saves and loads in its own way"
    return reason


def with_tensors(case: Case) -> str | None:
    return of_fixed_form(case) or with_state(case)


@each_case("a resumed run goes on bit for bit", needs=with_state)
def test_resume(name: str) -> None:
    case = CASES[name]
    whole = make(case)
    optimizer = optimizer_of(whole)
    train(case, whole, range(3), optimizer)
    saved = from_file({"module": whole.state_dict(), "optimizer": optimizer and optimizer.state_dict()})
    expected = train(case, whole, range(3, 6), optimizer)

    resumed = make(case)
    with torch.no_grad():  # begun elsewhere
        for parameter in resumed.parameters():
            parameter.add_(0.25)
    train(case, resumed, range(7, 8), None)
    resumed.load_state_dict(saved["module"])
    optimizer = optimizer_of(resumed)
    if optimizer is not None:
        optimizer.load_state_dict(saved["optimizer"])
    assert_same(train(case, resumed, range(3, 6), optimizer), expected)
    assert_same(copied(resumed), copied(whole))


def as_safetensors(module: nn.Module) -> State:
    safetensors = pytest.importorskip("safetensors.torch")
    return safetensors.load(safetensors.save(module.state_dict()))


def on_meta(case: Case, state: State) -> nn.Module:
    module = make(case).to("meta")
    module.load_state_dict(state, assign=True)
    return module


def emptied(case: Case, state: State) -> nn.Module:
    module = make(case).to_empty(device="cpu")
    for each in (*module.parameters(), *module.buffers()):  # as bad as empty memory may be
        each.data.fill_(float("nan") if each.is_floating_point() else -(2**40) if each.dtype == torch.int64 else 1)
    module.load_state_dict(state)
    return module


def loaded(case: Case, state: State, *, assign: bool = False) -> nn.Module:
    module = make(case)
    module.load_state_dict(state, assign=assign)
    return module


LOADS: dict[str, Callable[[Case, State], nn.Module]] = {
    "load": loaded,
    "assign": lambda case, state: loaded(case, state, assign=True),
    "from meta": on_meta,
    "from empty": emptied,
}


@each_case("its state loads into what is new, empty or on no device", needs=with_tensors)
@pytest.mark.parametrize("how", LOADS)
def test_loads(name: str, how: str) -> None:
    case = CASES[name]
    module = make(case)
    train(case, module, range(2), optimizer_of(module))
    again = LOADS[how](case, from_file(module.state_dict()))
    assert not [each for each in (*again.parameters(), *again.buffers()) if each.is_meta]
    assert_same(copied(again), copied(module))
    assert_same(train(case, again, range(2, 3), None), train(case, module, range(2, 3), None))


@each_case("its state is kept by safetensors", needs=with_tensors)
def test_safetensors(name: str) -> None:
    case = CASES[name]
    module = make(case)
    train(case, module, range(2), optimizer_of(module))
    again = loaded(case, as_safetensors(module))
    assert_same(copied(again), copied(module))
    assert_same(train(case, again, range(2, 3), None), train(case, module, range(2, 3), None))


# ------------------------------------------------------------------------------------- what does not fit is refused


def of_kind(value: Tensor) -> Tensor:
    return value.double() if not value.is_floating_point() else value.long()


def unfit(case: Case, module: nn.Module) -> Iterator[tuple[str, State]]:
    """Yield states that are nearly the module's own."""
    own = {name: each + 1 if isinstance(each, Tensor) else each for name, each in copied(module).items()}
    if "_extra_state" in own:
        own["_extra_state"] = module.state_dict()["_extra_state"]
    names = list(own)
    yield "an entry too many", {**own, "foreign": torch.zeros(1)}
    if not names:
        return
    other = make(case, Sizes(labels=7, width=12))
    train(case, other, range(0), None)
    yield "of another layer", nn.Linear(3, 2).state_dict()
    for name in {names[0], names[len(names) // 2], names[-1]}:
        yield f"without {name}", {key: each for key, each in own.items() if key != name}
        if not name.endswith("_extra_state"):
            yield (
                f"more of {name}",
                {**own, name: torch.cat([own[name].flatten()] * 2 + [torch.zeros(1)]).to(own[name])},
            )
            yield f"no tensor as {name}", {**own, name: "text"}
    if other.state_dict() and any(each.shape != own[key].shape for key, each in copied(other).items()):
        yield "of other sizes", copied(other)
    for key in names:
        part = module.get_submodule(key.rpartition(".")[0])
        ours = type(part).__module__.startswith("mlcorr") or key in dict(module.named_parameters())
        if ours and not key.endswith("_extra_state"):
            yield f"of another kind: {key}", {**own, key: of_kind(own[key])}


@each_case("a state that does not fit changes nothing", needs=of_fixed_form)
def test_refused(name: str) -> None:
    case = CASES[name]
    module = make(case)
    train(case, module, range(1), None)
    before, shown = copied(module), repr(module)
    objects = [id(each) for each in (*module.parameters(), *module.buffers())]
    expected = None
    for what, state in unfit(case, module):
        kept = dict(state)
        for assign in (False, True):
            with pytest.raises((RuntimeError, ValueError), match=r"state|state_dict") as caught:
                module.load_state_dict(state, assign=assign)
            assert len(str(caught.value)) > 20, what
            assert state.keys() == kept.keys(), what
            assert_same(copied(module), before)
            assert [id(each) for each in (*module.parameters(), *module.buffers())] == objects, what
        expected = what
    assert expected
    assert repr(module) == shown


def test_a_truncated_file_is_refused(tmp_path: Any) -> None:
    module = make(CASES["SADCL"])
    path = tmp_path / "state.pt"
    torch.save(module.state_dict(), path)
    whole = path.read_bytes()
    for part in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises((RuntimeError, EOFError, OSError)):
            torch.load(path, weights_only=True)
    groups = LabelGroups(torch.tensor([0, 1]), torch.tensor([1, 0]), None, 2)
    groups.save(path)
    whole = path.read_bytes()
    for part in range(len(whole) - 1):  # the last byte ends a line
        path.write_bytes(whole[:part])
        with pytest.raises(ValueError, match=r"^path: .* (is no JSON file|holds no label groups)"):
            LabelGroups.load(path)
