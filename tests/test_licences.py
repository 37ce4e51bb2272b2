"""The licences of the pinned packages are listed, and fit Apache-2.0.

``python -m tests.test_licences`` writes the list, from the metadata of the packages themselves.
"""

from __future__ import annotations

import importlib.metadata
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = ROOT / "THIRD_PARTY_LICENSES.md"
HEADER = """# Licences of what mlcorr uses

mlcorr contains no code of others. This lists what is installed beside it, with the licence that each package's metadata
states, in the versions of `constraints.txt`. "core" is what `pip install mlcorr` brings; all else comes only with
an extra, most of it only to develop. `python -m tests.test_licences` writes this list, and a test compares it.

| package | licence | for |
|---|---|---|
"""

# Permissive, or (MPL-2.0) binding for changes of its own files alone: all may be used beside Apache-2.0.
COMPATIBLE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",  # of two or three clauses, the metadata do not say
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Public-Domain",
    "Zlib",
}
COPYLEFT = {"MPL-2.0"}  # nothing of the core
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Public Domain": "Public-Domain",
    "Python Software Foundation License": "PSF-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
}
# docutils' metadata name the GPL besides, for an Emacs file that no wheel has in use.
CHOSEN = {"docutils": "Public-Domain AND BSD"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Return the version of each package in constraints.txt, sorted by name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    parts = (line.partition("==") for line in lines if line)
    return dict(sorted((canonical(name), version) for name, _, version in parts))


def core() -> set[str]:
    """Return the packages that ``pip install mlcorr`` brings, and what these bring."""
    waiting, found = importlib.metadata.requires("mlcorr"), set()
    while waiting:
        requirement = waiting.pop()
        name, _, marker = requirement.partition(";")
        name = canonical(re.split(r"[\s<>=!~\[(;]", name.strip())[0])
        if name in found or "extra" in marker or name not in pinned():
            continue
        found.add(name)
        waiting += importlib.metadata.requires(name) or []
    return found


def licence(name: str) -> str:
    """Return the licence that the installed package states, as SPDX writes it."""
    if name in CHOSEN:
        return CHOSEN[name]
    metadata = importlib.metadata.metadata(name)
    stated = metadata.get("License-Expression")
    if stated:
        return stated
    lines = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    lines = lines or [metadata.get("License") or ""]
    return " OR ".join(CLASSIFIERS.get(line, line) for line in lines)


def parts(expression: str) -> set[str]:
    return {part.strip("() ") for part in re.split(r"\bAND\b|\bOR\b", expression)}


def rows() -> dict[str, str]:
    """Return a line for every package that is installed in its pinned version."""
    needed, lines = core(), {}
    for name, version in pinned().items():
        try:
            installed = importlib.metadata.version(name)
        except PackageNotFoundError:
            continue  # of an extra that this environment does not have
        if installed.partition("+")[0] == version:
            lines[name] = f"| {name} | {licence(name)} | {'core' if name in needed else 'an extra'} |"
    return lines


def listed() -> dict[str, str]:
    lines = LIST.read_text("utf-8").splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and " package " not in line}


def test_the_list_is_that_of_the_packages() -> None:
    known = listed()
    assert known.keys() == pinned().keys()
    found = rows()
    if not found:
        pytest.skip("no package is installed in its pinned version")
    assert {name: known[name] for name in found} == found


def test_every_licence_fits() -> None:
    for line in listed().values():
        _, name, stated, kind, _ = (cell.strip() for cell in line.split("|"))
        assert parts(stated) <= COMPATIBLE, name
        if kind == "core":
            assert not parts(stated) & COPYLEFT, name


def main() -> None:
    """Write the list."""
    lines = {**(listed() if LIST.exists() else {}), **rows()}
    LIST.write_text(HEADER + "\n".join(lines[name] for name in pinned()) + "\n", "utf-8")


if __name__ == "__main__":
    main()
