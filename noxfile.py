"""The tests with the oldest and the newest dependencies that pyproject.toml allows, and of the wheel: ``nox``.

The oldest PyTorch on PyPI for Linux brings several gigabytes of CUDA. With
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`` pip takes the build without it.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["oldest", "newest"]

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What checks the source, and what PyTorch brings itself, in the only version that it works with.
NOT_FOR_TESTS = ("build", "hatchling", "import-linter", "mypy", "ruff", "triton", "twine")
# What the lowest versions stumble over when it is new: matplotlib 3.8 calls what pyparsing 3.3 says is deprecated.
NOT_NEW = ("pyparsing<3.3",)

OUTSIDE_CORE = """
import sys
import mlcorr.functional, mlcorr.grouping, mlcorr.metrics, mlcorr.systems.backbones, mlcorr.systems.latent_context
import mlcorr.systems.mdkd, mlcorr.systems.ml_vpt, mlcorr.systems.oprl, mlcorr.systems.sadcl
assert "site-packages" in mlcorr.__file__, mlcorr.__file__
loaded = {"matplotlib", "rich", "torchmetrics", "transformers", "triton"} & set(sys.modules)
assert not loaded, loaded
"""


def name_of(requirement: str) -> str:
    """Return the distribution that a requirement is for."""
    return re.split(r"[^\w-]", requirement, maxsplit=1)[0]


def for_tests(extra: str = "dev") -> list[str]:
    """Return what the package and its tests need, with the extras that an extra names written out."""
    listed = list(PROJECT["dependencies"])
    for requirement in EXTRAS[extra]:
        if name_of(requirement) == "mlcorr":
            for other in re.findall(r"[\w-]+", requirement.partition("[")[2]):
                listed += for_tests(other)
        else:
            listed.append(requirement)
    return sorted({requirement for requirement in listed if name_of(requirement) not in NOT_FOR_TESTS})


def lowest(requirement: str) -> str:
    """Return ``name==1.2.*`` for ``name>=1.2``."""
    return re.sub(r">=([\d.]+).*", r"==\1.*", requirement)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests with the lowest versions."""
    session.install(*map(lowest, for_tests()), *NOT_NEW)
    session.install("--no-deps", "--editable", ".")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """Run the tests with whatever is newest."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "--editable", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.11")
def coverage(session: nox.Session) -> None:
    """Run the tests with the pinned versions, and tell which lines and branches of the library they leave out."""
    session.install("--constraint", "constraints.txt", "--editable", ".[dev]")
    session.install("pytest-cov")
    session.run("python", "-m", "pytest", "--cov=mlcorr", "--cov-report=", *session.posargs)
    session.run("python", "-m", "coverage", "report", "--fail-under=98")


@nox.session
def audit(session: nox.Session) -> None:
    """Ask whether anything is known against a pinned version; needs the network."""
    session.install("pip-audit")
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "--requirement", "constraints.txt")


@nox.session(python=["3.10", "3.13"])
def wheel(session: nox.Session) -> None:
    """Install the wheel that lies in dist with only what it asks for, import all of it, then run the tests on it."""
    (built,) = Path("dist").glob("*.whl")
    session.install(str(built))
    session.run("python", "-I", "-c", OUTSIDE_CORE)
    session.run("python", "-I", "-m", "mlcorr")
    session.install(*for_tests())
    session.run("python", "-m", "pytest", "tests", "--ignore=tests/test_distribution.py", *session.posargs)
