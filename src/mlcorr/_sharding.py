"""Parameters that lie in shards over the processes of a mesh, as FSDP2 keeps them."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

_FSDP2 = "torch.distributed.fsdp._fully_shard."


def is_sharded(x: object) -> bool:
    """Return whether ``x`` is a ``DTensor``."""
    # Importing them takes as long as the rest of the library; where nobody has, there are none.
    distributed: Any = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(x, distributed.DTensor)


def of_fsdp2(hook: object) -> bool:
    """Return whether ``hook`` is one that FSDP2 puts on a module for loading: they move shards and change no number."""
    return str(getattr(hook, "__module__", "")).startswith(_FSDP2)


def reshard(module: nn.Module) -> None:
    """Have FSDP2, where it has ``module``, put the shards in the place of gathered parameters."""
    for hook in module._load_state_dict_pre_hooks.values():
        if of_fsdp2(hook):
            hook({}, "", {}, True, [], [], [])


def whole(x: Tensor) -> Tensor:
    """Return ``x`` gathered from its shards; all processes of the mesh have to call."""
    return cast(Tensor, cast(Any, x).full_tensor()) if is_sharded(x) else x


@torch.no_grad()
def copy_whole(own: Tensor, x: Tensor) -> None:
    """Copy ``x`` into ``own``, of the first rank into all shards; all processes of the mesh have to call."""
    if is_sharded(own):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = own
        x = distribute_tensor(x.to(own.dtype), sharded.device_mesh, sharded.placements)
    own.copy_(x)
