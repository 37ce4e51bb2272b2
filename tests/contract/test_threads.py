"""Calls from many threads at once give what calls one after the other give, to the last bit."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from mlcorr.grouping import LabelGroups, SpectralLabelGrouping
from tests.contract.case import Arguments, Case, Sizes, Thing, cast, each_case, scalar, tensors, with_gradients
from tests.contract.cases import CASES

THREADS, ROUNDS = 8, 2
T = TypeVar("T")


def at_once(calls: list[Callable[[], T]]) -> list[T]:
    """Return the results of all calls, made when every thread is there."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        barrier.wait(timeout=60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def results(case: Case, thing: Thing, arguments: Arguments) -> list[Tensor]:
    arguments = with_gradients(case, arguments)
    output = case.call(thing, arguments)
    found = tensors(output)
    if case.leaves:
        found += torch.autograd.grad(scalar(output), [arguments[name] for name in case.leaves])
    return [each.detach().to_dense() if each.is_sparse else each.detach() for each in found]


def assert_same(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@each_case("gives from eight threads at once what it gives alone")
def test_threads(name: str) -> None:
    case = CASES[name]
    drawn = [case.draw(Sizes(seed=seed)) for seed in range(THREADS)]
    expected = [results(case, case.module(each), each) for each in drawn]
    for _ in range(ROUNDS):
        things = [case.module(each) for each in drawn]  # what learns or counts is nobody else's
        calls = [lambda t=thing, a=each: results(case, t, a) for thing, each in zip(things, drawn, strict=True)]
        assert_same(at_once(calls), expected)


def shared(case: Case) -> str | None:
    if case.kind in ("grouping", "metric"):
        return "counts what it is given; threads have one each"
    return None


@each_case("gives the same from one object in eight threads", needs=shared)
def test_one_for_all(name: str) -> None:
    case = CASES[name]
    drawn = [case.draw(Sizes(seed=seed)) for seed in range(THREADS)]
    thing = case.module(drawn[0])
    if isinstance(thing, nn.Module):
        thing.eval()
    expected = [results(case, thing, each) for each in drawn]
    for _ in range(ROUNDS):
        assert_same(at_once([lambda a=each: results(case, thing, a) for each in drawn]), expected)


FIRST_CALLS = """
    import threading
    from concurrent.futures import ThreadPoolExecutor

    def loss(): import mlcorr.functional as F, torch; return F.multi_order_dependency_loss(*torch.ones(2, 4, 5))
    def small(): import mlcorr, torch; return mlcorr.MultiOrderDependencyLoss(delta=0.1)(*torch.ones(2, 4, 5))
    def auto(): from mlcorr.ops import norder; return norder.select_backend("batch", batch_size=4, device="cuda").reason
    def contrast():
        import torch
        from mlcorr import DualContrastiveLoss
        return DualContrastiveLoss(5, 8, own_prototypes=False)(
            torch.ones(4, 5, 8), torch.ones(4, 5), prototypes=torch.eye(5, 8)
        )
    def groups():
        import torch
        from mlcorr import SpectralLabelGrouping
        grouping = SpectralLabelGrouping(6, 2, restarts=1, solver="operator")
        grouping.update(torch.eye(6).repeat(2, 1) + torch.eye(6).roll(1, 0).repeat(2, 1))
        return grouping.fit().co
    def score():
        import torch
        from mlcorr.metrics_torchmetrics import MultilabelScore
        metric = MultilabelScore(3)
        metric.update(torch.tensor([[0.9, 0.2, 0.6]]), torch.tensor([[1, 1, 0]]))
        return metric.compute()

    for call in (loss, small, auto, contrast, groups, score):
        barrier = threading.Barrier(8)
        def run(_):
            barrier.wait(timeout=60)
            return call()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(run, range(8)))
        assert len({str(each) for each in found}) == 1, (call.__name__, found)
    print("all the same")
"""


def test_first_calls_at_once() -> None:
    """In a new process, so that imports, registrations and choices of a backend happen in all threads at once."""
    pytest.importorskip("torchmetrics")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FIRST_CALLS)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout == "all the same\n", done.stderr


def test_what_the_whole_process_has_stays_as_it_was(tmp_path: Path) -> None:
    """Filters of warnings, the number of threads of a library, and the rights of new files are no thread's own."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    targets = torch.randint(0, 2, (60, 12), generator=torch.Generator().manual_seed(0))

    def fit(number: int) -> LabelGroups:
        grouping = SpectralLabelGrouping(12, 3, restarts=2, seed=number)
        grouping.update(targets)
        groups = grouping.fit()
        for again in range(20):
            groups.save(tmp_path / f"{number} {again}.json")
        return groups

    def settings() -> tuple[Any, ...]:
        (probe := tmp_path / "probe").touch()
        rights = probe.stat().st_mode
        probe.unlink()
        threads = [(each["prefix"], each["num_threads"]) for each in threadpoolctl.threadpool_info()]
        return list(warnings.filters), threads, rights

    expected = [fit(number) for number in range(THREADS)]
    before = settings()
    for _ in range(ROUNDS):
        assert at_once([partial(fit, number) for number in range(THREADS)]) == expected
        assert settings() == before
    files = list(tmp_path.iterdir())
    assert len(files) == 20 * THREADS
    assert {file.stat().st_mode for file in files} == {before[-1]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are of a GPU")
@pytest.mark.parametrize("name", ["multi_order_dependency_loss", "sample_contrastive_loss", "asymmetric_loss", "OPRL"])
def test_two_streams(name: str) -> None:
    case, device = CASES[name], torch.device("cuda")
    drawn = []
    for seed in range(2):
        arguments = cast(case.draw(Sizes(rows=64, labels=40, seed=seed)), torch.float32)
        drawn.append({key: each.to(device) if isinstance(each, Tensor) else each for key, each in arguments.items()})
    things = [case.module(each, Sizes(rows=64, labels=40)) for each in drawn]
    expected = [results(case, thing, each) for thing, each in zip(things, drawn, strict=True)]
    torch.cuda.synchronize()

    def on_stream(thing: Thing, arguments: Arguments) -> list[Tensor]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = [results(case, thing, arguments) for _ in range(10)][-1]
        stream.synchronize()
        return found

    found = at_once([lambda t=t, a=a: on_stream(t, a) for t, a in zip(things, drawn, strict=True)])
    torch.testing.assert_close(found, expected)
