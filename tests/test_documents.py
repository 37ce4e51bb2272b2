"""Whatever looks like code in the README and in the documentation runs, or is checked as far as it can be.

- Python (fences of the README, ``code-block:: python`` and ``>>>`` of a page) runs in order, in one namespace a file.
- Commands, in a console block or between backquotes, name what exists and have arguments that their parser takes.
- What a ``diff`` adds is Python that names what the library has, with parameters that there are.
- Every other kind of block fails, unless it is in ``NOT_CODE``.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import importlib
import importlib.util
import inspect
import itertools
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import mlcorr
import mlcorr.systems

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.rst") if "_build" not in path.parts)
FRAGMENTS = sorted((ROOT / "docs").rglob("*.inc"))
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS = [*MARKDOWN, *PAGES, *FRAGMENTS]
NOT_CODE = {"text", "bibtex"}  # drawings, and what is to be copied
OTHERS = {"pip", "pytest", "sphinx"}  # modules whose arguments are not ours
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1


class Block(NamedTuple):
    """A piece of a document: what it is, where it stands (from 1), and its lines without their indentation."""

    kind: str
    line: int
    text: str


# ------------------------------------------------------------------------------------------------- what there is


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return fences(text) if path.suffix == ".md" else [*directives(text), *literals(text)]


def fences(text: str) -> list[Block]:
    found, inside, start = [], None, 0
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        fence = re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", line)
        if fence is None:
            continue
        if inside is None:
            inside, start = fence[2], number
        else:
            found.append(Block(inside, start + 1, textwrap.dedent("\n".join(lines[start : number - 1])) + "\n"))
            inside = None
    assert inside is None, f"line {start}: the fence is not closed"
    return found


def directives(text: str) -> list[Block]:
    """Return the blocks of directives that show code, by language; of directives unknown here by their own name."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        head = re.match(r"(\s*)\.\. ([\w-]+)::\s*(\S*)", line)
        if head is None or head[2] not in (
            *("code-block", "code", "sourcecode", "highlight", "parsed-literal", "prompt"),
            *("testsetup", "testcode", "testcleanup", "doctest", "ipython", "plot", "jupyter-execute"),
        ):
            continue
        body = indented(lines, number, len(head[1]))
        options = re.match(r"(\s*:[\w-]+:.*\n)*", body)
        kind = (head[3] or "no language") if head[2] == "code-block" else head[2]
        found.append(Block(kind, number + 1, body[options.end() if options else 0 :]))
    return found


def literals(text: str) -> list[Block]:
    """Return the blocks that a paragraph's ``::`` begins, and which so have no language."""
    lines = text.splitlines()
    return [
        Block("a literal block", number, indented(lines, number, len(line) - len(line.lstrip())))
        for number, line in enumerate(lines, 1)
        if line.rstrip().endswith("::") and not line.lstrip().startswith((".. ", ">>>", "...", "* -", "- "))
    ]


def indented(lines: list[str], after: int, margin: int) -> str:
    body: list[str] = []
    for line in lines[after:]:
        if line.strip() and len(line) - len(line.lstrip()) <= margin:
            break
        body.append(line)
    return textwrap.dedent("\n".join(body)).strip("\n") + "\n"


