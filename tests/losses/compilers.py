"""What tests of compiled losses share."""

from __future__ import annotations

import shutil

import pytest


def need_compiler(backend: str) -> None:
    """Skip a test of inductor where it has no compiler to hand its code to."""
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
