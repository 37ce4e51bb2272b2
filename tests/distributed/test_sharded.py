"""FSDP2 (`fully_shard`): every system trains in shards as one process does with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tests.distributed.systems import NAMES, STEPS, batch, build, parts, share, train
from tests.ranks import run_ranks

SIZES = ([3, 2], [2, 0, 3])  # rows of each rank
APART = {2: (False, True), 3: (True,)}  # whether parts are sharded by themselves
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


def shard(name: str, model: nn.Module, mesh: DeviceMesh, *, apart: bool, policy: MixedPrecisionPolicy) -> nn.Module:
    for part in parts(name, model) if apart else []:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def gathered(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: getattr(value, "full_tensor", value.clone)() for name, value in state.items()}


def prepare(name: str, model: nn.Module, sizes: list[int], rank: int | None) -> None:
    if name == "sadcl":
        images, target, *_ = (x[share(sizes, rank)] for x in batch(sum(sizes), 0))
        model.initialize_prototypes([(images.to(next(model.parameters()).dtype), target)], threshold=0.3)


def work(rank: int, sizes: list[int]) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (len(sizes),))
    results: dict[str, object] = {}
    for name in NAMES:
        for apart in APART[len(sizes)]:
            model = build(name, dist.group.WORLD)
            shard(name, model, mesh, apart=apart, policy=MixedPrecisionPolicy())
            assert not any(torch.equal(p.to_local(), p.full_tensor()) for p in model.parameters() if p.shape[0] > 1)
            prepare(name, model, sizes, rank)
            losses = train(name, model, sizes, rank)
            results[f"{name} {apart}"] = [losses, gathered(model)]
        model = build(name, dist.group.WORLD).float()
        shard(name, model, mesh, apart=True, policy=HALF)
        prepare(name, model, sizes, rank)
        results[f"{name} half"] = [train(name, model, sizes, rank), gathered(model)]
    return results


@pytest.mark.filterwarnings("ignore:prototypes:UserWarning")
@pytest.mark.parametrize("sizes", SIZES)
def test_shards_train_as_one_process_with_the_whole_batch(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    for name in NAMES:
        model = build(name, None)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        prepare(name, model, sizes, None)
        expected = train(name, model, sizes, None)
        whole = model.state_dict()
        assert expected[0] != expected[1]
        for apart in APART[len(sizes)]:
            results = [rank[f"{name} {apart}"] for rank in ranks]
            for losses, state in results:
                torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
                assert state.keys() == whole.keys()
                for key, value in whole.items():
                    torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-13, msg=lambda m, k=key: k + m)
        for losses, state in (rank[f"{name} half"] for rank in ranks):
            assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64, torch.uint8}
            assert len(losses) == STEPS
            torch.testing.assert_close(torch.stack(losses).double(), torch.stack(expected), rtol=3e-2, atol=0)
            for key, value in whole.items():
                if ("classifier" in key or "head" in key) and not key.startswith("backbone"):
                    # It has gone as far as in float64, but for rounding.
                    went = state[key].double() - start[key]
                    assert (went - (value - start[key])).norm() < 0.1 * went.norm(), key