def commands_in(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the commands of a document, and whether they are whole: one in a sentence may be a name alone."""
    for block in blocks_of(path):
        if block.kind == "console":
            prompt = re.sub(r"\\\n\s*", " ", block.text)
            found = [line[2:] for line in prompt.splitlines() if line.startswith("$ ")]
            assert found, f"{path.name}, line {block.line}: a console block without a command after '$ '"
            yield from ((command, True) for command in found)
    quotes = "`" if path.suffix == ".md" else "``"
    prose = re.sub(r"^( *)(`{3,}).*?^ *\2", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for inline in re.finditer(rf"{quotes}((?:python -m|make|torchrun|accelerate launch) [^`]+?){quotes}", prose):
        yield " ".join(inline[1].split()), False


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_every_block_is_of_a_kind_that_is_checked(path: Path) -> None:
    known = {"python", "console", "diff", "testsetup", "testcleanup"} | NOT_CODE
    wrong = [f"line {block.line}: {block.kind}" for block in blocks_of(path) if block.kind not in known]
    assert not wrong, f"{identity(path)}: nothing runs these blocks: {wrong}"


# ------------------------------------------------------------------------------------------------------ Python


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
@pytest.mark.parametrize("path", [*MARKDOWN, *PAGES], ids=identity)
def test_its_python_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = blocks_of(path)
    pieces = [block for block in blocks if block.kind == "python"]
    examples = [] if path.suffix == ".md" else doctest.DocTestParser().get_examples(text)
    if not pieces and not examples:
        return
    namespace: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    monkeypatch.chdir(tmp_path)  # a page may write
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: original(*a, **{**k, "backend": "aot_eager"}))
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        prepare = PRELUDES.get(identity(path))
        if prepare is not None and pieces:
            namespace |= prepare(monkeypatch, tmp_path)
        try:
            run_in_order(path, blocks, examples, namespace)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def run_in_order(path: Path, blocks: list[Block], examples: list[doctest.Example], namespace: dict[str, Any]) -> None:
    """Run set-ups, then blocks and examples as they stand in the document."""
    pieces: list[tuple[int, Block | doctest.Example]] = [(e.lineno + 1, e) for e in examples]
    pieces += [(0 if block.kind == "testsetup" else block.line, block) for block in blocks if block.kind in RUN]
    runner, report = doctest.DocTestRunner(verbose=False, optionflags=FLAGS), []
    for line, piece in sorted(pieces, key=lambda each: each[0]):
        if isinstance(piece, Block):
            source = "\n" * (piece.line - 1) + piece.text  # so that a traceback names the document's line
            exec(compile(source, str(path), "exec"), namespace)
        else:
            test = doctest.DocTest([piece], {}, path.name, str(path), 0, None)
            test.globs = namespace  # and not a copy of it
            if runner.run(test, out=report.append, clear_globs=False).failed:
                raise AssertionError(f"{path.name}, line {line}:\n{''.join(report)}")


RUN = ("python", "testsetup")
Prelude = Callable[[pytest.MonkeyPatch, Path], dict[str, Any]]


def readme(_: pytest.MonkeyPatch, __: Path) -> dict[str, Any]:
    """What a training loop has before it begins: two networks, an optimiser, and batches."""
    images, target = torch.randn(8, 3, 32, 32), torch.randint(-1, 2, (8, 20))
    student, teacher = (
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 20))
        for _ in range(2)
    )
    return {
        "loader": [(images, target), (images[:3], target[:3])],
        "student": student,
        "teacher": teacher.eval(),
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
    }


def oprl(monkeypatch: pytest.MonkeyPatch, _: Path) -> dict[str, Any]:
    """A ResNet of transformers that is not fetched from anywhere."""
    transformers = pytest.importorskip("transformers", reason="the page shows a backbone of transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = transformers.ResNetModel(config)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", staticmethod(lambda *_, **__: model))
    return {}


def ml_vpt(monkeypatch: pytest.MonkeyPatch, _: Path) -> dict[str, Any]:
    """A small ViT of transformers that is not fetched from anywhere, and targets."""
    transformers = pytest.importorskip("transformers", reason="the page shows a backbone of transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = transformers.ViTModel(transformers.ViTConfig(**small, image_size=32), add_pooling_layer=False)
    monkeypatch.setattr(transformers.ViTModel, "from_pretrained", staticmethod(lambda *_, **__: vit))
    return {
        "num_labels": 12,
        "label_names": [f"label {index}" for index in range(12)],
        "training_batches": [(None, (torch.rand(200, 12) < 0.3).long())],
    }


def grouping(_: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """One process that is a group, batches, and a layer to give the result to."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    return {
        "LabelCooccurrence": mlcorr.LabelCooccurrence,
        "loader": [(None, (torch.rand(50, 80) < 0.1).long())],
        "gcn": mlcorr.AverageMessageGCN(dim=4, num_labels=80),
    }


def metrics(_: pytest.MonkeyPatch, __: Path) -> dict[str, Any]:
    """A stand-in for Lightning's module, since the page only defines a class of it."""
    made = pytest.importorskip("mlcorr.metrics_torchmetrics", reason="needs torchmetrics")
    return {
        "LightningModule": torch.nn.Module,
        **{name: getattr(made, name) for name in dir(made) if name[0].isupper()},
    }


