"""Property tests draw anew on a developer's machine; in CI they draw the same, so that red means a change.

Triton's kernels run on the device where there is one and in Triton's interpreter elsewhere.
"""

from __future__ import annotations

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
