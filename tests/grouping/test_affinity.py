"""The affinity and the normalised cut against loops, and the operators against their matrices."""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import LabelCooccurrence
from mlcorr.grouping import affinity, normalized_cut
from mlcorr.grouping.affinity import _canonical_order
from mlcorr.grouping.operators import AffinityOperator
from tests.grouping.targets import csr, real_targets
from tests.reference import grouping as loops

ROWS = st.lists(st.lists(st.sampled_from([-1, 0, 0, 1, 1]), min_size=5, max_size=5), min_size=1, max_size=14)


def counted(targets: Tensor) -> LabelCooccurrence:
    counts = LabelCooccurrence(targets.shape[1])
    counts.update(targets)
    return counts


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, tau=st.sampled_from([1.0, 2.0, 3.5]))
def test_affinity_equals_the_loops(rows, tau: float) -> None:
    expected = torch.tensor(loops.affinity(rows, tau), dtype=torch.float64)
    counts = counted(torch.tensor(rows))
    dense, sparse = counts.counts(sparse=False), counts.counts(sparse=True)
    actual = affinity(dense.together, dense.known, tau)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
    assert torch.equal(actual, actual.T)
    from_sparse = affinity(sparse.together, sparse.known, tau)
    assert from_sparse.is_sparse
    assert from_sparse.is_coalesced()  # so that its values can be asked for
    assert torch.equal(from_sparse.to_dense(), actual)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.float8_e5m2, torch.float16])
def test_counts_and_affinities_of_every_real_dtype(dtype: torch.dtype) -> None:
    together, present = torch.tensor([[0, 4, 0], [4, 0, 1], [0, 1, 0]]), torch.tensor([4, 16, 0])
    assert torch.equal(affinity(together.to(dtype), present.to(dtype)), affinity(together, present))
    groups = torch.tensor([0, 0, 1])
    assert normalized_cut(together.to(dtype), groups) == normalized_cut(together, groups)
    assert normalized_cut(together.to_sparse(), groups) == normalized_cut(together, groups)


def test_affinity_of_known_labels_needs_one_count_a_label() -> None:
    targets = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    targets[:, 4] = False
    counts = counted(targets).counts(sparse=False)
    expected = torch.tensor(loops.affinity(targets.int().tolist()), dtype=torch.float64)
    torch.testing.assert_close(affinity(counts.together, counts.present), expected, rtol=1e-14, atol=0)
    for table in (counts.together.to_sparse(), csr(counts.together)):
        torch.testing.assert_close(affinity(table, counts.present).to_dense(), expected, rtol=1e-14, atol=0)
    no_diagonal = counts.together.clone().fill_diagonal_(0)
    assert torch.equal(affinity(no_diagonal, counts.present), affinity(counts.together, counts.present))
    assert (expected[4] == 0).all()


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, groups=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_cut_equals_the_loops(rows, groups) -> None:
    plus = loops.affinity(rows)
    for m in (plus, loops.apart(plus)):
        expected = loops.normalized_cut(m, groups)
        dense = torch.tensor(m, dtype=torch.float64)
        for form in (dense, dense.to_sparse(), csr(dense), dense + torch.eye(5)):
            assert normalized_cut(form, torch.tensor(groups)) == pytest.approx(expected, abs=1e-12)