def contributing(_: pytest.MonkeyPatch, __: Path) -> dict[str, Any]:
    """The example of a deprecation warns."""
    warnings.simplefilter("ignore", FutureWarning)
    return {"warnings": warnings}


PRELUDES: dict[str, Prelude] = {
    "CONTRIBUTING.md": contributing,
    "docs/api/metrics.rst": metrics,
    "README.md": readme,
    "docs/systems/oprl.rst": oprl,
    "docs/systems/ml_vpt.rst": ml_vpt,
    "docs/api/grouping.rst": grouping,
}


# ---------------------------------------------------------------------------------------------------- commands


class _Parsed(Exception):  # noqa: N818
    """Raised where a program would begin to work."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_its_commands_exist_and_take_their_arguments(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, whole in commands_in(path):
        check_command(command, whole, monkeypatch)


def check_command(command: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise AssertionError unless the command would start; it is not run."""
    program, *arguments = words_of(command)
    if program == "make":
        check_make(arguments, monkeypatch)
    elif program in ("torchrun", "accelerate") or (program == "python" and arguments[:1] == ["-m"]):
        assert "-m" in arguments, f"{command}: expected a module after -m"
        module, *rest = arguments[arguments.index("-m") + 1 :]
        check_module(module, rest, whole, monkeypatch)
    elif program == "pip":
        check_pip(arguments)
    else:
        assert program in ("cd", "git"), f"{command}: nothing checks this command"


def words_of(command: str) -> list[str]:
    """Return the words of a command, without the variables it is given."""
    return list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), shlex.split(command, comments=True)))


