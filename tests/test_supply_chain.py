"""Nothing is run that a file or an import brings along: no pickle of a file, no code at import."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.checkpoint import load_checkpoint
from examples.data import load_npz
from mlcorr import LabelGroups
from mlcorr.grouping.__main__ import main as group_labels

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("src", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# By the last part of a dotted name; with a keyword and its value, only a call that has not just this is refused.
READERS: dict[str, tuple[str, object] | None] = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.jit.load": None,
    "torch.hub.load": None,
    "torch.package.PackageImporter": None,
    "eval": None,
    "exec": None,
    "__import__": None,
    "os.system": None,
    "os.popen": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
REFUSED_TRUE = {"trust_remote_code", "shell", "allow_pickle"}  # keywords of any call


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` as it is written; what is called on a result begins with a dot."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "", *reversed(parts)])


def found_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of what may run code that was read from somewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
            if f"{node.module}.load" in READERS and any(alias.name == "load" for alias in node.names):
                yield node.lineno, f"{node.module}.load by another name"
        else:
            names = set()
        yield from ((node.lineno, f"import {name}") for name in sorted(names & MODULES))
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        name = dotted(node.func)
        if name in READERS:
            wanted = READERS[name]
            value = given.get(wanted[0]) if wanted else None
            if wanted is None or not (isinstance(value, ast.Constant) and value.value is wanted[1]):
                yield node.lineno, name
        for keyword in sorted(REFUSED_TRUE & given.keys()):
            value = given[keyword]
            if not (isinstance(value, ast.Constant) and value.value is False):
                yield node.lineno, f"{keyword}="


def test_no_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 100
    found = {
        str(path.relative_to(ROOT)): list(found_in(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "from torch import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "data.load_arrays(path, allow_pickle=given)",
        "eval(text)",
        "print(exec(text))",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_it_would_be_found(code: str) -> None:
    assert list(found_in(ast.parse(code)))


# ------------------------------------------------------------------------------------------------- a hostile file


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def as_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


def as_checkpoint(bomb: Bomb, path: Path) -> None:
    torch.save({"settings": bomb, "training": bomb}, path)


def as_old_checkpoint(bomb: Bomb, path: Path) -> None:
    torch.save({"training": bomb}, path, _use_new_zipfile_serialization=False)


def as_arrays(bomb: Bomb, path: Path) -> None:
    objects = np.empty((2, 2), dtype=object)
    objects[:] = bomb
    content = io.BytesIO()
    np.save(content, objects, allow_pickle=True)
    with zipfile.ZipFile(path, "w") as file:
        for name in ("features", "images", "targets", "label_names", "logits"):
            file.writestr(f"{name}.npy", content.getvalue())


def as_array(bomb: Bomb, path: Path) -> None:
    objects = np.empty((2, 2), dtype=object)
    objects[:] = bomb
    with path.open("wb") as file:
        np.save(file, objects, allow_pickle=True)


def group_a_file(path: Path) -> None:
    group_labels([str(path), "--output", str(path.with_name("groups.json"))])


@pytest.mark.parametrize("write", [as_pickle, as_checkpoint, as_old_checkpoint, as_arrays, as_array])
@pytest.mark.parametrize("read", [load_checkpoint, load_npz, LabelGroups.load, group_a_file])
@pytest.mark.parametrize("ending", [".pt", ".npz", ".npy"])
def test_a_hostile_file_is_refused(
    write: Callable[[Bomb, Path], None], read: Callable[[Path], object], ending: str, tmp_path: Path
) -> None:
    path, mark = tmp_path / f"hostile{ending}", tmp_path / "it ran"
    write(Bomb(mark), path)
    with pytest.raises((ValueError, SystemExit)) as refused:
        read(path)
    assert refused.value.args[0]  # a program that ends tells why, or has printed it (2)
    assert not mark.exists()


def test_the_bomb_goes_off(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    as_checkpoint(Bomb(tmp_path / "it ran"), tmp_path / "hostile.pt")
    torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert (tmp_path / "it ran").exists()


# ------------------------------------------------------------------------------------------------------- at import

IMPORT = """
import importlib, importlib.util, pkgutil, sys
import numpy, sklearn, torch, torch.distributed  # what they do themselves is theirs
for optional in ("triton", "triton.language", "torchmetrics", "transformers", "matplotlib.pyplot"):
    if importlib.util.find_spec(optional.partition(".")[0]):
        importlib.import_module(optional)
EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.remove",
    "os.rename", "os.putenv", "os.unsetenv", "shutil.", "ctypes.dlopen", "urllib.", "pickle.find_class", "signal.",
    "tempfile.", "os.chdir", "sys.settrace", "webbrowser.")
seen = []
def watch(event, arguments):
    if event.startswith(EVENTS):
        seen.append((event, str(arguments)))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append((event, str(arguments)))
sys.addaudithook(watch)
import mlcorr
names = [m.name for m in pkgutil.walk_packages(mlcorr.__path__, "mlcorr.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
assert len(names) > 40, names
print(seen)
"""


def test_nothing_happens_at_import() -> None:
    """No connection, no process, no file written, no environment changed."""
    ran = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", IMPORT], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
