"""The streamed similarities as operators: what compilers and transforms are told of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mlcorr.ops.contrast import similarities
from mlcorr.ops.contrast.streamed import gradient, statistics

KERNELS = [False, True]


def draw(rows: int, columns: int | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 2, (rows,), generator=generator)
    if columns is None:
        return x, None, labels, None
    more = torch.randn(columns, 3, generator=generator, dtype=torch.float64)
    return x, more, labels, torch.randint(-1, 2, (columns,), generator=generator)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("positives", [False, True])
@pytest.mark.parametrize("columns", [None, 0, 7])
@pytest.mark.parametrize("rows", [0, 5])
def test_schemas_and_shapes(rows: int, columns: int | None, positives: bool, kernels: bool) -> None:
    items = draw(rows, columns)
    settings = (5.0, positives, 4, kernels)
    torch.library.opcheck(torch.ops.mlcorr.contrast_statistics.default, (*items, *settings))
    lse = torch.ops.mlcorr.contrast_statistics(*items, *settings)[0]
    upstream = (torch.ones(rows, dtype=torch.float64), torch.ones(rows, dtype=torch.float64) if positives else None)
    for asked in itertools.product([False, True], repeat=2):
        torch.library.opcheck(
            torch.ops.mlcorr.contrast_gradient.default, (*upstream, *items, lse, 5.0, *asked, 4, kernels)
        )


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("columns", [None, 9])
def test_blocks_of_any_size_give_the_same(columns: int | None, block_size: int) -> None:
    items = draw(8, columns)
    whole = statistics(*items, 5.0, True, 100)
    for a, e in zip(statistics(*items, 5.0, True, block_size), whole, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-13)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2)]
    expected = gradient(*upstream, *items, whole[0], 5.0, True, True, 100)
    for a, e in zip(gradient(*upstream, *items, whole[0], 5.0, True, True, block_size), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernels", KERNELS)
def test_derivatives_of_each_output(kernels: bool) -> None:
    x, keys, labels, key_labels = draw(5, 4)
    backend = "streamed_triton" if kernels else "streamed"

    def outputs(x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        found = similarities(
            x, labels, keys, key_labels, 2.0, positives=True, block_size=3, backend=backend
        )  # fmt: skip
        return torch.where(labels >= 0, found.lse, 0.0), found.positive

    leaves = (x.requires_grad_(), keys.requires_grad_())
    assert torch.autograd.gradcheck(outputs, leaves)
    assert torch.autograd.gradgradcheck(outputs, leaves)
    both = torch.stack([x, 1 - x]).detach()
    for each in range(2):  # through the log-sum-exp alone, and through the positives alone
        of = torch.func.vmap(torch.func.grad(lambda x, each=each: outputs(x, keys)[each].sum()))(both)
        expected = torch.func.grad(lambda x, each=each: outputs(x, keys)[each].sum())(both[1])
        torch.testing.assert_close(of[1], expected)


def test_without_positives_they_are_empty() -> None:
    x, keys, labels, key_labels = draw(5, 4)
    found = similarities(
        x.requires_grad_(), labels, keys, key_labels, 2.0, positives=False, block_size=3, backend="auto"
    )
    assert (found.positive.numel(), found.positives.numel()) == (0, 0)
    assert (
        found.lse.tolist()
        == similarities(x, labels, keys, key_labels, 2.0, positives=True, block_size=3, backend="auto").lse.tolist()
    )


def test_a_row_that_does_not_count_has_no_key() -> None:
    x, keys, labels, key_labels = draw(5, 4)
    found = similarities(x, labels, keys, key_labels, 2.0, positives=True, block_size=3, backend="auto")
    assert torch.equal(found.lse == -torch.inf, labels < 0)
    assert not found.positives[labels < 0].any()
