"""States that do not fit change nothing: PyTorch alone copies what fits, and then tells what does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mlcorr._checks import kind_of
from mlcorr._sharding import is_sharded, of_fsdp2, reshard


class WholeState(nn.Module):
    """A module that takes over a state with everything in it, or nothing of it."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as :meth:`torch.nn.Module.load_state_dict` does; where that raises an error, nothing has changed.

        A part with hooks that change a state before it is loaded, or that comes from elsewhere and loads in its own
        way, is looked at when it is loaded, after the parts before it. Parameters that FSDP2 has sharded take sharded
        ones (``DTensor``); ``set_model_state_dict`` of ``torch.distributed.checkpoint.state_dict`` makes them of whole
        ones.

        Raises:
            RuntimeError: Names, shapes or kinds of numbers do not fit.
            TypeError: A name is no string.
        """
        if isinstance(state_dict, Mapping):
            for name in state_dict:
                if not isinstance(name, str):
                    raise TypeError(f"state_dict: expected names of tensors as keys, got {kind_of(name)}")
            found = list(_problems(self, state_dict, strict, assign))
            if found:
                message = "\n\t".join(found)
                raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{message}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _expected(self, state: Mapping[str, Any], prefix: str) -> dict[str, Tensor | None]:  # noqa: ARG002
        """Return the module's own entries that ``state`` should have; None where any shape is taken."""
        return _own(self)

    def _refuse(self, state: Mapping[str, Any], prefix: str) -> str | None:  # noqa: ARG002
        """Return, or raise, why what has the names and shapes of a state is none for this module."""
        return None


def incomplete(names: Iterable[str], state: Mapping[str, Any], prefix: str) -> str | None:
    """Return why ``state`` cannot be taken over if it has some of ``names``, which mean nothing apart, but not all."""
    names = list(names)
    given = [name for name in names if prefix + name in state]
    return f"expected {', '.join(names)}, got {', '.join(given)} alone" if 0 < len(given) < len(names) else None


def unfit_part(part: WholeState, state: Mapping[str, Any], prefix: str) -> list[str]:
    """Return why a part's own entries cannot be taken over, for one that loads in its own way."""
    reason = part._refuse(state, prefix)
    found = [] if reason is None else [f"{prefix[:-1]}: {reason}"]
    for name, own in part._expected(state, prefix).items():
        if prefix + name in state:
            found += unfit_tensor(prefix + name, state[prefix + name], own)
    return found


def _own(module: nn.Module) -> dict[str, Tensor | None]:
    kept = {name: x for name, x in module._buffers.items() if name not in module._non_persistent_buffers_set}
    return {name: x for name, x in {**module._parameters, **kept}.items() if x is not None}


def _problems(root: WholeState, state: Mapping[str, Any], strict: bool, assign: bool) -> Iterator[str]:
    """Yield why a state cannot be taken over."""
    missing: list[str] = []
    unfit: list[str] = []
    known: set[str] = set()
    elsewhere: list[str] = []  # what is not ours to judge
    parts = list(root.named_modules(remove_duplicate=False))
    for path, part in parts:
        prefix = f"{path}." if path else ""
        if any(prefix.startswith(other) for other in elsewhere):
            continue
        way = part._load_from_state_dict
        known_way = str(way.__module__).startswith(("mlcorr.", "torch.nn.modules."))
        reshard(part)
        before = part._load_state_dict_pre_hooks.values()  # which may change what its parts are given, too
        if not all(map(of_fsdp2, before)) or not known_way:
            elsewhere.append(prefix)
            continue
        ours = isinstance(part, WholeState)
        own_way = getattr(way, "__func__", way) is not nn.Module._load_from_state_dict
        if ours:
            reason = part._refuse(state, prefix)
            if reason is not None:
                unfit.append(f"{path or type(part).__name__}: {reason}")
        expected = part._expected(state, prefix) if ours else _own(part)
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            expected["_extra_state"] = None
        for name, own in expected.items():
            known.add(prefix + name)
            if prefix + name in state:
                # Averaged buffers of others, such as a number of batches, are no whole numbers any more.
                kind = ours or name in part._parameters
                unfit += unfit_tensor(prefix + name, state[prefix + name], own, kind=kind, assign=assign)
            elif ours or not own_way:
                missing.append(prefix + name)
        if own_way and not ours:
            known |= {
                name for name in _under(prefix, state) if name[len(prefix) :].partition(".")[0] not in part._modules
            }
    after = (hook for _, part in parts for hook in part._load_state_dict_post_hooks.values())  # which may forgive
    if strict and all(map(of_fsdp2, after)):
        unexpected = [name for name in state if name not in known and not name.startswith(tuple(elsewhere))]
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                listed = ", ".join(f'"{name}"' for name in names)
                yield f"{what} key(s) in state_dict: {listed}. "
    yield from unfit


def _under(prefix: str, state: Mapping[str, Any]) -> list[str]:
    return [name for name in state if name.startswith(prefix)]


def unfit_tensor(
    name: str, given: Any, own: Tensor | None, *, kind: bool = True, assign: bool = False
) -> Iterator[str]:
    """Yield why ``given`` cannot become ``own``, with ``kind`` also where whole numbers are not."""
    if own is None or is_lazy(own):
        return
    if not isinstance(given, Tensor):
        yield f"{name}: expected a tensor, got {type(given).__name__}"
    elif _form(given) != _form(own):
        yield f"{name}: expected a {_form(own)} tensor, got a {_form(given)} one"
    elif is_sharded(own) > is_sharded(given) or (is_sharded(given) > is_sharded(own) and not assign):
        wanted, found = ("a sharded tensor", "a whole one") if is_sharded(own) else ("a whole tensor", "a sharded one")
        yield f"{name}: expected {wanted}, got {found}; set_model_state_dict takes either"
    elif given.is_meta and not own.is_meta:
        yield f"{name}: expected a tensor with numbers in it, got one on the device {given.device}"
    elif given.shape != own.shape and not (own.dim() == 0 and given.shape == (1,)):  # as old files have numbers
        yield f"size mismatch for {name}: expected {tuple(own.shape)}, got {tuple(given.shape)}"
    elif kind and _kind(given) != _kind(own):
        yield f"dtype mismatch for {name}: expected one like {own.dtype}, got {given.dtype}"


def _form(x: Tensor) -> str:
    if x.is_nested or x.is_quantized:
        return "nested" if x.is_nested else "quantized"
    return "dense" if x.layout == torch.strided else str(x.layout)


def _kind(x: Tensor) -> str:
    if x.is_complex():
        return "complex"
    if x.is_floating_point():
        return "real"
    return "truth" if x.dtype == torch.bool else "whole"
