"""BidirectionalRefiner against nested loops."""

from __future__ import annotations

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr import BidirectionalRefiner
from tests.reference import oprl as loops
from tests.reference.oprl import numbers, stacked

BOTH = ("representation", "category")


def refiner(*args, seed: int = 0, **kwargs) -> BidirectionalRefiner:
    """A refiner in float64 whose norms are not the identity."""
    torch.manual_seed(seed)
    layer = BidirectionalRefiner(*args, **kwargs).double()
    with torch.no_grad():
        for norm in (m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return layer


def path_of(path: torch.nn.Module | None):
    if path is None:
        return None
    channels, labels = (
        tuple(numbers(p) for linear in (perceptron[0], perceptron[3]) for p in (linear.weight, linear.bias))
        for perceptron in (path.over_channels, path.over_labels)
    )
    return channels, (numbers(path.norm.weight), numbers(path.norm.bias)), labels


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 2),
    labels=st.integers(1, 4),
    dim=st.integers(2, 4),  # a layer norm of one number is its bias
    hidden_dim=st.none() | st.integers(1, 3),
    hidden_labels=st.none() | st.integers(1, 3),
    paths=st.sampled_from([BOTH, BOTH[:1], BOTH[1:]]),
    seed=st.integers(0, 99),
)
def test_equals_the_loops(images, labels, dim, hidden_dim, hidden_labels, paths, seed) -> None:
    layer = refiner(labels, dim, hidden_dim=hidden_dim, hidden_labels=hidden_labels, paths=paths, seed=seed)
    x = torch.randn(images, labels, dim, dtype=torch.float64, requires_grad=True)
    norm = numbers(layer.norm.weight), numbers(layer.norm.bias)
    parts = path_of(layer.representation), path_of(layer.category)
    assert [part is not None for part in parts] == [path in paths for path in BOTH]
    expected = stacked([loops.bidirectional_refiner(numbers(image), norm, *parts) for image in x])
    # A layer norm divides by the spread of its row, and magnifies the rounding of either side by as much.
    spread = x.detach().std(-1, correction=0).min().clamp(max=1).item()
    close = {"rtol": 1e-12 / spread, "atol": 1e-12 / spread}
    torch.testing.assert_close(layer(x), expected, **close)
    factor, leaves = torch.randn_like(expected), (x, *layer.parameters())
    for got, wanted in zip(
        *(torch.autograd.grad((out * factor).sum(), leaves) for out in (layer(x), expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, **close)


def test_as_many_labels_as_channels() -> None:
    # The misprinted residual has a matching shape here, and would pass unseen.
    layer = refiner(3, 3)
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    norm = numbers(layer.norm.weight), numbers(layer.norm.bias)
    parts = path_of(layer.representation), path_of(layer.category)
    expected = stacked([loops.bidirectional_refiner(numbers(image), norm, *parts) for image in x])
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


def test_default_widths() -> None:
    layer = BidirectionalRefiner(20, 64)
    assert [tuple(p.shape) for p in layer.representation.over_channels.parameters()] == [(4, 64), (4,), (64, 4), (64,)]
    assert [tuple(p.shape) for p in layer.category.over_labels.parameters()] == [(20, 20), (20,), (20, 20), (20,)]
    assert BidirectionalRefiner(20, 8).representation.over_channels[0].out_features == 1


def test_silent_perceptrons_leave_the_norms() -> None:
    layer = refiner(4, 6)
    for path in (layer.representation, layer.category):
        for perceptron in (path.over_channels, path.over_labels):
            torch.nn.init.zeros_(perceptron[3].weight)
            torch.nn.init.zeros_(perceptron[3].bias)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    u = layer.norm(x)
    expected = (layer.representation.norm(u) + layer.category.norm(u)) / 2
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-14)


def test_the_mean_of_the_two_paths() -> None:
    layer = refiner(4, 6)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    halves = []
    for path, other in (BOTH, BOTH[::-1]):
        alone = BidirectionalRefiner(4, 6, paths=(path,)).double()
        state = {k: v for k, v in layer.state_dict().items() if not k.startswith(other)}
        alone.load_state_dict(state, strict=True)
        halves.append(alone(x))
    torch.testing.assert_close(layer(x), (halves[0] + halves[1]) / 2, rtol=1e-12, atol=1e-14)


def test_permuted_labels() -> None:
    layer = refiner(5, 4, hidden_labels=3)
    order = torch.randperm(5)
    moved = copy.deepcopy(layer)
    with torch.no_grad():
        for path in (moved.representation, moved.category):
            first, last = path.over_labels[0], path.over_labels[3]
            first.weight.copy_(first.weight[:, order].clone())
            last.weight.copy_(last.weight[order].clone())
            last.bias.copy_(last.bias[order].clone())
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(moved(x[:, order]), layer(x)[:, order], rtol=1e-11, atol=1e-12)


def test_dropout_only_in_training() -> None:
    layer = BidirectionalRefiner(5, 4, dropout=0.5)
    x = torch.randn(2, 5, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    without = BidirectionalRefiner(5, 4)
    without.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(without(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = BidirectionalRefiner(12, 64)
    x = torch.randn(4, 12, 64)
    truth = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        mixed = layer(x)
    half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    # The output has unit scale; a handful of half-precision sums and products went into it.
    for y in (mixed, half):
        assert (y.float() - truth).abs().max() <= 8 * torch.finfo(dtype).eps * truth.abs().max()


def test_compiles_exports_maps_and_is_saved() -> None:
    torch.compiler.reset()
    layer, other, x = BidirectionalRefiner(5, 4), BidirectionalRefiner(5, 4), torch.randn(3, 5, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        BidirectionalRefiner(6, 4).load_state_dict(layer.state_dict())


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^num_labels: ", lambda: BidirectionalRefiner(0, 3)),
        (ValueError, "^dim: ", lambda: BidirectionalRefiner(5, 0)),
        (ValueError, "^hidden_dim: ", lambda: BidirectionalRefiner(5, 3, hidden_dim=0)),
        (ValueError, "^hidden_labels: ", lambda: BidirectionalRefiner(5, 3, hidden_labels=-1)),
        (ValueError, "^dropout: ", lambda: BidirectionalRefiner(5, 3, dropout=1.5)),
        (ValueError, "^paths: .*'labels'", lambda: BidirectionalRefiner(5, 3, paths=("labels",))),
        (ValueError, "^paths: .*at least one", lambda: BidirectionalRefiner(5, 3, paths=())),
        (TypeError, "^paths: .*sequence", lambda: BidirectionalRefiner(5, 3, paths="category")),
        (ValueError, r"^x: .*5, 3.*\(2, 3, 5\)", lambda: BidirectionalRefiner(5, 3)(torch.zeros(2, 3, 5))),
        (TypeError, "^x: .*int64", lambda: BidirectionalRefiner(5, 3)(torch.zeros(2, 5, 3).long())),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()
