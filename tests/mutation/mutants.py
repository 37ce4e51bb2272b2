"""A sample of all small changes of the library's code that cosmic-ray can make."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PARTS = ("ops", "losses", "layers", "grouping")


class Mutant(NamedTuple):
    """One change: the ``occurrence``-th that an operator makes in a file."""

    path: str
    line: int
    operator: str
    occurrence: int


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the places of type annotations, which are not run: first position, and that after the last."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            found.append(node.returns)
    return [((each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0)) for each in found]


def all_mutants(path: Path) -> Iterable[tuple[tuple[str, tuple[int, int], str], Mutant]]:
    """Yield every mutant of a file after the site that it changes: file, position and kind of operator."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text(encoding="utf-8")
    tree, unrun, name = get_ast(source), annotations(source), str(path.relative_to(ROOT))
    for operator_name in sorted(operator_names()):
        operator = get_operator(operator_name)
        if operator.arguments():
            continue  # those that want to be told a variable
        positions = (start for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node))
        for occurrence, start in enumerate(positions):
            if not any(first <= start < last for first, last in unrun):
                kind = "_".join(operator_name.rpartition("/")[2].split("_")[:2])
                yield (name, start, kind), Mutant(name, start[0], operator_name, occurrence)


def sample(number: int, seed: int) -> tuple[list[Mutant], int, int]:
    """Return a random sample, and how many sites and mutants there are.

    A place where twelve operators could stand has twelve mutants, a condition has one. So that the first does not count
    twelvefold, places are drawn first, and of each drawn one mutant.
    """
    sites: dict[tuple[str, tuple[int, int], str], list[Mutant]] = {}
    for part in PARTS:
        for path in sorted((ROOT / "src/mlcorr" / part).rglob("*.py")):
            for site, mutant in all_mutants(path):
                sites.setdefault(site, []).append(mutant)
    draw, drawn = random.Random(seed), []
    for site in draw.sample(sorted(sites), len(sites)):
        mutant = draw.choice(sites[site])
        if len(drawn) < number and is_another_program(mutant):
            drawn.append(mutant)
    return drawn, len(sites), sum(map(len, sites.values()))


def is_another_program(mutant: Mutant) -> bool:
    """Whether the change is one once it is read: 1e30 + 1 is 1e30, and an argument list's bare * is no operator."""
    try:
        changed = ast.parse(mutated(mutant))
    except SyntaxError:
        return False
    return ast.dump(changed) != ast.dump(ast.parse((ROOT / mutant.path).read_text(encoding="utf-8")))


def mutated(mutant: Mutant) -> str:
    """Return the source with the change."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    changed: str = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    return changed
