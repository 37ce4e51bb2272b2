"""What a release consists of: the files of the wheel and of the sdist, the same bytes from the same source.

Both are built offline, from a copy of what pyproject.toml names for the sdist.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import mlcorr

ROOT = Path(__file__).parents[1]
CORE = {"torch", "numpy", "einops", "scikit-learn"}
OPTIONAL = (
    "accelerate", "hypothesis", "lightning", "matplotlib", "onnx", "onnxruntime", "pytest", "pytorch_lightning",
    "pytorch_metric_learning", "rich", "timm", "torchmetrics", "transformers", "triton",
)  # fmt: skip
LITTER = (
    "notes.md", ".hypothesis/notes.md", ".nox/newest/README.md", ".venv/lib/package/README.md",
    "build/lib/mlcorr/old.py",
    "docs/_build/html/index.html", "runs/model.pt", "runs/notes.md", "src/mlcorr/__pycache__/metrics.cpython-311.pyc",
    "src/mlcorr.egg-info/PKG-INFO", "tests/__pycache__/conftest.cpython-311.pyc",
)  # fmt: skip


class Built(NamedTuple):
    """What was built from a copy, and where the copy is."""

    source: Path
    wheel: Path
    sdist: Path


def copy_of_the_source(origin: Path, copy: Path) -> Path:
    """Copy what belongs in an sdist: the patterns of pyproject.toml, all of which are names in the root."""
    listed = re.search(r"targets\.sdist\]\s*include = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert listed, "pyproject.toml: found no list of what is in the sdist"
    copy.mkdir()
    for pattern in (".gitignore", "pyproject.toml", *re.findall(r'"/?([^"]+)"', listed[1])):
        for path in origin.glob(pattern):
            if path.is_dir():
                litter = shutil.ignore_patterns("__pycache__", "_build", "generated", "*.egg-info", ".*")
                shutil.copytree(path, copy / path.name, ignore=litter)
            else:
                shutil.copy(path, copy / path.name)
    return copy


def run(*arguments: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Return what the interpreter printed; what it complained of is the failure."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, output: Path, **environment: str) -> Built:
    program = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1])); print(b.build_sdist(sys.argv[1]))"
    environment = {**{k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}, **environment}
    names = run("-c", program, output, cwd=source, environment=environment).split()
    return Built(source, *(output / name for name in names))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    directory = tmp_path_factory.mktemp("distribution")
    return build(copy_of_the_source(ROOT, directory / "source"), directory / "dist")


def files_under(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    information = f"mlcorr-{mlcorr.__version__}.dist-info"
    assert len(names) == len(set(names))
    assert {name for name in names if not name.startswith(information)} == {
        name for name in files_under(built.source / "src") if name.startswith("mlcorr/")
    }
    assert {name for name in names if name.startswith(information)} == {
        f"{information}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")
    }
    assert "mlcorr/py.typed" in names
    assert {Path(name).suffix for name in names if name.startswith("mlcorr/")} == {".py", ".typed"}


def test_sdist_has_what_pyproject_names(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)
    root = f"mlcorr-{mlcorr.__version__}/"
    names = {member.name.removeprefix(root) for member in members}
    assert names == files_under(built.source) | {"PKG-INFO"}
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt", "tests/conftest.py"} <= names
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        "benchmarks", "docs", "examples", "src", "tests",
    }  # fmt: skip


def test_builds_are_the_same_whatever_the_machine(built: Built, tmp_path: Path) -> None:
    copy = copy_of_the_source(built.source, tmp_path / "elsewhere")
    for number, path in enumerate(sorted(copy.rglob("*"))):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1e9 + number, 1e9 + number))
    for name in LITTER:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"litter")
    again = build(copy, tmp_path / "dist", TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


def test_sdist_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = build(source, tmp_path / "dist")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


def test_metadata(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"mlcorr-{mlcorr.__version__}.dist-info/METADATA"))
    assert metadata["Name"] == "mlcorr"
    assert metadata["Version"] == mlcorr.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r)[0] for r in required} == CORE
    assert all(">=" in r for r in required)


def test_readme_renders(built: Built) -> None:
    pytest.importorskip("twine", reason="twine, which checks that PyPI can show the README, is not installed")
    run("-m", "twine", "check", "--strict", built.wheel, built.sdist, cwd=built.source)


def test_version_is_the_same_everywhere() -> None:
    """It stands in ``mlcorr/__init__.py``; the citation, which no program reads it into, must say the same."""
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == mlcorr.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if ".dev" not in mlcorr.__version__:
        changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        assert re.search(rf"^## {re.escape(mlcorr.__version__)}\b", changes, re.MULTILINE), "a release without changes"


def test_wheel_alone_imports_without_optional_packages(built: Built, tmp_path: Path) -> None:
    zipfile.ZipFile(built.wheel).extractall(tmp_path)
    program = f"""
import importlib, pkgutil, runpy, sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
sys.modules.update(dict.fromkeys({OPTIONAL!r}))  # importing any of them raises ModuleNotFoundError
import torch
warnings.simplefilter("error")
import mlcorr
assert mlcorr.__file__.startswith({str(tmp_path)!r}), mlcorr.__file__
for module in pkgutil.walk_packages(mlcorr.__path__, "mlcorr."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            # Only a module that is named after an optional package may need one.
            if not module.name.endswith(tuple("_" + name for name in {OPTIONAL!r})):
                raise
runpy.run_module("mlcorr", run_name="__main__")
"""
    assert mlcorr.__version__ in run("-I", "-c", program, cwd=tmp_path)
