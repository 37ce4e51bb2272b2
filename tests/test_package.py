"""What importing the package costs and shows."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mlcorr
import mlcorr.functional


def in_fresh_interpreter(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    loaded = in_fresh_interpreter(
        "import torch, sys; before = set(sys.modules); import mlcorr, mlcorr.functional, mlcorr.metrics;"
        "import mlcorr.systems.mdkd; print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    ).split()
    assert "mlcorr" in loaded
    assert not {"triton", "scipy", "sklearn", "matplotlib", "pandas", "transformers"} & set(loaded)


def test_import_changes_nothing_global() -> None:
    program = (
        "import warnings; warnings.simplefilter('error'); import torch;"
        "torch.manual_seed(0); a = torch.rand(1); torch.manual_seed(0);"
        "import mlcorr, mlcorr.functional; assert torch.rand(1) == a;"
        "assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32"
    )
    in_fresh_interpreter(program)


@pytest.mark.parametrize("module", [mlcorr, mlcorr.functional])
def test_public_names_have_docstrings_with_examples(module) -> None:
    for name in module.__all__:
        documentation = getattr(module, name).__doc__ or ""
        assert ">>>" in documentation, f"{module.__name__}.{name} has no runnable example"
