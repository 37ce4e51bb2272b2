"""Random arguments, good and bad, for everything public: each call gives a result, or an error that names an argument.

``python -m tests.contract.fuzz --number 100000 --seed 0`` tries so many, prints what came of them and every violation.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.contract.entries import ENTRIES
from tests.contract.entries.entry import Entry, Good
from tests.contract.fuzz_values import Seeded, Source, described, junk, near, nested, pick

LIMIT = 20.0  # seconds that one call may take
PYTHON = re.compile(r"missing \d+ required|unexpected keyword argument|got multiple values|positional argument")


class TooLong(BaseException):
    """A call does not come to an end."""


class Trial(NamedTuple):
    """What came of one call: a result, an error that names an argument, or a violation of the contract."""

    entry: Entry
    texts: dict[str, str]  # what the drawn arguments are
    outcome: str
    violation: str | None


# ------------------------------------------------------------------------------------------------------- arguments


def goods(entry: Entry) -> Good:
    """Return the good values of the arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that sparse tensors are young
        return entry.good()


def draw(entry: Entry, source: Source) -> tuple[dict[str, Any], dict[str, str]]:
    """Return arguments, most of them good, and of those that were drawn a description."""
    good = goods(entry)
    names = list(good)
    given: dict[str, Any] = {name: good[name][0] for name in names if name in entry.required or source.below(3) == 0}
    texts: dict[str, str] = {}
    for _ in range(1 + (source.below(3) == 0) + (source.below(6) == 0)):
        # Of many arguments, half of the time one that must be there: the tensors are among them.
        name = pick(source, entry.required) if entry.required and source.below(2) else pick(source, names)
        value = pick(source, good[name])
        kind = source.below(10)
        if kind < 2:
            texts[name] = f"good {described(value)}"
        elif kind < 6:
            texts[name], value = near(source, value)
        elif kind < 9:
            texts[name], value = junk(source)
        else:
            value = nested(source)
            texts[name] = f"nested {described(value)}"
        given[name] = value
    if source.below(40) == 0:
        given[pick(source, ("nonsense", "Input", "reductions"))] = 1
        texts["nonsense"] = "unknown"
    if source.below(40) == 0 and entry.required:
        given.pop(pick(source, entry.required), None)
        texts["required"] = "missing"
    return given, texts


# -------------------------------------------------------------------------------------------- what must not change


def contents(value: Any, depth: int = 3) -> Any:
    """Return what can be compared of a thing: of tensors their bytes, of a module all that it holds."""
    if isinstance(value, Tensor):
        kept = (value.requires_grad, value.dtype, value.is_leaf and value.grad is None, value._version)
        plain = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
        if not plain or value.is_quantized or isinstance(value, nn.parameter.UninitializedTensorMixin):
            return kept
        whole = value.detach().resolve_conj().reshape(-1).clone(memory_format=torch.contiguous_format)
        return (
            *kept,
            tuple(value.shape),
            whole.view(torch.uint8).numpy().tobytes() if whole.numel() else b"",
        )
    if isinstance(value, nn.Module):
        own = {name: contents(each, depth - 1) for name, each in vars(value).items() if not name.startswith("_")}
        inside = {name: contents(each, depth - 1) for name, each in value.named_children()} if depth else None
        tensors = {name: contents(each) for name, each in (*value.named_parameters(), *value.named_buffers())}
        extra = contents(value.get_extra_state()) if type(value).get_extra_state is not nn.Module.get_extra_state else 0
        return own, inside, tensors, extra, [part.training for part in value.modules()]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.dtype.str, value.shape, value.tobytes()
    if depth and isinstance(value, Mapping):
        return [(described(key), contents(each, depth - 1)) for key, each in value.items()]
    if depth and isinstance(value, (list, tuple)):
        return [contents(each, depth - 1) for each in value]
    if isinstance(value, (str, bytes, bool, int, float, complex, type(None), torch.dtype)):
        return type(value).__name__, repr(value) if not isinstance(value, int) else value
    return id(value)


# ------------------------------------------------------------------------------------------------------ the shapes


def misfit(entry: Entry, given: Mapping[str, Any], result: Any) -> str | None:
    """Return which accepted tensors do not fit each other, or that the result has another shape than follows.

    A shape is written "B C" with a letter for each size, the same wherever it stands; "*" is any leading dimensions,
    "~input" what broadcasts to the argument of that name, and "|" stands between alternatives.
    """
    options: list[dict[str, Any]] = [dict(entry.sizes)]
    shapes = {name: _shape(value) for name, value in given.items() if isinstance(value, (Tensor, np.ndarray))}
    for name, spec in entry.shapes.items():
        if name not in shapes:
            continue
        if spec.startswith("~"):
            target = shapes.get(spec[1:]) or tuple(int(size) for size in spec[1:].split() if size.isdigit())
            if not _broadcasts(shapes[name], target):
                return f"{name} of the shape {shapes[name]} does not broadcast to {target}, and was accepted"
            continue
        options = [found for sizes in options for each in spec.split("|") for found in _fit(each, shapes[name], sizes)]
        if not options:
            return f"{name} of the shape {shapes[name]} does not fit {shapes}, and was accepted"
    wanted = entry.result(dict(given))
    if wanted is None or not isinstance(result, Tensor):
        return None
    if not any(list(_fit(wanted, tuple(result.shape), sizes)) for sizes in options):
        return f"the result has the shape {tuple(result.shape)}, for arguments of {shapes}"
    return None


