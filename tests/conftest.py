"""Property tests draw anew on a developer's machine; in CI they draw the same, so that red means a change.

Triton's kernels run on the device where there is one and in Triton's interpreter elsewhere.
"""

from __future__ import annotations

import os

# Processes that test side by side share the cores: threads that outnumber them wait for one another. Read when torch is
# imported, here and in what tests start.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
