"""How fast the losses are on this machine: ``python -m benchmarks.run`` (or ``make bench``)."""

import os

# PyTorch's profiler, which counts memory on a CPU, otherwise writes two lines to stderr at every use.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
