"""Compiled to one graph, which serves every size of batch, what a training step calls is what it is without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mlcorr import AsymmetricLoss, MLDLoss
from tests.contract.case import Arguments, Case, Sizes, Thing, a_module, each_case, scalar, tensors, with_gradients
from tests.contract.cases import CASES
from tests.losses.compilers import need_compiler

ROWS = (7, 9, 6)  # all more than the labels, and no other size of a case, which a compiler would take for the same
BY_VALUES = "looks at values, which a graph cannot hold; it is called between epochs"
CHOOSES_BY_ROWS = (
    "multi_order_dependency_loss",
    "MultiOrderDependencyLoss",
    "MDKDObjective",
)  # other matrix products where rows < labels


def in_a_training_step(case: Case) -> str | None:
    if case.kind == "metric":
        return "makes Python's numbers of a whole epoch; it is called between epochs"
    return "tells a reader something, and computes nothing that a step needs" if case.kind == "choice" else None


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(case: Case, thing: Thing, arguments: Arguments, marked: bool = False) -> list[Tensor]:
    """Return values, gradients, and the state that is left; ``marked``: of leaves whose rows alone are dynamic."""
    arguments = with_gradients(case, arguments)
    for name in case.leaves if marked else ():
        torch._dynamo.mark_dynamic(arguments[name], 0)
    output = case.call(thing, arguments)
    gradients: list[Tensor] = []
    if case.leaves:
        own = list(thing.parameters()) if isinstance(thing, nn.Module) else []
        wanted = [*(arguments[name] for name in case.leaves), *(each for each in own if each.requires_grad)]
        found = torch.autograd.grad(scalar(output), wanted, allow_unused=True)
        gradients = [torch.zeros(()) if each is None else each for each in found]
    state = [each.clone() for each in thing.buffers()] if isinstance(thing, nn.Module) else []
    return [*(each.detach() for each in tensors(output)), *gradients, *state]


def graphs(case: Case, backend: str, rows: tuple[int, ...], *, dynamic: bool | None = True) -> list[int]:
    """Call a compiled thing with batches of these sizes, compare, and return how many graphs there were after each."""
    first = case.draw(Sizes(rows=rows[0]))
    compiled_thing, eager_thing = case.module(first, Sizes(rows=rows[0])), case.module(first, Sizes(rows=rows[0]))
    counter = CompileCounterWithBackend(backend)

    def call(_: Thing, arguments: Arguments) -> Any:
        return case.call(compiled_thing, arguments)

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=counter)
    within = Case(kind=case.kind, make=case.make, draw=case.draw, leaves=case.leaves, call=compiled)
    counts = []
    for number in rows:
        arguments = case.draw(Sizes(rows=number, seed=number))
        found = step(within, compiled_thing, arguments, marked=dynamic is None)
        torch.testing.assert_close(found, step(case, eager_thing, arguments))
        counts.append(counter.frame_count)
    return counts


@each_case(
    "compiles to one graph for every number of rows",
    needs=in_a_training_step,
    but={
        "LabelCooccurrence, sparse": BY_VALUES,
        "SpectralLabelGrouping": BY_VALUES,
        "LabelGroups": "checks the groups that it is given, by their values, when it is made",
        "normalized_cut": BY_VALUES,
    },
)
def test_one_graph(name: str) -> None:
    case = CASES[name]
    # Of modules the derivative is that of the functions they call, which the systems' own tests compile too.
    backend = "eager" if a_module(case) is None else "aot_eager"
    pictures = case.kind == "backbone"  # of one size, to which positions may be interpolated
    few = () if pictures or name.partition(",")[0] in CHOOSES_BY_ROWS else (2,)
    counts = graphs(case, backend, (*ROWS, *few), dynamic=None if pictures else True)
    # The first call counts the attempt that finds out which numbers are constants too.
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("shape", [(3,), (1,), (1, 3), ()])
@pytest.mark.parametrize("make", [AsymmetricLoss, MLDLoss])
def test_one_graph_with_weights_in_a_module(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    def draw(sizes: Sizes) -> Arguments:
        generator = torch.Generator().manual_seed(sizes.seed)
        return {name: torch.rand(sizes.rows, 3, generator=generator) for name in ("of", "to")}

    def call(loss: Thing, arguments: Arguments) -> Any:
        return loss(arguments["of"], arguments["to"])

    weight = torch.rand(shape)
    case = Case(kind="loss", make=lambda sizes: make(weight=weight), draw=draw, leaves=("of",), call=call)  # noqa: ARG005
    counts = graphs(case, "aot_eager", (*ROWS, 2))
    assert counts == [counts[0]] * len(counts)


@pytest.mark.parametrize("name", ["binary_cross_entropy_loss", "purify"])
def test_one_graph_of_inductor(name: str) -> None:
    need_compiler("inductor")
    counts = graphs(CASES[name], "inductor", ROWS)
    assert counts == [counts[0]] * len(ROWS)


def test_a_second_graph_is_counted() -> None:
    """Else the property could hold of everything."""

    def draw(sizes: Sizes) -> Arguments:
        return {"x": torch.zeros(sizes.rows, 2, dtype=torch.float64)}

    def by_rows(x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] % 2 else x * 2

    counts = graphs(Case(kind="loss", make=lambda sizes: by_rows, draw=draw), "aot_eager", ROWS)  # noqa: ARG005
    assert counts[-1] > counts[0]