def check_make(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for target in (argument for argument in arguments if "=" not in argument):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"make {target}: there is no such target"
        recipe = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
        module = re.search(r"-m (\S+) .*\$\(ARGS\)", recipe[1]) if recipe else None
        assert "ARGS" not in given or module, f"make {target}: takes no ARGS"
        if "ARGS" in given and module:
            check_module(module[1], shlex.split(given["ARGS"]), True, monkeypatch)


def check_module(name: str, arguments: list[str], whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in OTHERS:
        if name == "pip":
            check_pip(arguments)
        return
    assert name.split(".")[0] in ("mlcorr", "examples", "benchmarks", "tests"), f"python -m {name}: not ours"
    package = any((ROOT / folder / name.replace(".", "/")).is_dir() for folder in ("src", "."))
    program = f"{name}.__main__" if package else name
    assert importlib.util.find_spec(program) is not None, f"python -m {name}: there is no such module"
    module = importlib.import_module(program)
    assert callable(getattr(module, "main", None)), f"python -m {name}: has no main()"
    if not arguments and not whole:
        return
    if "argparse" not in inspect.getsource(module):
        assert not arguments, f"python -m {name}: takes no arguments, got {arguments}"
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            module.main()
        except _Parsed:
            return
        except SystemExit as error:
            raise AssertionError(f"python -m {name}: does not take {arguments}") from error
    raise AssertionError(f"python -m {name}: ran without reading its arguments")


def check_pip(arguments: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    assert section is not None
    extras = set(re.findall(r"^([\w-]+) = \[", section[1], re.MULTILINE))
    for asked in re.findall(r"(?:\.|mlcorr)\[([^\]]+)\]", " ".join(arguments)):
        unknown = {extra.strip() for extra in asked.split(",")} - extras
        assert not unknown, f"pip install: there is no extra {unknown}"


# ------------------------------------------------------------------------------------------------------- diffs


@pytest.mark.parametrize("path", [*MARKDOWN, *PAGES], ids=identity)
def test_what_a_diff_adds_is_python_with_names_that_exist(path: Path) -> None:
    for block in blocks_of(path):
        if block.kind == "diff":
            check_diff(block.text)


def check_diff(text: str) -> None:
    added = [line[1:].removeprefix(" ") for line in text.splitlines() if line.startswith("+")]
    assert added, "a diff that adds nothing"
    for node in ast.walk(ast.parse("\n".join(added))):
        found = resolve(node.func if isinstance(node, ast.Call) else node)
        if isinstance(node, ast.Call) and found is not None:
            parameters = inspect.signature(found).parameters
            unknown = {keyword.arg for keyword in node.keywords} - parameters.keys()
            assert not unknown, f"{ast.unparse(node)}: no such parameters: {unknown}"


def resolve(node: ast.AST) -> Any:
    """Return what a name that begins with ``mlcorr.`` stands for, None for all else; raise where there is none."""
    if not isinstance(node, ast.Attribute):
        return None
    names = ast.unparse(node).split(".")
    if names[0] != "mlcorr":
        return None
    found: Any = mlcorr
    for depth, name in enumerate(names[1:], 2):
        if found is mlcorr.systems:  # whose modules are imported one by one
            importlib.import_module(".".join(names[:depth]))
        found = getattr(found, name)
    return found


# ------------------------------------------------------------------------------------------- the checks themselves


def write(folder: Path, text: str, name: str = "page.rst") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.md", "```\nx\n```\n", ""),
        ("a.md", "text\n\n~~~sh\nls\n~~~\n", "sh"),
        ("a.rst", ".. code-block:: bash\n\n   ls\n", "bash"),
        ("a.rst", ".. code-block::\n\n   ls\n", "no language"),
        ("a.rst", ".. code:: python\n\n   1 / 0\n", "code"),
        ("a.rst", "Like this::\n\n   1 / 0\n", "a literal block"),
        ("a.rst", ".. testcode::\n\n   1 / 0\n", "testcode"),
        ("a.rst", "- An item\n\n  .. code-block:: ruby\n     :linenos:\n\n     puts 1\n", "ruby"),
    ],
)
def test_a_block_that_nothing_runs_is_found(name: str, text: str, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name)
    assert [block.kind for block in blocks_of(path)] == [kind]
    assert kind not in {"python", "console", "diff", "testsetup"} | NOT_CODE


def test_blocks_and_examples_run_in_order_and_fail_at_their_line(tmp_path: Path) -> None:
    page = """
        >>> x = 1

        .. code-block:: python
           :caption: more

           x = x + 1
           y = x

        >>> x + y
        4
        """
    path = write(tmp_path, page)
    examples = doctest.DocTestParser().get_examples(path.read_text())
    run_in_order(path, blocks_of(path), examples, {})
    path = write(tmp_path, page.replace("x + y\n        4", "x + y\n        5"))
    examples = doctest.DocTestParser().get_examples(path.read_text())
    with pytest.raises(AssertionError, match="line 10"):
        run_in_order(path, blocks_of(path), examples, {})
    path = write(tmp_path, page.replace("y = x", "y = z"))
    with pytest.raises(NameError, match="z"):
        run_in_order(path, blocks_of(path), examples, {"x": 1})


@pytest.mark.parametrize(
    "command",
    [
        "make nonsense",
        "make lint ARGS=--quick",
        "make demo ARGS=--nonsense",
        "python -m benchmarks.nonsense",
        "python -m benchmarks.run --nonsense",
        "python -m benchmarks.run --case nonsense",
        "python -m examples.train",
        "torchrun --nproc-per-node 2 -m examples.distributed --nonsense 1",
        "A_VARIABLE=1 torchrun --nproc-per-node 2 -m examples.distributed --nonsense 1",
        "pip install mlcorr[nonsense]",
        "python -m pip install '.[dev,nonsense]'",
        "python -m antigravity",
        "curl example.org",
    ],
)
def test_a_command_that_would_not_start_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check_command(command, True, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "make demo ARGS='--data FILE.npz'  # with a comment",
        "make test",
        "python -m benchmarks.run --case 'labels-*' 'order-*' --providers naive,bce --output times.jsonl",
        "python -m examples.train --system oprl --data FILE.npz",
        "torchrun --nproc-per-node 2 -m examples.distributed --epochs 1",
        "A_VARIABLE=1 torchrun --nproc-per-node 2 -m examples.distributed --checkpoint run.pt",
        "python -m pip install '.[dev]'",
    ],
)
def test_a_command_that_would_start_passes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(command, True, monkeypatch)


@pytest.mark.parametrize(
    "added", ["+ mlcorr.NoLoss()", "+ mlcorr.MLDLoss(heat=2)", "+ mlcorr.functional.nothing(x)", "+ (", "- x"]
)
def test_a_diff_that_adds_what_there_is_not_is_found(added: str) -> None:
    with pytest.raises((AssertionError, AttributeError, ImportError, SyntaxError)):
        check_diff(added)
