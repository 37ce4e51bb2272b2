"""GroupWiseLinear against loops over labels and channels."""

from __future__ import annotations

import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr import GroupWiseLinear
from mlcorr.functional import group_wise_linear
from tests.reference import oprl as loops
from tests.reference.oprl import numbers, stacked


@settings(max_examples=30, deadline=None)
@given(images=st.integers(1, 3), labels=st.integers(1, 5), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_equals_the_loops(images: int, labels: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = GroupWiseLinear(labels, dim).double()
    x = torch.randn(images, labels, dim, dtype=torch.float64, requires_grad=True)
    parameters = numbers(layer.weight), numbers(layer.bias)
    expected = stacked([loops.group_wise_linear(numbers(image), *parameters) for image in x])
    factor, leaves = torch.randn(images, labels, dtype=torch.float64), (x, *layer.parameters())
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        *(torch.autograd.grad((out * factor).sum(), leaves) for out in (layer(x), expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_begins_as_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer = GroupWiseLinear(400, 100)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_leading_dimensions_and_permuted_labels() -> None:
    layer = GroupWiseLinear(5, 3).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[1], layer(x[1]), rtol=1e-12, atol=1e-14)
    order = torch.randperm(5)
    moved = group_wise_linear(x[..., order, :], layer.weight[order], layer.bias[order])
    torch.testing.assert_close(moved, layer(x)[..., order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(group_wise_linear(x, layer.weight), layer(x) - layer.bias, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = GroupWiseLinear(7, 256).to(dtype)
    x = torch.randn(4, 7, 256).to(dtype)
    truth = (x.double() * layer.weight.double()).sum(-1) + layer.bias.double()
    plain = torch.stack([x[:, c] @ layer.weight[c] + layer.bias[c] for c in range(7)], 1)
    error, own = ((y.double() - truth).abs().max() for y in (layer(x), plain))
    assert layer(x).dtype == dtype
    assert error <= 2 * own
    with torch.autocast("cpu", dtype=dtype):
        mixed = GroupWiseLinear(7, 256)(x.float())
    assert mixed.dtype == dtype
    assert mixed.isfinite().all()


def test_compiles_exports_maps_and_is_saved() -> None:
    torch.compiler.reset()
    layer, other, x = GroupWiseLinear(5, 3), GroupWiseLinear(5, 3), torch.randn(4, 5, 3)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        GroupWiseLinear(6, 3).load_state_dict(layer.state_dict())


X, W = torch.zeros(2, 5, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^num_labels: ", lambda: GroupWiseLinear(0, 3)),
        (TypeError, "^dim: ", lambda: GroupWiseLinear(5, 3.0)),
        (ValueError, r"^x: .*5, 3.*\(2, 4, 3\)", lambda: GroupWiseLinear(5, 3)(torch.zeros(2, 4, 3))),
        (TypeError, "^x: .*int64", lambda: group_wise_linear(X.long(), W)),
        (ValueError, "^x: .*at least 2 dim", lambda: group_wise_linear(torch.zeros(3), torch.zeros(3))),
        (TypeError, "^weight: .*float16", lambda: group_wise_linear(X, W.half())),
        (ValueError, r"^weight: .*\(C, D\) = \(5, 3\) of x.*\(4, 3\)", lambda: group_wise_linear(X, torch.zeros(4, 3))),
        (ValueError, r"^bias: .*\(3,\)", lambda: group_wise_linear(X, W, torch.zeros(3))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()
