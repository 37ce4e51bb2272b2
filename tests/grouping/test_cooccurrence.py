"""LabelCooccurrence against counting loops, in any split of the data, form of the targets and number of processes."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from torch import Tensor

from mlcorr import LabelCooccurrence
from mlcorr.grouping import cooccurrence, pair_counts
from tests.ranks import run_ranks
from tests.reference import oprl as loops

STORAGES = ["dense", "sparse"]


def draw_targets(rows: int, labels: int, seed: int = 0, unknown: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(rows, labels, generator=generator) < 0.3).long()
    return targets.masked_fill(torch.rand(rows, labels, generator=generator) < unknown, -1)


def counted(targets: Tensor, storage: str = "dense", **kwargs) -> LabelCooccurrence:
    counts = LabelCooccurrence(targets.shape[-1], storage=storage, **kwargs)
    counts.update(targets)
    return counts


def same(a: LabelCooccurrence, b: LabelCooccurrence) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.counts(sparse=False), b.counts(sparse=False), strict=True))


def csr(targets: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls CSR a beta feature
        return targets.to_sparse_csr()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=4, max_size=4), min_size=1, max_size=12),
    storage=st.sampled_from(STORAGES),
    sparse=st.booleans(),
    dtype=st.sampled_from([torch.int64, torch.int8, torch.float32, torch.bfloat16]),
    form=st.sampled_from(["dense", "coo", "csr"]),
)
def test_equals_the_loops(rows, storage, sparse, dtype, form) -> None:
    together, known, ratio = loops.cooccurrence(rows)
    targets = torch.tensor(rows, dtype=dtype)
    if form != "dense":
        targets = targets.float().to_sparse() if form == "coo" else csr(targets.float())
    counts = counted(targets, storage)
    actual = counts.counts(sparse=False)
    assert actual.rows.item() == len(rows)
    assert actual.present.tolist() == [together[i][i] for i in range(4)]
    assert actual.together.tolist() == together
    assert actual.known.tolist() == known
    assert {t.dtype for t in actual} == {torch.int64}
    a = counts.conditional(sparse=sparse, dtype=torch.float64)
    assert a.is_sparse == sparse
    assert a.to_dense().tolist() == ratio


@pytest.mark.parametrize("storage", STORAGES)
def test_sparse_tables_hold_what_was_seen_together(storage: str) -> None:
    counts = counted(draw_targets(6, 9), storage)
    dense, sparse = counts.counts(sparse=False), counts.counts(sparse=True)
    assert sparse.together.is_coalesced()
    assert torch.equal(sparse.together.to_dense(), dense.together)
    assert torch.equal(sparse.known.to_dense(), torch.where(dense.together > 0, dense.known, 0))
    assert (sparse.together.values() > 0).all()
    assert counts.conditional().is_sparse == (storage == "sparse")


def test_all_known_is_the_plain_formula() -> None:
    targets = draw_targets(50, 6, unknown=0.0)
    targets[:, 2] = 0  # never seen
    a = counted(targets).conditional(dtype=torch.float64)
    for i in range(6):
        if i == 2:
            assert (a[i] == 0).all()
        else:
            torch.testing.assert_close(a[i], targets[targets[:, i] == 1].double().mean(0), rtol=1e-15, atol=0)
            assert a[i, i] == 1


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("split", [[30], [1] * 30, [7, 0, 22, 1]])
def test_any_split_gives_the_same(storage: str, split: list[int]) -> None:
    targets = draw_targets(30, 8)
    expected, counts = counted(targets), LabelCooccurrence(8, storage=storage)
    for part in targets.split(split):
        counts.update(part)
    assert same(counts, expected)
    parts = [counted(part, storage) for part in targets.split(split)]
    total = parts[0]
    for part in parts[1:]:
        before = copy.deepcopy(total)
        grown = total + part
        assert same(total, before)  # neither summand is altered
        total = grown
    assert same(total, expected)


def test_sums_of_both_storages() -> None:
    targets = draw_targets(30, 8)
    for first, second in (STORAGES, STORAGES[::-1]):
        total = counted(targets[:20], first) + counted(targets[20:], second)
        assert total.storage == first
        assert same(total, counted(targets))


@pytest.mark.parametrize("storage", STORAGES)
def test_forms_of_targets(storage: str) -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    targets = draw_targets(20, 8)
    expected = counted(targets)
    shaped = targets.view(5, 4, 8)
    forms = [shaped, shaped.half(), targets.int().to_sparse(), csr(targets), csr(targets.float())]
    forms += [scipy_sparse.csr_matrix(targets.numpy()), scipy_sparse.coo_array(targets.numpy())]
    for form in forms:
        counts = LabelCooccurrence(8, storage=storage)
        counts.update(form)
        counts.rows.copy_(expected.rows)  # 5 · 4 rows are as many
        assert same(counts, expected)
    positive = targets == 1
    expected = counted(positive.long())
    for form in (positive, positive.to(torch.uint8), positive.to_sparse()):
        assert same(counted(form, storage), expected)
    unknown = targets.double().masked_fill(targets < 0, float("nan"))
    assert same(counted(unknown, storage), counted(targets))
    one = LabelCooccurrence(8, storage=storage)
    one.update(targets[0])
    assert same(one, counted(targets[:1]))


@pytest.mark.parametrize("storage", STORAGES)
def test_an_entry_that_is_stored_twice_counts_once(storage: str) -> None:
    index = torch.tensor([[0, 0, 0, 1], [2, 2, 1, 0]])
    counts = counted(torch.sparse_coo_tensor(index, torch.ones(4), (2, 3), check_invariants=True), storage)
    assert same(counts, counted(torch.tensor([[0, 1, 1], [1, 0, 0]])))


@pytest.mark.parametrize("storage", STORAGES)
def test_chunks_do_not_show(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = draw_targets(20, 8)
    expected = counted(targets)
    for chunk in (1, 7, 50):
        for module in (cooccurrence, pair_counts):
            monkeypatch.setattr(module, "CHUNK", chunk)
        for form in (targets, targets.float().to_sparse()):
            counts = LabelCooccurrence(8, storage=storage)
            for part in (form, form):
                counts.update(part)
            assert same(counts, expected + expected)


def test_counts_are_exact_beyond_float32() -> None:
    # Counts of 2²⁴ and 2⁵³, where the next whole number is no float32, or no float64, any more.
    for start in (2**24, 2**53):
        for storage in STORAGES:
            counts = counted(torch.tensor([[1, 1, -1]]), storage)
            state = {k: torch.where(v == 1, start, v) if "key" not in k else v for k, v in counts.state_dict().items()}
            counts.load_state_dict(state)
            counts.update(torch.tensor([[1, 1, -1]]))
            actual = counts.counts(sparse=False)
            assert actual.rows.item() == start + 1
            assert actual.together[0].tolist() == [start + 1, start + 1, 0]
            assert actual.known[0].tolist() == [start + 1, start + 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_change_nothing(dtype: torch.dtype) -> None:
    targets = draw_targets(5000, 6)
    with torch.autocast("cpu", dtype=dtype):
        counts = counted(targets)
    assert same(counts, counted(targets))
    assert same(counts.to(dtype), counted(targets))


def test_many_labels_stay_sparse() -> None:
    # A dense table of 10¹⁰ counts would take 80 GB.
    labels, rows = 100_000, 2000
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(labels, (rows, 5), generator=generator)
    label[:, 1] = label[:, 0] // 2  # pairs that return
    row = torch.arange(rows).repeat_interleave(5)
    index = torch.stack([row, label.flatten()])
    counts = LabelCooccurrence(labels)
    assert counts.storage == "sparse"
    targets = torch.sparse_coo_tensor(index, torch.ones(rows * 5), (rows, labels), check_invariants=True).coalesce()
    for first in range(0, rows, 500):
        counts.update(targets.index_select(0, torch.arange(first, first + 500)))
    a = counts.conditional()
    assert a.is_sparse
    assert a.shape == (labels, labels)
    some = label[7].unique()
    local = torch.stack([(label[:, None] == c).any(-1).squeeze(-1) for c in some], 1).long()
    expected = counted(local).conditional()
    values = torch.stack([a[int(i)].to_dense()[some] for i in some])
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_state_carries_everything(storage: str) -> None:
    targets = draw_targets(30, 8)
    counts = counted(targets[:20], storage)
    file = io.BytesIO()
    torch.save(counts.state_dict(), file)
    file.seek(0)
    resumed = counted(draw_targets(9, 8, seed=3), storage)  # what it held before is forgotten
    resumed.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for again in (resumed, pickle.loads(pickle.dumps(counts)), copy.deepcopy(counts)):
        assert same(again, counts)
        again.update(targets[20:])
        assert same(again, counted(targets))
    assert same(counts, counted(targets[:20]))
    with pytest.raises(RuntimeError, match="size mismatch"):
        LabelCooccurrence(9, storage=storage).load_state_dict(counts.state_dict())
    other = LabelCooccurrence(8, storage=STORAGES[storage == "dense"])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(counts.state_dict())


@pytest.mark.parametrize("storage", STORAGES)
def test_within_a_module_from_elsewhere_a_state_is_taken_whole_or_not_at_all(storage: str) -> None:
    counts = counted(draw_targets(20, 8), storage)
    module = torch.nn.ModuleDict({"counts": counts})
    before = copy.deepcopy(counts)
    other = torch.nn.ModuleDict({"counts": counted(draw_targets(9, 8, seed=3), storage)}).state_dict()
    entry = "counts.together.values" if storage == "sparse" else "counts.together.count"
    nine = torch.nn.ModuleDict({"counts": counted(draw_targets(9, 9), storage)}).state_dict()
    wrong = [
        (nine, r"size mismatch for counts.present: expected \(8,\), got \(9,\)$"),
        ({**other, "counts.present": torch.tensor(1)}, r"size mismatch for counts.present: .*got \(\)$"),
        ({**other, entry: other[entry][:-1]}, f"size mismatch for {entry}"),
        ({**other, entry: other[entry].to("meta")}, entry),
    ]
    if storage == "sparse":
        part = {name: value for name, value in other.items() if name != entry}
        wrong.append((part, "counts.together: expected keys, values, got keys alone"))
        wrong.append(({**other, "counts.together.keys": torch.tensor(1)}, r"counts.together.keys.*got \(\)"))
    for state, message in wrong:
        given = dict(state)
        with pytest.raises(RuntimeError) as caught:
            module.load_state_dict(state)
        assert re.search(message, str(caught.value), re.MULTILINE)
        assert str(caught.value).count("\n") <= 2 + ("keys" in message)
        assert state.keys() == given.keys()
        assert same(counts, before)
    missing, _ = module.load_state_dict({}, strict=False)
    assert set(missing) == other.keys()
    assert torch.equal(counts.together.matrix(), before.together.matrix())
    module.load_state_dict(other)
    assert same(counts, counted(draw_targets(9, 8, seed=3)))


@pytest.mark.parametrize("storage", STORAGES)
def test_reset_and_nothing_seen(storage: str) -> None:
    counts = counted(draw_targets(30, 8), storage)
    counts.reset()
    assert same(counts, LabelCooccurrence(8, storage=storage))
    for sparse in (False, True):
        assert (counts.conditional(sparse=sparse).to_dense() == 0).all()
    counts.update(torch.zeros(0, 8))
    counts.update(torch.zeros(3, 8).to_sparse())
    counts.update(torch.full((2, 8), -1))
    assert counts.rows.item() == 5
    assert (counts.counts(sparse=False).known == 0).all()
    assert f"storage={storage!r}" in repr(counts)


# --- several processes ---


def work(rank: int, sizes: list[int]) -> list[object]:
    first = sum(sizes[:rank])
    own = draw_targets(sum(sizes), 8)[first : first + sizes[rank]]
    results = {}
    for storage in STORAGES:
        counts = LabelCooccurrence(8, storage=storage)
        counts.update(own[:1])
        counts.reduce(dist.group.WORLD)  # leaves the local counts as they are
        counts.update(own[1:])
        totals = [counts.reduce(dist.group.WORLD).state_dict() for _ in range(2)]
        results[storage] = (totals, counts.state_dict())
    return results


@pytest.mark.parametrize("sizes", [[7], [12, 5], [3, 0, 9]])
def test_every_rank_gets_the_counts_of_all(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    targets = draw_targets(sum(sizes), 8)
    for part, results in zip(targets.split(sizes), ranks, strict=True):
        for storage in STORAGES:
            totals, own = results[storage]
            loaded = LabelCooccurrence(8, storage=storage)
            for total in totals:
                loaded.load_state_dict(total, strict=True)
                assert same(loaded, counted(targets))
            loaded.load_state_dict(own, strict=True)
            assert same(loaded, counted(part))


def test_reduce_without_a_group_is_a_copy() -> None:
    counts = counted(draw_targets(9, 4))
    total = counts.reduce()
    assert same(total, counts)
    total.update(draw_targets(9, 4))
    assert not same(total, counts)
    with pytest.raises(TypeError, match=r"^group: .*str"):
        counts.reduce("world")


COUNTS = LabelCooccurrence(4)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as in csr
    CSC = torch.zeros(2, 4).to_sparse_csc()
# As of SciPy, which has numbers of 128 bits on some machines only: strings are nowhere numbers.
STRINGS = SimpleNamespace(row=np.arange(4), col=np.arange(4), data=np.array(list("1111")), shape=(4, 4))
STRINGS.tocsr = STRINGS.tocoo = lambda: STRINGS


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^num_labels: ", lambda: LabelCooccurrence(0)),
        (ValueError, "^num_labels: .*at most", lambda: LabelCooccurrence(10**10)),
        (TypeError, "^num_labels: ", lambda: LabelCooccurrence(4.0)),
        (ValueError, "^storage: .*'disk'", lambda: LabelCooccurrence(4, storage="disk")),
        (ValueError, r"^targets: .*C = 4.*\(2, 5\)", lambda: COUNTS.update(torch.zeros(2, 5))),
        (ValueError, r"^targets: .*\(N, C\).*\(2, 5\)", lambda: COUNTS.update(torch.zeros(2, 5).to_sparse())),
        (ValueError, r"^targets: .*\(N, C\).*\(4,\)", lambda: COUNTS.update(torch.zeros(4).to_sparse())),
        (ValueError, "^targets: .*CSR tensor, got torch.sparse_csc", lambda: COUNTS.update(CSC)),
        (TypeError, "^targets: expected numbers that PyTorch has, got <U1", lambda: COUNTS.update(STRINGS)),
        (ValueError, r"^targets: .*\(\)", lambda: COUNTS.update(torch.tensor(1))),
        (ValueError, "^targets: .*device.*meta", lambda: COUNTS.update(torch.zeros(2, 4, device="meta"))),
        (TypeError, "^targets: .*list", lambda: COUNTS.update([[1, 0, 0, 0]])),
        (TypeError, "^targets: .*complex", lambda: COUNTS.update(torch.zeros(2, 4, dtype=torch.complex64))),
        (ValueError, "^other: .*4.*5", lambda: COUNTS + LabelCooccurrence(5)),
        (TypeError, "unsupported operand", lambda: COUNTS + 1),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_nothing_is_counted_of_what_is_refused(storage: str) -> None:
    counts = LabelCooccurrence(6, storage=storage)
    counts.update(torch.eye(6))
    before = {name: tensor.clone() for name, tensor in counts.state_dict().items()}
    hybrid = torch.sparse_coo_tensor([[0, 1]], torch.rand(2, 6), (4, 6), check_invariants=True)
    for targets, error in ((hybrid, ValueError), (torch.ones(2, 6, dtype=torch.uint16), TypeError)):
        with pytest.raises(error, match=r"^targets: "):
            counts.update(targets)
    foreign = LabelCooccurrence(7, storage=storage)
    foreign.update(torch.ones(2, 7))
    with pytest.raises(RuntimeError, match="size mismatch"):
        counts.load_state_dict(foreign.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in counts.state_dict().items())


def test_rows_that_come_one_by_one_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_counts, "_WAITING", 4)
    counts = LabelCooccurrence(3, storage="sparse")
    for _ in range(50):
        counts.update(torch.tensor([[1, 1, 0]]))
        assert len(counts.together.waiting) <= 4
    assert counts.counts(sparse=False).together[0, 1] == 50
