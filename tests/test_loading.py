"""Modules with parts from elsewhere: what these load in their own way still loads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mlcorr import (
    AverageMessageGCN,
    DualContrastiveLoss,
    GroupWiseLinear,
    LabelCooccurrence,
    LabelGroups,
    SpectralLabelGrouping,
)
from mlcorr._extra_state import decoded, encoded
from mlcorr.systems.oprl import OPRL


def oprl(*layers: nn.Module) -> OPRL:
    torch.manual_seed(0)
    return OPRL(nn.Sequential(nn.Conv2d(3, 8, 4, 4), *layers), 8, 5, encoder_heads=2, encoder_width=8)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(module: nn.Module, state: dict[str, Tensor]) -> None:
    torch.testing.assert_close(state_of(module), state, rtol=0, atol=0)


def test_what_is_missing_or_foreign_may_be_let_pass() -> None:
    model = oprl()
    before = state_of(model)
    some = {name: value + 1 for name, value in before.items() if name.startswith("backbone")}
    missing, unexpected = model.load_state_dict({**some, "foreign": torch.zeros(1)}, strict=False)
    assert set(missing) == before.keys() - some.keys()
    assert unexpected == ["foreign"]
    assert_equal(model, {**before, **some})
    wrong = {**before, "backbone.0.bias": torch.zeros(9)}
    with pytest.raises(RuntimeError, match=r"OPRL:\n\tsize mismatch for backbone.0.bias: expected \(8,\), got \(9,\)$"):
        model.load_state_dict(wrong, strict=False)
    assert_equal(model, {**before, **some})


def test_all_that_does_not_fit_is_named() -> None:
    model = oprl()
    state: dict[str, Any] = {name: value + 1 for name, value in model.state_dict().items()}
    del state["backbone.0.bias"]
    state["backbone.0.weight"] = state["backbone.0.weight"].long()
    state["foreign"] = 1
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    for part in ('Missing key.*"backbone.0.bias"', 'Unexpected key.*"foreign"', "dtype mismatch for backbone.0.weight"):
        assert caught.match(part)


def test_a_file_from_before_batches_were_counted_loads() -> None:
    model = oprl(nn.BatchNorm2d(8))
    state = OrderedDict((name, value) for name, value in state_of(model).items() if "num_batches" not in name)
    model.load_state_dict(state)  # without the version that says they are counted
    averaged = {name: value.double() for name, value in state_of(model).items()}
    model.load_state_dict(averaged)


def test_old_names_that_a_hook_translates_load() -> None:
    model = oprl()

    def translate(state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}0.old" in state:
            state[f"{prefix}0.weight"] = state.pop(f"{prefix}0.old")

    model.backbone._register_load_state_dict_pre_hook(translate)
    state = state_of(model)
    old = {name.replace("0.weight", "0.old") if name.startswith("backbone") else name: x for name, x in state.items()}
    model.load_state_dict({name: value + 1 for name, value in old.items()})
    assert_equal(model, {name: value + 1 for name, value in state.items()})


def test_a_hook_that_forgives_is_heard() -> None:
    model = oprl()

    def forgive(_: nn.Module, keys: Any) -> None:
        keys.missing_keys.clear()

    model.register_load_state_dict_post_hook(forgive)
    model.load_state_dict({name: value for name, value in state_of(model).items() if name != "backbone.0.bias"})


@pytest.mark.parametrize("strict", [True, False])
def test_a_part_of_a_bank_changes_nothing_around_it(strict: bool) -> None:
    loss = DualContrastiveLoss(5, 8)
    before = state_of(loss)
    part = {name: value + 1 for name, value in before.items() if name != "bank.pointer"}
    with pytest.raises(RuntimeError, match="bank: expected embeddings, pointer, count, got embeddings, count alone"):
        loss.load_state_dict(part, strict=strict)
    assert_equal(loss, before)


def test_a_number_may_come_as_one_entry() -> None:
    loss = DualContrastiveLoss(5, 8)
    loss.load_state_dict({**state_of(loss), "steps": torch.tensor([3])})
    assert loss.steps.shape == ()
    assert loss.steps == 3


@pytest.mark.parametrize("extra", [torch.zeros(3), torch.tensor(list(b"[1]"), dtype=torch.uint8), {"names": None}])
def test_an_extra_state_of_another_form_is_refused(extra: Any) -> None:
    grouping = SpectralLabelGrouping(5, 2)
    before = state_of(grouping)
    changed = {name: value + 1 for name, value in before.items()}
    with pytest.raises(ValueError, match=r"^state: expected bytes of JSON"):
        grouping.load_state_dict({**changed, "_extra_state": extra})
    assert_equal(grouping, before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x: x.to("meta"), "expected a tensor with numbers in it, got one on the device meta"),
        (lambda x: x.to_sparse(), "expected a dense tensor, got a torch.sparse_coo one"),
        (lambda x: torch.nested.nested_tensor([x], layout=torch.jagged), "expected a dense tensor, got a nested one"),
    ],
)
def test_what_cannot_be_copied_is_refused_before_anything_is(
    form: Callable[[Tensor], Tensor], message: str, assign: bool
) -> None:
    model = oprl(nn.BatchNorm2d(8))
    before = state_of(model)
    changed = {name: value + 1 for name, value in before.items()}
    for name in ("classifier.weight", "backbone.0.weight", "backbone.1.running_mean"):
        with pytest.raises(RuntimeError, match=f"OPRL:\n\t{name}: {message}$"):
            model.load_state_dict({**changed, name: form(changed[name])}, assign=assign)
        assert_equal(model, before)


@pytest.mark.parametrize("name", [0, None, ("classifier", "weight"), b"classifier.weight"])
def test_a_name_is_a_string(name: Any) -> None:
    model = oprl()
    before = state_of(model)
    changed = {key: value + 1 for key, value in before.items()}
    with pytest.raises(TypeError, match=r"^state_dict: expected names of tensors as keys, got "):
        model.load_state_dict({**changed, name: torch.zeros(1)}, strict=False)
    assert_equal(model, before)


def test_a_part_from_elsewhere_loads_its_own_parts_in_its_own_way() -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)
            self.places = nn.Parameter(torch.zeros(1, 4, 8))

        def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
            for kind in ("weight", "bias"):
                state[f"{prefix}inner.{kind}"] = state.pop(f"{prefix}old.{kind}")
            state[f"{prefix}places"] = state[f"{prefix}places"][:, :4]  # as those of a larger image are made to fit
            super()._load_from_state_dict(state, prefix, *args)

    model = oprl(Renamed())
    wanted = {name: value + 1 for name, value in state_of(model).items()}
    given = {name.replace(".inner.", ".old."): value for name, value in wanted.items()}
    given["backbone.1.places"] = torch.ones(1, 9, 8)
    model.load_state_dict(given)
    assert_equal(model, wanted)


def test_a_subclass_may_load_in_its_own_way() -> None:
    class Renamed(GroupWiseLinear):
        def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
            state[f"{prefix}weight"] = state.pop(f"{prefix}old")
            super()._load_from_state_dict(state, prefix, *args)

    head = Renamed(5, 8)
    wanted = {name: value + 1 for name, value in state_of(head).items()}
    head.load_state_dict({"old": wanted["weight"], "bias": wanted["bias"]})
    assert_equal(head, wanted)


@pytest.mark.parametrize("state", [None, [], [("classifier.weight", torch.zeros(1))]])
def test_what_is_no_state_is_refused(state: Any) -> None:
    model = oprl()
    before = state_of(model)
    with pytest.raises(TypeError, match="dict-like"):
        model.load_state_dict(state)
    assert_equal(model, before)


def test_complex_numbers_are_of_another_kind() -> None:
    model = oprl()
    before = state_of(model)
    wrong = {**before, "classifier.bias": before["classifier.bias"].to(torch.complex64)}
    message = "dtype mismatch for classifier.bias: expected one like torch.float32, got torch.complex64"
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(wrong)
    assert_equal(model, before)


@pytest.mark.parametrize("name", ["together.keys", "together.values", "unknown.keys"])
def test_a_part_of_the_pairs_changes_nothing(name: str) -> None:
    counts = LabelCooccurrence(5, storage="sparse")
    counts.update(torch.tensor([[1, 1, 0, -1, 1]]))
    before = state_of(counts)
    with pytest.raises(RuntimeError, match=rf"{name.partition('.')[0]}: expected keys, values, got \w+ alone"):
        counts.load_state_dict({"rows": torch.tensor(7), name: torch.zeros(9, dtype=torch.int64)}, strict=False)
    assert_equal(counts, before)


@pytest.mark.parametrize("part", ["rows", "columns", "values"])
@pytest.mark.parametrize("within", [False, True])
def test_a_part_of_an_adjacency_changes_nothing_of_it(part: str, within: bool) -> None:
    gcn = AverageMessageGCN(4, 5, torch.eye(5).to_sparse())
    module = nn.ModuleList([gcn]) if within else gcn
    before = state_of(module)
    found = {name: value + 1 for name, value in before.items() if not name.endswith(part)}
    with pytest.raises(RuntimeError, match="expected cooccurrence_rows, cooccurrence_columns, "):
        module.load_state_dict(found, strict=False)
    assert_equal(module, before)


@pytest.mark.parametrize("bank", ["per_label", "global"])
def test_a_pointer_of_one_entry_loads_or_changes_nothing(bank: Literal["per_label", "global"]) -> None:
    loss = DualContrastiveLoss(1, 8, bank=bank)
    wanted = {name: value + 1 for name, value in state_of(loss).items()}
    loss.load_state_dict({**wanted, "bank.pointer": wanted["bank.pointer"].reshape(1)})
    assert_equal(loss, wanted)


@pytest.mark.parametrize("num_groups", [2, "auto"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("names", 5),
        ("names", ["a"] * 6),
        ("names", [1] * 6),
        ("names", ["a", "b"]),
        ("num_groups", None),
        ("num_groups", 1),
        ("found", 5),
        ("found", ["given", 2.0]),
        ("found", ["given", "2", None, None]),
        ("found", {"method": "given"}),
    ],
)
def test_an_extra_state_with_other_contents_changes_nothing(
    num_groups: int | Literal["auto"], field: str, value: Any
) -> None:
    groups = LabelGroups(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 0, 1]), None, 2)
    source, grouping = SpectralLabelGrouping(6, 2), SpectralLabelGrouping(6, num_groups)
    source.assign(groups)
    state = state_of(source)
    content = decoded(state["_extra_state"])
    assert field in content
    before = state_of(grouping)
    with pytest.raises(RuntimeError, match="SpectralLabelGrouping: "):
        grouping.load_state_dict({**state, "_extra_state": encoded({**content, field: value})})
    assert_equal(grouping, before)


def test_groups_that_come_alone_tell_their_number() -> None:
    groups = LabelGroups(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 1]), None, 3)
    source = SpectralLabelGrouping(4, 3)
    source.assign(groups)
    state = {name: value for name, value in state_of(source).items() if name != "_extra_state"}
    grouping = SpectralLabelGrouping(4, "auto")
    grouping.load_state_dict(state, strict=False)
    assert grouping.assignments == groups
    assert grouping.pool(torch.ones(4, 1)).shape == (3, 1)
    with pytest.raises(RuntimeError, match="expected 2 groups, got 3"):
        SpectralLabelGrouping(4, 2).load_state_dict(state, strict=False)
