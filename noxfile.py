"""The tests with the oldest and the newest dependencies that pyproject.toml allows: ``nox``."""

import nox

nox.options.default_venv_backend = "venv"
OLDEST = ("torch==2.5.*", "numpy==1.26.*", "einops==0.8.0", "scikit-learn==1.4.*")


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Run the tests with the lowest versions."""
    session.install(*OLDEST, "-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Run the tests with whatever is newest."""
    session.install("--upgrade", "-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)
