"""AverageMessageGCN and average_message against nested loops and dense products."""

from __future__ import annotations

import copy
import pickle
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import AverageMessageGCN, LabelCooccurrence
from mlcorr.functional import average_message
from tests.reference import oprl as loops
from tests.reference.oprl import numbers, stacked

LAYOUTS = ["dense", "coo", "csr"]


def as_layout(a: Tensor, layout: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls CSR a beta feature
        return {"dense": a, "coo": a.to_sparse(), "csr": a.to_sparse_csr()}[layout]


def adjacency(labels: int) -> Tensor:
    a = torch.rand(labels, labels, dtype=torch.float64)
    return torch.where(torch.rand(labels, labels) < 0.5, a, 0.0)


def gcn(dim: int, labels: int, *args, seed: int = 0, **kwargs) -> AverageMessageGCN:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if labels == 2 else "error")
        return AverageMessageGCN(dim, labels, *args, **kwargs).double()


# --- the average message ---


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 3), labels=st.integers(1, 8), dim=st.integers(1, 4), seed=st.integers(0, 99))
def test_average_message_equals_the_dense_product(images: int, labels: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(images, labels, dim, dtype=torch.float64, requires_grad=True)
    matrix = loops.average_matrix(labels)
    expected = stacked([loops.messages(matrix, numbers(image)) for image in x])
    torch.testing.assert_close(average_message(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(average_message(x), torch.tensor(matrix).double() @ x, rtol=1e-6, atol=1e-6)
    factor = torch.randn_like(x)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * factor).sum(), x)[0] for out in (average_message(x), expected)),
        rtol=1e-12,
        atol=1e-12,
    )


