"""FSDP2: the states of the systems, whole, in shards and in folders; what does not fit changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from tests.distributed.systems import NAMES, build, train
from tests.distributed.test_sharded import gathered, shard
from tests.ranks import run_ranks

SIZES = [3, 2]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def sharded(name: str, mesh: DeviceMesh, *, changed: bool = False) -> nn.Module:
    model = shard(name, build(name, dist.group.WORLD), mesh, apart=True, policy=MixedPrecisionPolicy())
    if changed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)


def local(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what lies on this rank."""
    return {name: getattr(x, "to_local", lambda x=x: x)().clone() for name, x in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def round_trips(rank: int, name: str, model: nn.Module, mesh: DeviceMesh) -> dict[str, Tensor]:
    """Take the state of a sharded model over into others, in every way; return it whole."""
    own = local(model)
    whole = get_model_state_dict(model, options=WHOLE)  # on the first rank
    assert bool(whole) == (rank == 0)
    for options in (WHOLE, FROM_FIRST):
        other = sharded(name, mesh, changed=True)
        everywhere = gathered(model) if options is WHOLE else dict(whole)
        set_model_state_dict(other, everywhere, options=options)
        assert same(local(other), own), options
    for assign in (False, True):
        other = sharded(name, mesh, changed=True)
        train(name, other, SIZES, rank, steps=1)
        other.load_state_dict({key: x.clone() for key, x in model.state_dict().items()}, assign=assign)
        assert same(local(other), own), assign
        train(name, other, SIZES, rank, steps=1)
        assert not same(local(other), own)
        assert same(local(model), own)
    other = sharded(name, mesh, changed=True)
    set_model_state_dict(other, get_model_state_dict(model))
    assert same(local(other), own)
    return gathered(model)


def resumes(rank: int, name: str, mesh: DeviceMesh, folder: str) -> None:
    """Save model and optimiser to a folder, go on, and go on from there: there is no difference."""
    model = sharded(name, mesh)
    optimizer = optimizer_of(model)
    train(name, model, SIZES, rank, optimizer=optimizer)
    saved, saved_optimizer = get_state_dict(model, optimizer)
    dcp.save({"model": saved, "optimizer": saved_optimizer}, checkpoint_id=f"{folder}/{name}")
    losses = train(name, model, SIZES, rank, first=3, optimizer=optimizer)

    resumed = sharded(name, mesh, changed=True)
    optimizer = optimizer_of(resumed)
    own, own_optimizer = get_state_dict(resumed, optimizer)
    dcp.load({"model": own, "optimizer": own_optimizer}, checkpoint_id=f"{folder}/{name}")
    set_state_dict(resumed, optimizer, model_state_dict=own, optim_state_dict=own_optimizer)
    again = train(name, resumed, SIZES, rank, first=3, optimizer=optimizer)
    assert torch.equal(torch.stack(again), torch.stack(losses))
    assert same(local(resumed), local(model))


def refuses(name: str, model: nn.Module) -> None:
    """A sharded state that does not fit is refused, and every shard and buffer is as it was."""
    before = local(model)
    first, *_, last = (key for key, x in model.state_dict().items() if hasattr(x, "to_local"))
    kept = ("_extra_state", "co_groups", "dis_groups")
    state = {key: x if key in kept else x + 1 for key, x in model.state_dict().items()}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**state, last: state[last].full_tensor()}, f"{last}: expected a sharded tensor, got a whole one"),
        ({**state, last: state[last].long()}, f"dtype mismatch for {last}"),
        ({**state, last: torch.cat([state[last], state[last]])}, f"size mismatch for {last}"),
        ({**state, "foreign": state[first]}, r'Unexpected key.*"foreign"'),
        ({key: x for key, x in state.items() if key != last}, f'Missing key.*"{last}"'),
    ]
    buffers = [key for key, x in state.items() if not hasattr(x, "to_local") and x.is_floating_point()]
    if buffers:
        wrong.append(({**state, buffers[0]: state[first]}, "expected a whole tensor, got a sharded one"))
    for given, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(given)
        assert same(local(model), before), (name, message)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(wrong[2][0], strict=False, assign=True)
    assert same(local(model), before)
    missing, unexpected = model.load_state_dict({last: model.state_dict()[last], "foreign": 1}, strict=False)
    assert last not in missing
    assert unexpected == ["foreign"]
    assert same(local(model), before)


def work(rank: int, folder: str) -> dict[str, dict[str, Tensor]]:
    mesh = init_device_mesh("cpu", (len(SIZES),))
    states = {}
    for name in NAMES:
        fresh = sharded(name, mesh)
        if name != "mdkd":  # whose student is not of this library
            refuses(name, fresh)
        train(name, fresh, SIZES, rank)  # after which parameters of the whole stay gathered
        if name != "mdkd":
            refuses(name, fresh)
        states[name] = round_trips(rank, name, fresh, mesh)
        resumes(rank, name, mesh, folder)
    compact(mesh, rank)
    return states


def compact(mesh: DeviceMesh, rank: int) -> None:
    """ML-VPT's state without the backbone goes there and back in shards."""
    model, other = sharded("mlvpt", mesh), sharded("mlvpt", mesh)
    train("mlvpt", model, SIZES, rank)
    other.load_trainable_state_dict(model.trainable_state_dict())
    assert same(local(other), local(model))


def test_states_of_shards(tmp_path: Path) -> None:
    first, second = run_ranks(work, len(SIZES), str(tmp_path))
    for name in NAMES:
        assert same(first[name], second[name])
        alone = build(name, None)
        alone.load_state_dict(first[name])
        assert same(dict(alone.state_dict()), first[name])