def _shape(value: Tensor | np.ndarray) -> tuple[int, ...]:
    odd = isinstance(value, Tensor) and (value.is_nested or isinstance(value, nn.parameter.UninitializedTensorMixin))
    return (-1,) * 9 if odd else tuple(value.shape)  # of no shape, what is asked for nowhere


def _fit(spec: str, shape: tuple[int, ...], sizes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    letters = spec.split()
    found = dict(sizes)
    if letters[:1] == ["*"]:
        letters = letters[1:]
        at = len(shape) - len(letters)
        if at < 0 or found.setdefault("*", shape[:at]) != shape[:at]:
            return
        shape = shape[at:]
    if len(letters) != len(shape):
        return
    for letter, size in zip(letters, shape, strict=True):
        if (int(letter) if letter.isdigit() else found.setdefault(letter, size)) != size:
            return
    yield found


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == torch.Size(target)
    except RuntimeError:
        return False


# ---------------------------------------------------------------------------------------------------- one call


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong after so many seconds, if there are any."""

    def stop(*_: object) -> None:
        raise TooLong

    if not seconds or not hasattr(signal, "setitimer"):  # not on Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def names_argument(message: str, entry: Entry, given: Mapping[str, Any]) -> bool:
    """Return whether a message begins as the house's do, "name: ...", perhaps with an entry of it."""
    found = re.match(r"([A-Za-z_]\w*(?:, [a-z_]+)*)(?:[\[.][^:]*)?: ", message)
    known = {*entry.good(), *given, *entry.also}
    return found is not None and all(name in known for name in found[1].split(", "))


def attempt(entry: Entry, given: dict[str, Any], texts: dict[str, str], limit: float = LIMIT) -> Trial:
    """Call with the arguments, and return what came of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thing = entry.make()
    before = contents(thing), contents(given)
    outcome, violation, result = "result", None, None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with time_limit(limit):
                result = entry.call(thing, **given)
        except TooLong:
            outcome, violation = "hang", f"took longer than {limit:g} seconds"
        except Exception as error:
            outcome = type(error).__name__
            violation = _judge(error, entry, given)
    if outcome == "result":
        violation = misfit(entry, given, result)
    elif violation is None and before != (contents(thing), contents(given)):
        violation = f"{outcome} was raised, and state or arguments are not as they were"
    for warning in said:
        if not names_argument(str(warning.message), entry, given):
            violation = violation or f"warned: {warning.message}"
    return Trial(entry, texts, outcome, violation)


def _judge(error: Exception, entry: Entry, given: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an error, None if nothing is."""
    message = str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/mlcorr/" in frame.filename]
    behind = frames[frames.index(ours[-1]) + 1 :] if ours else frames  # what our last line called
    if any(part in frame.filename for part in entry.foreign for frame in behind) or isinstance(error, entry.errors):
        return None
    if isinstance(error, TypeError) and PYTHON.search(message) and not ours:
        return None
    if type(error) in (TypeError, ValueError, ImportError) and names_argument(message, entry, given):
        return None
    place = f"{ours[-1].filename.partition('/mlcorr/')[2]}:{ours[-1].lineno}" if ours else "outside"
    return f"{type(error).__name__} at {place}: {message[:200]}"


def trial(entry: Entry, source: Source) -> Trial | None:
    """Draw arguments and call; None where the arguments are not to be asked about."""
    given, texts = draw(entry, source)
    return None if entry.skip(given) else attempt(entry, given, texts)


# ---------------------------------------------------------------------------------------------------- many calls


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="a public name, or a name with its method")
    options = parser.parse_args(arguments)
    chosen = [each for each in ENTRIES if options.case in (None, each.name, each.title)]
    outcomes: dict[str, Counter[str]] = {each.name: Counter() for each in chosen}
    violations: Counter[str] = Counter()
    examples: dict[str, str] = {}
    whole = sum(each.share for each in chosen)
    for index, each in enumerate(chosen):
        for number in range(max(options.number * each.share // whole, 1)):
            done = trial(each, Seeded((options.seed, index, each.title, number)))
            if done is None:
                continue
            outcomes[each.name][done.outcome] += 1
            if done.violation:
                key = f"{each.title}: {re.sub(r'[0-9]+', '#', done.violation.partition(': ')[0])}"
                violations[key] += 1
                examples.setdefault(key, f"{done.violation}\n      {done.texts}")
    for name, counts in outcomes.items():
        refused = counts.total() - counts["result"]
        others = {k: v for k, v in counts.items() if k not in ("result", "TypeError", "ValueError")}
        sys.stdout.write(
            f"{name:32} {counts.total():7} {counts['result']:7} results {refused:7} refused {others or ''}\n"
        )
    total = sum(counts.total() for counts in outcomes.values())
    for key, count in violations.most_common():
        sys.stdout.write(f"\n{count} x {key}\n      {examples[key]}\n")
    sys.stdout.write(f"\n{total} combinations, {violations.total()} violations\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
