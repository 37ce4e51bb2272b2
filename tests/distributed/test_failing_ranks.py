"""One rank dies, sleeps or is given bad input: the others get an error in bounded time, and keep what they had."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.calls import CALLS
from tests.distributed.failing import Way, process

HANG = 150.0  # seconds after which a process is taken to hang, far beyond what a slow machine needs
TIMEOUT = 10.0  # of a group in which somebody sleeps
AT_ONCE = 3600.0  # of a group in which a lost connection must be noticed by itself
AT_A_TIME = 7

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, and killed by a signal")


class Trial:
    """The processes of one call that fails."""

    def __init__(self, name: str, way: Way, ranks: int, timeout: float, folder: Path) -> None:
        self.name, self.ranks, self.folder = name, ranks, folder
        folder.mkdir()
        context = multiprocessing.get_context("forkserver")  # which imports once for all
        context.set_forkserver_preload(["tests.distributed.failing"])
        arguments = (ranks, name, way, timeout, str(folder))
        self.processes = [
            context.Process(target=process, args=(rank, *arguments), daemon=True) for rank in range(ranks)
        ]
        for each in self.processes:
            each.start()

    def reports(self, survivors: int) -> list[dict[str, Any]]:
        """Wait for what the survivors report, and end all."""
        end = time.monotonic() + HANG
        paths = [self.folder / f"{rank}.report" for rank in range(survivors)]
        try:
            while not all(path.exists() for path in paths):
                gone = [each.exitcode for each in self.processes[: self.ranks - 1]]
                assert not any(gone), f"{self.name}: a process broke before it could report: {gone}"
                assert time.monotonic() < end, f"{self.name}: hangs"
                time.sleep(0.02)
        finally:
            for each in self.processes:
                each.kill()
                each.join()
        return [pickle.loads(path.read_bytes()) for path in paths]


def trials(way: Way, ranks: int, timeout: float, survivors: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    names, found = list(CALLS), {}
    for first in range(0, len(names), AT_A_TIME):
        together = names[first : first + AT_A_TIME]
        running = [Trial(name, way, ranks, timeout, folder / str(names.index(name))) for name in together]
        for trial in running:
            found[trial.name] = trial.reports(survivors)
    return found


def assert_failed(name: str, report: dict[str, Any], message: str) -> None:
    assert report["runtime"], (name, report)
    assert any(part in report["message"] for part in message.split("|")), (name, report)
    assert report["same"], f"{name}: its state changed"


LOST = "Connection closed by peer|Connection reset by peer|Broken pipe"


@pytest.mark.parametrize("way", ["dies", "dies before the backward pass"])
def test_a_rank_that_dies_is_noticed_at_once(way: Way, tmp_path: Path) -> None:
    if way == "dies":
        found = trials(way, 3, AT_ONCE, 2, tmp_path)
    else:
        found = {"DualContrastiveLoss": Trial("DualContrastiveLoss", way, 3, AT_ONCE, tmp_path / "0").reports(2)}
    for name, reports in found.items():
        for report in reports:
            assert_failed(name, report, LOST)


def test_a_rank_that_sleeps_is_waited_for_until_the_timeout(tmp_path: Path) -> None:
    for name, (report,) in trials("sleeps", 2, TIMEOUT, 1, tmp_path).items():
        assert_failed(name, report, "Timed out waiting")


def test_bad_input_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    """The rank raises what names the argument, before it communicates; the others wait until the timeout."""
    for name, (waiting, refusing) in trials("refuses", 2, TIMEOUT, 2, tmp_path).items():
        assert_failed(name, waiting, "Timed out waiting")
        assert refusing["error"] == "ValueError", (name, refusing)
        assert refusing["same"], f"{name}: its state changed"
