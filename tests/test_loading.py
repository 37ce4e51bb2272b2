"""Modules with parts from elsewhere: what these load in their own way still loads."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlcorr import DualContrastiveLoss, SpectralLabelGrouping
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
