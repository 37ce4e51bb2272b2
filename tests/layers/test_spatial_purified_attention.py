"""SpatialPurifiedAttention against nested loops."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from mlcorr import SpatialPurifiedAttention
from mlcorr.functional import purify, quantile_mask, spatial_aware_logits
from tests.reference import oprl as loops
from tests.reference.oprl import numbers, stacked

HALVES = [torch.float16, torch.bfloat16]


def layer_of(*args, seed: int = 0, **kwargs) -> SpatialPurifiedAttention:
    torch.manual_seed(seed)
    return SpatialPurifiedAttention(*args, **kwargs).double()


@st.composite
def problems(draw):
    labels, channels = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return {
        "labels": labels,
        "channels": channels,
        "dim": draw(st.sampled_from([None, labels, 3])),  # the same as C among them
        "height": draw(st.integers(1, 4)),
        "width": draw(st.integers(1, 3)),
        "images": draw(st.integers(1, 2)),
        "tau": draw(
            st.sampled_from([Fraction(0), Fraction(1), Fraction(1, 2)]) | st.fractions(0, 1, max_denominator=99)
        ),
        "top_k": draw(st.integers(1, 14)),  # 12 positions at most
        "ties": draw(st.booleans()),
        "padding": draw(st.sampled_from(["none", "some", "all of one image"])),
        "tokens": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_equals_the_loops(problem) -> None:
    tau, top_k = problem["tau"], problem["top_k"]
    layer = layer_of(
        problem["channels"], problem["labels"], problem["dim"], tau=float(tau), top_k=top_k, seed=problem["seed"]
    )
    shape = (problem["images"], problem["channels"], problem["height"], problem["width"])
    size = shape[2] * shape[3]
    features = torch.randn(shape, dtype=torch.float64)
    if problem["ties"]:
        features = features.round()
        with torch.no_grad():
            layer.score.weight.copy_(layer.score.weight.sign())
    valid = torch.ones(shape[0], size, dtype=torch.bool)
    if problem["padding"] != "none":
        valid = torch.rand(valid.shape) < 0.6
        if problem["padding"] == "all of one image":
            valid[0] = False
    if problem["tokens"]:
        features = features.flatten(2).mT.contiguous()
        hidden = torch.where(valid.unsqueeze(-1), features, float("nan"))
    else:
        hidden = torch.where(valid.view(shape[0], 1, *shape[2:]), features, float("nan"))
    hidden.requires_grad_()
    output = layer(hidden, None if problem["padding"] == "none" else valid)

    tokens = hidden if problem["tokens"] else hidden.flatten(2).mT
    parameters = [(numbers(linear.weight), numbers(linear.bias)) for linear in (layer.score, layer.transform)]
    images = [
        loops.spatial_purified_attention(numbers(image), *parameters, tau, top_k, mask.tolist())
        for image, mask in zip(tokens, valid, strict=True)
    ]
    expected = [stacked([image[part] for image in images]) for part in range(3)]
    actual = [output.features, output.aux_logits.sigmoid(), output.attention]
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(output.attention != 0, expected[2] != 0)
    assert (output.valid_rows is None) == (problem["padding"] == "none")
    if output.valid_rows is not None:
        assert output.valid_rows.tolist() == valid.any(-1).tolist()
        assert (output.aux_logits[~output.valid_rows] == 0).all()

    # Which of several equal scores is among the K largest is left open, and the gradient depends on it.
    parts = (0, 2) if problem["ties"] else (0, 1, 2)
    factors = [torch.randn_like(part) for part in actual]
    leaves = [hidden, *layer.parameters()]
    objectives = [sum((out[i] * factors[i]).sum() for i in parts) for out in (actual, expected)]
    got = torch.autograd.grad(objectives[0], leaves)
    if objectives[1].requires_grad:
        wanted = torch.autograd.grad(objectives[1], leaves, allow_unused=True, materialize_grads=True)
    else:  # nothing valid in the whole batch: the loops return constants
        wanted = [torch.zeros_like(leaf) for leaf in leaves]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_adding_a_constant_to_the_scores() -> None:
    layer = layer_of(5, 3, tau=0.4)
    features = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    before = layer(features)
    with torch.no_grad():
        layer.score.bias += torch.tensor([1.0, -2.0, 0.5])
    after = layer(features)
    torch.testing.assert_close(after.attention, before.attention, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(after.features, before.features, rtol=1e-12, atol=1e-14)
    assert ((after.aux_logits - before.aux_logits).sign() == torch.tensor([1.0, -1.0, 1.0])).all()


def test_both_orders_of_pooling_and_projecting() -> None:
    features = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    many, few = layer_of(4, 9), layer_of(4, 5)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(few.score, name).copy_(getattr(many.score, name)[:5])
            getattr(few.transform, name).copy_(getattr(many.transform, name))
    order = []
    for layer in (few, many):
        layer.transform.register_forward_hook(lambda _, inputs, __: order.append(inputs[0].shape[1]))
    a, b = few(features), many(features)
    assert order == [5, 6]  # five label vectors; six positions
    torch.testing.assert_close(a.features, b.features[:, :5], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(a.aux_logits, b.aux_logits[:, :5], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("labels", [3, 30])
def test_maps_and_tokens_are_the_same(labels: int) -> None:
    layer = layer_of(5, labels)
    features = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    tokens = features.flatten(2).mT.contiguous()
    for form in (tokens, tokens.view(2, 4, 3, 5).permute(0, 3, 1, 2)):  # channels last
        for got, wanted in zip(layer(form)[:3], layer(features)[:3], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_permutations_and_independence_of_images() -> None:
    layer = layer_of(6, 5)
    tokens = torch.randn(3, 12, 6, dtype=torch.float64)
    output = layer(tokens)
    order = torch.randperm(12)
    moved = layer(tokens[:, order])
    torch.testing.assert_close(moved.attention, output.attention[..., order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved.features, output.features, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved.aux_logits, output.aux_logits, rtol=1e-12, atol=1e-14)
    labels = torch.randperm(5)
    relabelled = copy.deepcopy(layer)
    with torch.no_grad():
        relabelled.score.weight.copy_(layer.score.weight[labels])
        relabelled.score.bias.copy_(layer.score.bias[labels])
    for got, wanted in zip(relabelled(tokens)[:3], output[:3], strict=True):
        torch.testing.assert_close(got, wanted[:, labels], rtol=1e-12, atol=1e-14)
    for index in range(3):
        for got, wanted in zip(layer(tokens[index : index + 1])[:3], output[:3], strict=True):
            torch.testing.assert_close(got, wanted[index : index + 1], rtol=1e-12, atol=1e-14)


def test_padding_with_anything_changes_nothing() -> None:
    layer = layer_of(6, 5)
    tokens = torch.randn(3, 7, 6, dtype=torch.float64)
    alone = layer(tokens)
    place = torch.randperm(12)[:7].sort().values
    valid = torch.zeros(3, 12, dtype=torch.bool)
    valid[:, place] = True
    for filling in (float("nan"), float("inf"), 1e30):
        padded = torch.full((3, 12, 6), filling, dtype=torch.float64)
        padded[:, place] = tokens
        padded.requires_grad_()
        output = layer(padded, valid)
        torch.testing.assert_close(output.features, alone.features, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(output.aux_logits, alone.aux_logits, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(output.attention[..., place], alone.attention, rtol=1e-12, atol=1e-14)
        (output.features.sum() + output.aux_logits.sum()).backward()
        assert (padded.grad[~valid] == 0).all()
        assert padded.grad.isfinite().all()


def test_an_image_of_padding_alone() -> None:
    layer = layer_of(6, 5)
    valid = torch.tensor([[True] * 4, [False] * 4])
    output = layer(torch.full((2, 6, 2, 2), float("nan"), dtype=torch.float64), valid)
    assert output.valid_rows.tolist() == [True, False]
    features = torch.randn(2, 6, 2, 2, dtype=torch.float64)
    features[1] = float("nan")
    features.requires_grad_()
    output = layer(features, valid)
    for part in output[:3]:
        assert (part[1] == 0).all()
        assert (part[0] != 0).any()
    (output.features.square().sum() + output.aux_logits.sum() + output.attention.square().sum()).backward()
    assert (features.grad[1] == 0).all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


# --- precision, compilers, state ---


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = SpatialPurifiedAttention(32, 10, 16).to(dtype)
    tokens = torch.randn(4, 35, 32).to(dtype)
    output = layer(tokens)
    assert [part.dtype for part in output[:3]] == [dtype, torch.float32, dtype]
    # The truth starts from the scores as rounded, since rounding may change which are kept.
    scores = layer.score(tokens).mT.double()
    attention = purify(scores)
    truth = F.linear(attention @ tokens.double(), layer.transform.weight.double(), layer.transform.bias.double())
    plain = layer.transform(attention.to(dtype) @ tokens)
    error, own = ((x.double() - truth).abs().max() for x in (output.features, plain))
    assert error <= 2 * own
    assert torch.equal(output.attention != 0, attention.to(dtype) != 0)
    torch.testing.assert_close(output.aux_logits, spatial_aware_logits(scores).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_autocast(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    layer = SpatialPurifiedAttention(16, 6)
    with torch.no_grad():
        layer.score.weight.mul_(scale / 4)
    features = torch.randn(2, 16, 5, 4, requires_grad=True)
    valid = torch.rand(2, 20) < 0.7
    for mask in (None, valid):
        exact = layer(features, mask)
        with torch.autocast("cpu", dtype=dtype):
            output = layer(features, mask)
        assert output.aux_logits.dtype == torch.float32
        assert output.features.dtype == output.attention.dtype == dtype
        (output.features.float().sum() + output.aux_logits.sum()).backward()
        assert all(part.isfinite().all() for part in output[:3])
        assert features.grad.isfinite().all()
        if scale == 1.0:
            same = ((output.attention > 0) == (exact.attention > 0)).all(-1)
            assert same.float().mean() > 0.5
            torch.testing.assert_close(output.features[same].float(), exact.features[same], rtol=0, atol=0.03)


@pytest.mark.parametrize("padded", [False, True])
def test_compiles(padded: bool) -> None:
    torch.compiler.reset()
    layer = SpatialPurifiedAttention(8, 6, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for height, width in ((3, 4), (5, 2)):
        features = torch.randn(2, 8, height, width, requires_grad=True)
        valid = torch.rand(2, height * width) < 0.6 if padded else None
        got, wanted = compiled(features, valid), layer(features, valid)
        for a, b in zip(got[:3], wanted[:3], strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            *(torch.autograd.grad(out.features.sum() + out.aux_logits.sum(), features) for out in (got, wanted))
        )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_exports(dynamic: bool, padded: bool) -> None:
    if dynamic and not hasattr(torch.export.Dim, "DYNAMIC"):
        pytest.skip("this PyTorch exports no size of its own finding")
    layer = SpatialPurifiedAttention(8, 6, 4)
    for shapes in (((2, 8, 3, 4), (3, 8, 6, 5)), ((2, 12, 8), (3, 35, 8))):  # a map, tokens
        arguments = []
        for shape in shapes:
            positions = torch.Size(shape[2:]).numel() if len(shape) == 4 else shape[1]
            arguments.append((torch.randn(shape), torch.rand(shape[0], positions) < 0.6)[: 1 + padded])
        sizes = None
        if dynamic:
            free = torch.export.Dim.DYNAMIC
            sizes = ({0: free, 2: free, 3: free} if len(shapes[0]) == 4 else {0: free, 1: free}, {0: free, 1: free})
            sizes = sizes[: 1 + padded]
        program = torch.export.export(layer, arguments[0], dynamic_shapes=sizes).module()
        for given_ in arguments[: 1 + dynamic]:
            for got, wanted in zip(program(*given_)[:3], layer(*given_)[:3], strict=True):
                torch.testing.assert_close(got, wanted)


def test_deterministic_mode() -> None:
    scores = torch.randn(40, 60).round(decimals=1)
    shares = [percent / 100 for percent in range(101)]
    expected = [quantile_mask(scores, tau) for tau in shares]
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(quantile_mask(scores, t), e) for t, e in zip(shares, expected, strict=True))
        layer = SpatialPurifiedAttention(8, 6)
        features = torch.randn(2, 8, 3, 4, requires_grad=True)
        layer(features, torch.rand(2, 12) < 0.6).features.sum().backward()
        layer(features).features.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_state_and_pickle() -> None:
    layer, other = layer_of(8, 6, 4), layer_of(8, 6, 4, seed=1)
    features = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    other.load_state_dict(layer.state_dict(), strict=True)
    for copied in (other, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(copied(features).features, layer(features).features)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer_of(8, 7, 4).load_state_dict(layer.state_dict())
    assert "tau=0.5, top_k=3" in repr(layer)


SCORES = torch.zeros(2, 3)
LAYER = SpatialPurifiedAttention(4, 3)
MAP = torch.zeros(2, 4, 3, 3)
VALID = torch.ones(2, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"^tau: .*\[0, 1\].*1\.5", lambda: SpatialPurifiedAttention(4, 3, tau=1.5)),
        (ValueError, "^tau: .*nan", lambda: quantile_mask(SCORES, float("nan"))),
        (TypeError, "^tau: ", lambda: quantile_mask(SCORES, "0.5")),
        (ValueError, "^top_k: .*0", lambda: SpatialPurifiedAttention(4, 3, top_k=0)),
        (TypeError, "^top_k: ", lambda: spatial_aware_logits(SCORES, 2.5)),
        (ValueError, "^in_channels: ", lambda: SpatialPurifiedAttention(0, 3)),
        (ValueError, "^num_labels: ", lambda: SpatialPurifiedAttention(4, 0)),
        (ValueError, "^dim: ", lambda: SpatialPurifiedAttention(4, 3, 0)),
        (TypeError, "^scores: .*int64", lambda: quantile_mask(SCORES.long(), 0.5)),
        (ValueError, r"^scores: .*\(2, 0\)", lambda: purify(torch.zeros(2, 0))),
        (TypeError, "^valid: .*bool.*float32", lambda: purify(SCORES, valid=SCORES)),
        (ValueError, r"^valid: .*\(3, 3\)", lambda: purify(SCORES, valid=torch.ones(3, 3, dtype=torch.bool))),
        (ValueError, "^valid: .*device of features, cpu, got meta", lambda: LAYER(MAP, VALID.to("meta"))),
        (ValueError, r"^features: .*4.*\(2, 5, 3, 3\)", lambda: LAYER(torch.zeros(2, 5, 3, 3))),
        (ValueError, r"^features: .*\(2, 9, 5\)", lambda: LAYER(torch.zeros(2, 9, 5))),
        (ValueError, r"^features: .*\(2, 4\)", lambda: LAYER(torch.zeros(2, 4))),
        (ValueError, r"^features: .*position", lambda: LAYER(torch.zeros(2, 4, 0, 3))),
        (TypeError, "^features: .*uint8", lambda: LAYER(MAP.byte())),
        (TypeError, "^valid: .*bool.*float32", lambda: LAYER(MAP, torch.ones(2, 9))),
        (ValueError, r"^valid: .*\(2, 9\).*\(2, 3, 3\)", lambda: LAYER(MAP, torch.ones(2, 3, 3, dtype=torch.bool))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()