def test_cut_of_random_groups() -> None:
    targets, _ = real_targets("coco14")
    counts = counted(targets).counts(sparse=False)
    m = affinity(counts.together, counts.present)
    apart = (1 - m).fill_diagonal_(0)
    generator = torch.Generator().manual_seed(0)
    cuts = [normalized_cut(apart, torch.randint(5, (80,), generator=generator)) for _ in range(50)]
    assert sum(cuts) / 50 == pytest.approx(5 - 75 / 79, abs=1e-3)  # the level of chance
    assert normalized_cut(m, torch.zeros(80, dtype=torch.int64)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("relation", ["co", "dis"])
@pytest.mark.parametrize("size", [2, 7, 40])
def test_operator_equals_its_matrix(relation: str, size: int) -> None:
    random = np.random.default_rng(size)
    plus = np.triu(random.random((size, size)) * (random.random((size, size)) < 0.4), 1)
    plus[0, 1:] = 0.5  # connected
    plus = plus + plus.T
    m = plus if relation == "co" else (1 - np.eye(size)) - plus
    a = m / np.sqrt(np.outer(m.sum(0), m.sum(0)))
    for form in (scipy.sparse.csr_array(plus), plus):
        operator = AffinityOperator(form, relation)
        np.testing.assert_allclose(operator.degrees, m.sum(0), atol=1e-12)
        np.testing.assert_allclose(operator.matrix(), m, atol=0)
        normalized = operator.normalized()
        for x in (random.normal(size=size), random.normal(size=(size, 3))):
            np.testing.assert_allclose(operator @ x, m @ x, atol=1e-12)
            np.testing.assert_allclose(normalized @ x, a @ x, atol=1e-12)
        top = np.sqrt(m.sum(0))
        np.testing.assert_allclose(normalized @ top, top, atol=1e-12)
        some = np.array([0, size - 1])
        part = AffinityOperator(form, relation).restricted(some)
        np.testing.assert_allclose(part.matrix(), m[np.ix_(some, some)], atol=0)


class Elsewhere(Tensor):
    """Stands for a tensor on another device, which may not be at hand."""

    device = torch.device("cuda:0")


TABLE = torch.zeros(3, 3)
LABELS = torch.zeros(3, dtype=torch.int64)
ELSEWHERE = LABELS.as_subclass(Elsewhere)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch calls it a beta feature
    CSC = TABLE.to_sparse_csc()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"^counts: .*\(C, C\).*\(3, 2\)", lambda: affinity(torch.zeros(3, 2), torch.zeros(3))),
        (ValueError, r"^label_counts: .*C = 3.*\(4,\)", lambda: affinity(TABLE, torch.zeros(4))),
        (ValueError, "^label_counts: .*layout", lambda: affinity(TABLE.to_sparse(), TABLE)),
        (ValueError, "^label_counts: .*entry", lambda: affinity(TABLE.to_sparse(), torch.eye(3).to_sparse())),
        (ValueError, "^label_counts: .*device", lambda: affinity(TABLE, torch.zeros(3, device="meta"))),
        (ValueError, "^counts: .*CSR tensor, got torch.sparse_csc", lambda: affinity(CSC, torch.zeros(3))),
        (ValueError, "^affinity: .*CSR tensor, got torch.sparse_csc", lambda: normalized_cut(CSC, LABELS)),
        (ValueError, "^groups: .*device of affinity, cpu, got cuda:0", lambda: normalized_cut(TABLE, ELSEWHERE)),
        (ValueError, r"^groups: .*\(C,\), got \(3, 3\)", lambda: normalized_cut(TABLE, TABLE.long())),
        (ValueError, "^tau: ", lambda: affinity(TABLE, torch.zeros(3), tau=0)),
        (TypeError, "^counts: ", lambda: affinity([[0]], torch.zeros(1))),
        (TypeError, "^counts: .*complex", lambda: affinity(TABLE.to(torch.complex64), torch.zeros(3))),
        (ValueError, r"^groups: .*\(2,\)", lambda: normalized_cut(TABLE, torch.zeros(2, dtype=torch.int64))),
        (ValueError, r"^groups: .*-1", lambda: normalized_cut(TABLE, torch.tensor([0, -1, 0]))),
        (TypeError, "^groups: .*float", lambda: normalized_cut(TABLE, torch.zeros(3))),
        (ValueError, "^affinity: ", lambda: normalized_cut(torch.zeros(3), torch.zeros(3, dtype=torch.int64))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


def test_labels_are_ordered_by_their_counts_not_by_their_places() -> None:
    """Two rings of four labels, of which only the squares of the counts differ."""
    ring = torch.tensor([[0, 3, 0, 1], [3, 0, 1, 0], [0, 1, 0, 3], [1, 0, 3, 0]])
    even = 2 * (ring > 0)
    together = torch.block_diag(ring, even)
    present = torch.full((8,), 9)
    for seed in range(5):
        places = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        shuffled = together[places][:, places]
        for table in (shuffled, shuffled.to_sparse().coalesce()):
            order = places[_canonical_order(present, table)]
            assert (order[:4] < 4).all()
            assert (order[4:] >= 4).all()