def test_average_message_properties() -> None:
    constant = torch.full((2, 5, 3), 1.5)
    torch.testing.assert_close(average_message(constant), 2 * constant)  # rows of K sum to 2
    one = torch.randn(2, 1, 3)
    assert torch.equal(average_message(one), one)
    assert average_message(one).data_ptr() != one.data_ptr()
    two = average_message(torch.randn(2, 2, 3))
    assert torch.equal(two[:, 0], two[:, 1])
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(average_message)(x), average_message(x))
    assert torch.autograd.gradgradcheck(average_message, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_average_message_of_the_largest_numbers(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    signs = torch.tensor([1, 1, 1, -1, -1, -1, -1])[:, None]  # any running sum of the first three would overflow
    x = torch.full((7, 2), largest, dtype=dtype) * signs
    expected = (x.double() / largest) + (-1 - signs) / 6
    torch.testing.assert_close(average_message(-x).double() / largest, -expected, rtol=1e-2, atol=1e-2)
    assert (average_message(torch.full((5, 2), largest / 2, dtype=dtype)) <= largest).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_average_message_sums_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # The sum of the column is far beyond float16, and in bfloat16 it would swallow most of what is added.
    x = (1000 + torch.randn(2, 5000, 3)).to(dtype)
    truth = average_message(x.double())
    assert average_message(x).dtype == dtype
    assert (average_message(x).double() - truth).abs().max() <= torch.finfo(dtype).eps * truth.abs().max() / 2


# --- the module ---


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 2),
    labels=st.integers(1, 4),
    dim=st.integers(1, 4),
    schedule=st.lists(st.sampled_from(["cooccurrence", "average"]), max_size=4).map(tuple),
    diagonal=st.sampled_from(["one", "zero", "counts"]),
    final_activation=st.booleans(),
    residual=st.booleans(),
    layout=st.sampled_from([None, *LAYOUTS]),
    seed=st.integers(0, 99),
)
def test_equals_the_loops(images, labels, dim, schedule, diagonal, final_activation, residual, layout, seed) -> None:
    options = {"schedule": schedule, "final_activation": final_activation, "residual": residual}
    layer = gcn(dim, labels, diagonal=diagonal, negative_slope=0.3, seed=seed, **options)
    a = torch.eye(labels, dtype=torch.float64)
    if layout is not None:
        a = adjacency(labels)
        layer.set_cooccurrence(as_layout(a, layout))
        if diagonal != "counts":
            a.fill_diagonal_(1.0 if diagonal == "one" else 0.0)
    x = torch.randn(images, labels, dim, dtype=torch.float64, requires_grad=True)
    weights = [numbers(w) for w in layer.weight]
    expected = stacked(
        [
            loops.average_message_gcn(numbers(image), a.tolist(), weights, schedule, 0.3, final_activation, residual)
            for image in x
        ]
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    factor, leaves = torch.randn_like(x), (x, layer.weight) if schedule else (x,)
    for got, wanted in zip(
        *(torch.autograd.grad((out * factor).sum(), leaves) for out in (layer(x), expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_as_many_labels_as_channels() -> None:
    layer = gcn(4, 4, adjacency(4), diagonal="counts")
    a = layer.cooccurrence
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    weights = [numbers(w) for w in layer.weight]
    expected = stacked(
        [loops.average_message_gcn(numbers(i), a.tolist(), weights, layer.schedule, 0.2, True, True) for i in x]
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_permuted_labels(layout: str) -> None:
    a, order = adjacency(6), torch.randperm(6)
    layer = gcn(3, 6)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    layer.set_cooccurrence(as_layout(a, layout))
    before = layer(x)
    layer.set_cooccurrence(as_layout(a[order][:, order], layout))
    torch.testing.assert_close(layer(x[:, order]), before[:, order], rtol=1e-12, atol=1e-14)


def test_silent_weights_and_empty_schedules() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    layer = gcn(3, 5)
    torch.nn.init.zeros_(layer.weight)
    assert torch.equal(layer(x), x)
    empty = gcn(3, 5, adjacency(5), schedule=())
    result = empty(x)
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
    assert not empty.weight.requires_grad


def test_no_adjacency_is_the_identity() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    layer = gcn(3, 5)
    before = layer(x)
    layer.set_cooccurrence(torch.eye(5))
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-14)
    layer.set_cooccurrence(torch.rand(5, 5))
    assert not torch.allclose(layer(x), before)


def test_streamed_counts_of_both_storages() -> None:
    targets = (torch.rand(40, 7) < 0.3).long()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    outputs = []
    for storage in ("dense", "sparse"):
        counts = LabelCooccurrence(7, storage=storage)
        counts.update(targets)
        outputs.append(gcn(3, 7, counts.conditional(dtype=torch.float64))(x))
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


def test_two_labels_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"^num_labels: .*2 labels"):
        AverageMessageGCN(3, 2)
    AverageMessageGCN(3, 2, schedule=("cooccurrence",))  # a warning would be an error
    AverageMessageGCN(3, 1)
    AverageMessageGCN(3, 3)


# --- precision, compilers, state ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    a, x = torch.rand(30, 30).fill_diagonal_(1.0), torch.randn(4, 30, 32)
    layer = AverageMessageGCN(32, 30, as_layout(a, layout))
    truth = layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", dtype=dtype):
        mixed = layer(x)
    half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    # PyTorch's own operations, all in half precision.
    plain, average = x.to(dtype), torch.full((30, 30), 1 / 29).fill_diagonal_(1.0)
    for index, matrix in enumerate((a, average, a)):
        plain = torch.nn.functional.leaky_relu(matrix.to(dtype) @ plain @ layer.weight[index].to(dtype), 0.2)
    own = (x.to(dtype) + plain - truth).abs().max()
    assert half.dtype == dtype
    assert mixed.dtype == torch.float32
    for y in (mixed, half):
        assert (y.double() - truth).abs().max() <= 2 * own


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_messages_are_summed_in_float32(dtype: torch.dtype, layout: str) -> None:
    # 600 ones, of which a sum in bfloat16 would see 256; and a value that half precision does not hold.
    layer = AverageMessageGCN(1, 600, as_layout(torch.ones(600, 600), layout), schedule=("cooccurrence",))
    torch.nn.init.ones_(layer.weight)
    value = 1 + torch.finfo(dtype).eps / 2
    with torch.autocast("cpu", dtype=dtype):
        mixed = layer(torch.full((2, 600, 1), value))
    sum_of_all = torch.tensor(600 * value).to(dtype).float()
    assert torch.equal(mixed, torch.full((2, 600, 1), value) + sum_of_all)
    half = copy.deepcopy(layer).to(dtype)(torch.ones(2, 600, 1, dtype=dtype))
    assert torch.equal(half, torch.full((2, 600, 1), 601.0).to(dtype))


@pytest.mark.parametrize("layout", [None, "dense", "coo"])
def test_compiles_exports_and_maps(layout: str | None) -> None:
    torch.compiler.reset()
    layer = AverageMessageGCN(4, 6, None if layout is None else as_layout(adjacency(6), layout))
    x = torch.randn(3, 6, 4, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), layer(x))
    leaves = (x, layer.weight)
    for got, wanted in zip(*(torch.autograd.grad(f(x).square().sum(), leaves) for f in (compiled, layer)), strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch maps `F.embedding_bag`, of which the sparse form is made, slowly
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    gradient = torch.func.grad(lambda z: layer(z).square().sum())(x.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(x).square().sum(), x)[0])


def test_second_derivatives_are_right_or_refused() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    layer = gcn(3, 5, adjacency(5), final_activation=False)
    assert torch.autograd.gradgradcheck(lambda z: layer(z).square(), x, fast_mode=True)
    layer.set_cooccurrence(layer.cooccurrence.to_sparse())
    first = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"derivative.*not implemented"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("other", [None, *LAYOUTS])
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_a_checkpoint_brings_its_adjacency(layout: str | None, other: str | None) -> None:
    layer, target = gcn(3, 5), gcn(3, 5, seed=1)
    for module, kind in ((layer, layout), (target, other)):
        if kind is not None:
            module.set_cooccurrence(as_layout(adjacency(5), kind))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    if layout is None and other is not None:
        with pytest.raises(RuntimeError, match="Missing key"):
            target.load_state_dict(layer.state_dict())
        return
    target.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(target(x), layer(x))
    assert target.state_dict().keys() == layer.state_dict().keys()
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_other_labels_is_refused(layout: str) -> None:
    state = gcn(3, 6, as_layout(adjacency(6), layout)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        gcn(3, 5).load_state_dict(state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adjacency_is_a_copy_and_moves(layout: str) -> None:
    a = torch.rand(5, 5)
    layer = AverageMessageGCN(3, 5, as_layout(a, layout), diagonal="counts")
    x = torch.randn(2, 5, 3)
    before = layer(x)
    a.zero_()
    assert torch.equal(layer(x), before)
    assert {b.device.type for b in copy.deepcopy(layer).to("meta").buffers()} == {"meta"}
    assert all(not b.requires_grad for b in layer.buffers())


LAYER = AverageMessageGCN(3, 5)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^dim: ", lambda: AverageMessageGCN(0, 5)),
        (ValueError, "^num_labels: ", lambda: AverageMessageGCN(3, 0)),
        (ValueError, "^schedule: .*'mean'", lambda: AverageMessageGCN(3, 5, schedule=("mean",))),
        (TypeError, "^schedule: .*sequence", lambda: AverageMessageGCN(3, 5, schedule="average")),
        (ValueError, "^diagonal: .*'two'", lambda: AverageMessageGCN(3, 5, diagonal="two")),
        (ValueError, "^negative_slope: ", lambda: AverageMessageGCN(3, 5, negative_slope=-0.1)),
        (ValueError, r"^cooccurrence: .*\(5, 5\).*\(4, 4\)", lambda: AverageMessageGCN(3, 5, torch.eye(4))),
        (ValueError, "^cooccurrence: .*-1", lambda: AverageMessageGCN(3, 5, -torch.eye(5))),
        (ValueError, "^cooccurrence: .*-1", lambda: LAYER.set_cooccurrence(-torch.eye(5).to_sparse())),
        (ValueError, "^cooccurrence: .*nan", lambda: LAYER.set_cooccurrence(torch.full((5, 5), float("nan")))),
        (ValueError, "^cooccurrence: .*inf", lambda: LAYER.set_cooccurrence(torch.full((5, 5), float("inf")))),
        (TypeError, "^cooccurrence: .*int64", lambda: LAYER.set_cooccurrence(torch.eye(5).long())),
        (TypeError, "^cooccurrence: .*list", lambda: LAYER.set_cooccurrence([[1.0]])),
        (ValueError, r"^x: .*5, 3.*\(2, 3, 5\)", lambda: LAYER(torch.zeros(2, 3, 5))),
        (TypeError, "^x: .*int64", lambda: LAYER(torch.zeros(2, 5, 3).long())),
        (TypeError, "^x: .*int64", lambda: average_message(torch.zeros(5, 3).long())),
        (ValueError, "^x: .*2 dim", lambda: average_message(torch.zeros(3))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_refused_checkpoint_leaves_the_adjacency(sparse: bool, within: bool) -> None:
    def gcn(labels: int, other: float = 0.5) -> torch.nn.Module:
        adjacency = torch.eye(labels) + other
        made = AverageMessageGCN(3, labels, adjacency.to_sparse() if sparse else adjacency)
        return torch.nn.ModuleList([made]) if within else made

    module = gcn(5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = gcn(5, 0.25).state_dict()
    entries = [name for name in found if "cooccurrence" in name]
    foreign: list[tuple[dict[str, object], str]] = [(dict(gcn(6).state_dict()), "size mismatch")]
    for name in entries:
        foreign += [
            ({**found, name: torch.tensor(1.0)}, rf"size mismatch for {name}: expected \(.*\), got \(\)"),
            ({**found, name: torch.cat([found[name]] * 2)}, "size mismatch for"),
            ({**found, name: found[name].to("meta")}, rf"{name}: expected a tensor with numbers in it, .* meta"),
            ({**found, name: 5}, rf"{name}: expected a tensor, got int"),
        ]
    for state, message in foreign:
        with pytest.raises(RuntimeError, match=message):
            module.load_state_dict(state)
        assert module.state_dict().keys() == before.keys()
        assert all(torch.equal(module.state_dict()[name], before[name]) for name in entries)
    module.load_state_dict(found)
    assert all(torch.equal(module.state_dict()[name], found[name]) for name in entries)


def test_schedules_of_any_kind() -> None:
    module = AverageMessageGCN(3, 4, schedule=(name for name in ["average", "cooccurrence"]))
    assert module.schedule == ("average", "cooccurrence")
    for schedule in (None, "average", 3):
        with pytest.raises(TypeError, match=r"^schedule: expected a sequence"):
            AverageMessageGCN(3, 4, schedule=schedule)


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_is_infinite_in_the_weights_dtype_is_refused(layout: torch.layout) -> None:
    adjacency = torch.full((4, 4), 1e300, dtype=torch.float64)
    adjacency = adjacency if layout == torch.strided else adjacency.to_sparse(layout=layout)
    with pytest.raises(ValueError, match=r"^cooccurrence: expected finite entries"):
        AverageMessageGCN(3, 4, adjacency)


def test_a_hybrid_adjacency_is_refused() -> None:
    hybrid = torch.sparse_coo_tensor([[0, 1]], torch.rand(2, 4), (4, 4), check_invariants=True)
    with pytest.raises(ValueError, match=r"^cooccurrence: expected two sparse dimensions"):
        AverageMessageGCN(3, 4, hybrid)
