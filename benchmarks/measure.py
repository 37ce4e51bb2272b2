"""Clocks that take turns, and the peak of memory."""

from __future__ import annotations

import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

ROUNDS = 10

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Task(NamedTuple):
    """What is timed: ``run`` on what ``prepare`` returns outside the clock, ``at_once`` of which are held together."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    at_once: int = 50


def time_in_turns(tasks: Mapping[Key, Task], device: torch.device, seconds: float) -> dict[Key, list[float]]:
    """Return the seconds a run of each task takes, ``ROUNDS`` times, or fewer where they do not fit ``seconds``.

    Every task is warmed up. The tasks take turns, so that a drift of the machine meets all of them alike. Where a task
    is short, one sample is the mean over as many runs as fill a round's share of ``seconds``. Where the machine gets so
    busy that a sample takes four times its share, or a task, preparations included, twice its ``seconds``, it ends.
    """
    repeats, rounds = {}, {}
    for key, task in tasks.items():
        once = clock(task, 1, device)
        if once < seconds / ROUNDS:
            once = clock(task, 3, device)  # the first run may have been a slow one
        repeats[key] = max(int(seconds / ROUNDS / once), 1)
        rounds[key] = min(max(int(seconds / once), 1), ROUNDS)
    samples: dict[Key, list[float]] = {key: [] for key in tasks}
    spent = dict.fromkeys(tasks, 0.0)
    for number in range(ROUNDS):
        for key, task in tasks.items():
            if number < rounds[key] and spent[key] < 2 * seconds:
                start = time.perf_counter()
                samples[key].append(clock(task, repeats[key], device, 4 * seconds / ROUNDS))
                spent[key] += time.perf_counter() - start
    return samples


def clock(task: Task, repeats: int, device: torch.device, limit: float = math.inf) -> float:
    """Return the mean seconds of ``repeats`` runs, or of fewer where they take longer than ``limit`` in all."""
    seconds, done = 0.0, 0
    while done < repeats and seconds < limit:
        prepared = [task.prepare() for _ in range(min(task.at_once, repeats - done))]
        synchronize(device)
        start = time.perf_counter()
        for each in prepared:
            task.run(each)
        synchronize(device)
        seconds += time.perf_counter() - start
        done += len(prepared)
    return seconds / done


def timed(run: Callable[[], Value], device: torch.device) -> tuple[Value, float]:
    """Return what ``run`` returns and the seconds that it takes once."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return result, time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what was launched on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak, in bytes, of what ``run`` allocates and has not yet freed, its result included.

    Counted is what PyTorch's allocator hands out for tensors: on a GPU by the allocator's own statistics, on a CPU by
    the allocations and releases that the profiler records. Not counted are tensors that existed before, Python's
    objects, and what libraries such as BLAS, or compiled kernels for their own scratch, take from the system.
    """
    gc.collect()  # what is freed of earlier runs must not be taken for this one's
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result  # after the recording: a release in it would not be a part of the run
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda x: x[0]):
        held += change
        peak = max(peak, held)
    return peak


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return p20, statistics.median(values), p80
