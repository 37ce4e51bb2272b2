"""SpectralLabelGrouping: planted groups, any split and order of the data, what the module gives and what it keeps."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.planted import planted_groups, planted_targets
from mlcorr.grouping import LabelCooccurrence, LabelGroups, SpectralLabelGrouping, affinity
from tests.grouping.targets import csr, fitted, fitted_real, real_targets, same_partition
from tests.ranks import run_ranks

RELATIONS = ["co", "dis"]
NAMES = tuple("abcdefgh")


def draw_targets(rows: int = 200, labels: int = 8, seed: int = 0, unknown: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(rows, labels, generator=generator) < 0.3).long()
    return targets.masked_fill(torch.rand(rows, labels, generator=generator) < unknown, -1)


def counted(targets: Tensor) -> LabelCooccurrence:
    counts = LabelCooccurrence(targets.shape[1])
    counts.update(targets)
    return counts


def of_planted(num_labels: int, rows: int, noise: float = 0.1, num_groups: int = 5, **kwargs):
    hidden = planted_groups(num_labels, num_groups)
    grouping = SpectralLabelGrouping(num_labels, num_groups, **kwargs)
    for targets in planted_targets(hidden, rows, noise=noise, batch=-(-rows // 4)):
        grouping.update(targets)
    return hidden, grouping, grouping.fit()


# --- planted groups ---


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("num_labels", "rows"), [(20, 400), (500, 5000), (20_000, 100_000)])
def test_planted_groups_are_found(num_labels: int, rows: int, noise: float) -> None:
    hidden, grouping, groups = of_planted(num_labels, rows, noise, restarts=2)
    assert same_partition(groups.co, hidden)
    assert groups.method == ("spectral, operator" if num_labels > 1024 else "spectral, dense")
    # Of each hidden group every dis-occurrence group has its part, and labels in one of them meet more seldom.
    assert groups.dis.bincount(minlength=5).min() >= max(2, num_labels // 20)
    counts = grouping.counts.counts(sparse=True)
    row, column = counts.together.indices()
    pairs = counts.together.values() * (row != column)
    inside = pairs[groups.dis[row] == groups.dis[column]].sum() / pairs.sum()
    assert inside < groups.dis.bincount().square().sum() / num_labels**2
    if num_labels > 20:
        assert len(torch.stack([hidden, groups.dis]).unique(dim=1).T) == 25
    assert groups.ncut_dis < 5 - (num_labels - 5) / (num_labels - 1)


@pytest.mark.parametrize("solver", ["dense", "operator"])
def test_both_solvers_find_planted_groups_of_many_kinds(solver: str) -> None:
    for num_labels, rows, num_groups in ((40, 900, 3), (300, 6000, 8), (1100, 9000, 4)):
        hidden, _, groups = of_planted(num_labels, rows, num_groups=num_groups, solver=solver, restarts=2)
        assert same_partition(groups.co, hidden)
    hidden, grouping, groups = of_planted(300, 6000, num_groups=8, solver=solver, restarts=2)
    auto = SpectralLabelGrouping(300, "auto", solver=solver, restarts=2)
    assert auto.extra_repr().count("'auto'") == 1
    assert auto.num_groups == 1  # until there are counts to tell
    auto.counts = grouping.counts
    assert auto.fit().num_groups == auto.num_groups == 8
    assert same_partition(auto.co_groups, hidden)
    assert auto.pool(torch.ones(1, 300, 2)).shape == (1, 8, 2)


def test_unknown_labels_do_not_mislead() -> None:
    """Rows in which a label is unknown say nothing of it."""
    hidden = planted_groups(60, 3)
    targets = torch.cat(list(planted_targets(hidden, 3000))).to_dense().long()
    unknown = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    grouping = fitted(targets.masked_fill(unknown, -1), 3)
    assert same_partition(grouping.co_groups, hidden)
    counts = grouping.counts.counts(sparse=True)
    sparse = fitted(targets.masked_fill(unknown, -1), 3, solver="operator")
    assert same_partition(sparse.co_groups, hidden)
    everything = fitted(targets, 3).counts.counts()
    pairs = hidden[:, None] == hidden
    some = affinity(counts.together, counts.known).to_dense()[pairs].mean()
    torch.testing.assert_close(some, affinity(everything.together, everything.present)[pairs].mean(), rtol=0.05, atol=0)


# --- any split, form and order of the data ---


@pytest.mark.parametrize("solver", ["dense", "operator"])
def test_any_split_and_form_gives_the_same(solver: str) -> None:
    targets = draw_targets(labels=40)
    settings = {"solver": solver, "restarts": 2}
    expected = fitted(targets, **settings)
    positive = targets.clamp(min=0)
    expected_positive = fitted(positive, **settings)
    for split in ([200], [1] * 200, [7, 0, 190, 3]):
        grouping = SpectralLabelGrouping(40, **settings)
        for part in targets.split(split):
            grouping.update(part)
        assert grouping.fit() == expected.assignments
        assert grouping.assignments.ncut_dis == expected.assignments.ncut_dis
    forms = [targets.view(5, 40, 40), targets.to_sparse(), csr(targets), scipy.sparse.csr_array(targets.numpy())]
    for form in forms:
        grouping = SpectralLabelGrouping(40, **settings)
        grouping.update(form)
        assert grouping.fit() == expected.assignments
    assert fitted(positive.bool(), **settings).assignments == expected_positive.assignments
    grouping.update(torch.zeros(0, 40))
    grouping.update(torch.zeros(30, 40))  # nothing in any picture
    assert grouping.fit() == expected.assignments


@pytest.mark.parametrize("solver", ["dense", "operator"])
@pytest.mark.parametrize("name", ["drawn", "coco14", "voc2007"])
def test_permuted_labels_give_permuted_groups(name: str, solver: str) -> None:
    targets = draw_targets(3000, 100) if name == "drawn" else real_targets(name)[0]
    order = torch.randperm(targets.shape[1], generator=torch.Generator().manual_seed(0))
    first = fitted(targets, solver=solver) if name == "drawn" else fitted_real(name, solver=solver)
    second = fitted(targets[:, order], solver=solver)
    for relation in RELATIONS:
        expected, actual = (getattr(each, f"{relation}_groups") for each in (first, second))
        assert same_partition(actual, expected[order])
        assert actual[0] == 0  # numbered by the first label
        assert actual.unique().tolist() == [0, 1, 2, 3, 4]


def test_seeds_and_global_state() -> None:
    targets = draw_targets(300, 40)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = fitted(targets).assignments
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert fitted(targets).assignments == first
    others = [fitted(targets, restarts=1, seed=seed).assignments.dis.tolist() for seed in range(4)]
    assert len({tuple(groups) for groups in others}) > 1
    assert first.ncut_dis <= fitted(targets, restarts=1).assignments.ncut_dis


def work(rank: int, sizes: list[int]) -> list[object]:
    own = draw_targets(sum(sizes), 40).split(sizes)[rank]
    results = []
    for solver in ("dense", "operator"):
        grouping = SpectralLabelGrouping(40, "auto" if solver == "dense" else 5, solver=solver, restarts=2)
        grouping.update(own[:3])
        grouping.fit(dist.group.WORLD)
        grouping.update(own[3:])
        grouping.fit(dist.group.WORLD)
        results.append((grouping.state_dict(), grouping.reduce(dist.group.WORLD).state_dict()))
    return results


@pytest.mark.parametrize("sizes", [[200], [130, 70], [90, 0, 110]])
def test_every_rank_fits_the_same(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    targets = draw_targets(200, 40)
    for part, results in zip(targets.split(sizes), ranks, strict=True):
        for solver, (state, reduced) in zip(("dense", "operator"), results, strict=True):
            count = "auto" if solver == "dense" else 5
            expected = fitted(targets, count, solver=solver, restarts=2)
            loaded = SpectralLabelGrouping(40, count, solver=solver)
            loaded.load_state_dict(state)
            assert loaded.assignments == expected.assignments
            assert loaded.assignments.ncut_co == pytest.approx(expected.assignments.ncut_co)
            assert torch.equal(loaded.counts.counts().together, counted(part).counts().together)
            loaded.load_state_dict(reduced)
            assert torch.equal(loaded.counts.counts().together, expected.counts.counts().together)
    with pytest.raises(TypeError, match=r"^group: "):
        expected.fit("world")


# --- labels at the edge ---


@pytest.mark.parametrize("solver", ["dense", "operator"])
def test_labels_never_seen_and_alone(solver: str) -> None:
    hidden = planted_groups(30, 2)
    targets = torch.zeros(800, 40, dtype=torch.int64)
    targets[:, :30] = torch.cat(list(planted_targets(hidden, 800, noise=0.0))).to_dense()
    alone = torch.zeros(3, 40, dtype=torch.int64)
    alone[0, 30] = alone[1, 31] = alone[2, 31] = 1
    grouping = fitted(torch.cat([targets, alone]), 2, solver=solver)
    assert same_partition(grouping.co_groups[:30], hidden)
    assert grouping.co_groups.bincount().tolist() == [20, 20]
    assert grouping.dis_groups.bincount(minlength=2).min() >= 5
    nothing = SpectralLabelGrouping(12, 4, solver=solver)
    groups = nothing.fit()
    assert groups.co.bincount().tolist() == [3, 3, 3, 3]
    assert groups.dis.bincount(minlength=4).min() >= 2
    assert nothing.eigenvalues().tolist() == []
    together = fitted(torch.ones(5, 12, dtype=torch.int64), 4, solver=solver).assignments
    assert together.co.bincount(minlength=4).min() >= 1
    assert together.dis.bincount().tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("solver", ["dense", "operator"])
def test_few_labels(solver: str) -> None:
    targets = draw_targets(50, 3)
    with pytest.warns(UserWarning, match=r"^num_groups: 5 groups for 3 labels"):
        grouping = fitted(targets, 5, solver=solver)
    assert grouping.num_groups == 3
    assert grouping.co_groups.tolist() == grouping.dis_groups.tolist() == [0, 1, 2]
    assert fitted(targets, 3, solver=solver).co_groups.tolist() == [0, 1, 2]
    assert fitted(targets, 1, solver=solver).assignments.ncut_co == pytest.approx(0, abs=1e-12)
    one = fitted(targets[:, :1], 1, solver=solver)
    assert one.co_groups.tolist() == one.dis_groups.tolist() == [0]
    assert fitted(targets, "auto", solver=solver).num_groups in (1, 2, 3)
    assert fitted(targets[:, :1], "auto", solver=solver).num_groups == 1


def test_least_size() -> None:
    targets = draw_targets(300, 40)
    for least in (1, 4, 8):
        groups = fitted(targets, min_group_size=least).assignments
        assert groups.dis.bincount(minlength=5).min() >= least
    with pytest.raises(ValueError, match=r"^min_group_size: .*8.*got 9"):
        SpectralLabelGrouping(40, min_group_size=9)


# --- the module ---


def by_hand(num_labels: int = 8, num_groups: int = 3) -> SpectralLabelGrouping:
    generator = torch.Generator().manual_seed(0)
    co, dis = (torch.randint(num_groups - 1, (num_labels,), generator=generator) for _ in range(2))
    grouping = SpectralLabelGrouping(num_labels, num_groups)
    grouping.assign(LabelGroups(co, dis, None, num_groups))  # the last group is empty
    return grouping


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_forward_and_pool_equal_loops(relation: str, leading: tuple[int, ...]) -> None:
    grouping = by_hand()
    groups = getattr(grouping, f"{relation}_groups").tolist()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(*leading, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(*leading, 8, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    routed, pooled = grouping(features, relation), grouping.pool(labels, relation)
    assert torch.equal(routed, torch.stack([features[..., group, :] for group in groups], -2))
    for group in range(3):
        members = [label for label in range(8) if groups[label] == group]
        expected = labels[..., members, :].mean(-2) if members else torch.zeros(*leading, 4)
        torch.testing.assert_close(pooled[..., group, :], expected, check_dtype=False)
    torch.testing.assert_close(grouping.pool(routed, relation)[..., :2, :], features[..., :2, :])
    assert torch.autograd.gradcheck(lambda x: grouping(x, relation), features)
    assert torch.autograd.gradcheck(lambda x: grouping.pool(x, relation), labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    grouping = by_hand(3000, 2).to(dtype)
    assert grouping.co_groups.dtype == torch.int64
    labels = torch.full((2, 3000, 4), 100.0, dtype=dtype)
    pooled = grouping.pool(labels)  # a sum in float16 would be infinite
    assert pooled.dtype == dtype
    assert (pooled[:, 0] == 100).all()
    assert grouping(pooled).dtype == dtype
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(grouping.pool(labels), pooled)


def test_compiles_as_one_graph() -> None:
    grouping = by_hand()
    features, labels = torch.randn(2, 3, 4), torch.randn(2, 8, 4)
    for relation in RELATIONS:
        forward = torch.compile(lambda x, r=relation: grouping(x, r), fullgraph=True, backend="aot_eager")
        pool = torch.compile(lambda x, r=relation: grouping.pool(x, r), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(forward(features), grouping(features, relation))
        torch.testing.assert_close(pool(labels), grouping.pool(labels, relation))


@pytest.mark.parametrize("solver", ["dense", "operator"])
@pytest.mark.parametrize("num_groups", [3, "auto"])
def test_state_carries_everything(solver: str, num_groups) -> None:
    targets = draw_targets()
    grouping = fitted(targets[:150], num_groups, names=NAMES, solver=solver)
    file = io.BytesIO()
    torch.save(grouping.state_dict(), file)
    file.seek(0)
    assert all(isinstance(value, Tensor) for value in grouping.state_dict().values())
    resumed = fitted(draw_targets(9, seed=3), num_groups, solver=solver)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for again in (resumed, pickle.loads(pickle.dumps(grouping)), copy.deepcopy(grouping)):
        assert again.assignments == grouping.assignments
        assert again.assignments.names == NAMES
        assert again.assignments.ncut_co == grouping.assignments.ncut_co
        again.update(targets[150:])
        assert again.assignments == grouping.assignments  # until it is fitted again
        assert again.fit() == fitted(targets, num_groups, names=NAMES, solver=solver).assignments
    fresh = SpectralLabelGrouping(8, num_groups)
    with pytest.raises(RuntimeError, match="no groups yet"):
        _ = fresh.assignments
    fresh.load_state_dict(SpectralLabelGrouping(8, num_groups).state_dict())
    with pytest.raises(RuntimeError, match="no groups yet"):
        fresh(torch.zeros(1, 3, 2))
    by_others = by_hand()
    by_others.load_state_dict(by_hand().state_dict())
    assert math.isnan(by_others.assignments.ncut_co)


def test_groups_alone_fill_a_number_that_was_given() -> None:
    state = {name: value for name, value in by_hand().state_dict().items() if name.endswith("_groups")}
    grouping = SpectralLabelGrouping(8, 4)
    grouping.load_state_dict(state, strict=False)
    assert grouping.num_groups == 4
    assert grouping.assignments.method == "loaded"
    assert torch.equal(grouping.assignments.co, by_hand().assignments.co)
    assert grouping.pool(torch.ones(8, 2)).shape == (4, 2)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    grouping = torch.nn.ModuleDict({"groups": fitted(draw_targets(), 3, names=NAMES)})
    before = {name: tensor.clone() for name, tensor in grouping.state_dict().items()}
    other = SpectralLabelGrouping
    for foreign, message in (
        (fitted(draw_targets(labels=9), 3), r"groups: size mismatch: expected 8 labels, got 9"),
        (fitted(draw_targets(seed=1), 4), r"groups: size mismatch: expected 3 groups, got 4"),
        (other(8, 3, names=NAMES[::-1]), r"other names: expected the labels' names in the same order"),
        (other(8, 3, names=(*NAMES[1:], "z")), r"other names: expected the labels' names$"),
    ):
        state = torch.nn.ModuleDict({"groups": foreign}).state_dict()
        kept = dict(state)
        with pytest.raises(RuntimeError) as caught:
            grouping.load_state_dict(state)
        assert re.search(message, str(caught.value), re.MULTILINE)
        assert state.keys() == kept.keys()
        assert grouping.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in grouping.state_dict().items())


@pytest.mark.parametrize(("num_groups", "expected"), [(3, 3), ("auto", 2)])
def test_groups_without_what_was_found_are_taken_over(num_groups, expected: int) -> None:
    state = {"co_groups": torch.tensor([0, 1, 1]), "dis_groups": torch.tensor([1, 0, 1])}
    grouping = SpectralLabelGrouping(3, num_groups)
    grouping.load_state_dict(state, strict=False)
    assert grouping.assignments.num_groups == expected
    assert grouping.assignments.method == "loaded"
    assert grouping.pool(torch.ones(1, 3, 1)).shape == (1, expected, 1)
    grouping.load_state_dict({**state, "dis_groups": torch.tensor([1, -1, 1])}, strict=False)
    with pytest.raises(RuntimeError, match="no groups yet"):
        _ = grouping.assignments


def test_published_groups_are_taken_over() -> None:
    groups = LabelGroups(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), ("a", "b", "c"), 2, 3.0, "published")
    grouping = SpectralLabelGrouping(3, 2, names=("c", "b", "a"))
    grouping.assign(groups)
    assert grouping.co_groups.tolist() == [1, 1, 0]
    assert grouping.assignments == groups.reorder(("c", "b", "a"))
    assert (grouping.assignments.tau, grouping.assignments.method) == (3.0, "published")
    for wrong, error in (
        (SpectralLabelGrouping(4, 2), ValueError),
        (SpectralLabelGrouping(3, 3), ValueError),
        (SpectralLabelGrouping(3, 2, names=("x", "y", "z")), ValueError),
    ):
        with pytest.raises(error, match=r"^(groups|names): "):
            wrong.assign(groups)
    with pytest.raises(TypeError, match=r"^groups: "):
        grouping.assign([0, 1, 1])


GROUPING = by_hand()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "^num_labels: ", lambda: SpectralLabelGrouping(0)),
        (ValueError, "^num_groups: ", lambda: SpectralLabelGrouping(8, 0)),
        (TypeError, "^num_groups: ", lambda: SpectralLabelGrouping(8, "five")),
        (ValueError, "^tau: ", lambda: SpectralLabelGrouping(8, tau=-1)),
        (ValueError, "^restarts: ", lambda: SpectralLabelGrouping(8, restarts=0)),
        (ValueError, "^min_group_size: ", lambda: SpectralLabelGrouping(8, min_group_size=0)),
        (ValueError, "^seed: ", lambda: SpectralLabelGrouping(8, seed=-1)),
        (ValueError, "^solver: .*'amg'", lambda: SpectralLabelGrouping(8, solver="amg")),
        (ValueError, "^names: ", lambda: SpectralLabelGrouping(8, names=["a"])),
        (ValueError, "^targets: ", lambda: GROUPING.update(torch.zeros(2, 9))),
        (ValueError, r"^group_features: .*T = 3.*\(2, 4, 5\)", lambda: GROUPING(torch.zeros(2, 4, 5))),
        (ValueError, r"^label_features: .*C = 8.*\(2, 3, 5\)", lambda: GROUPING.pool(torch.zeros(2, 3, 5))),
        (ValueError, "^relation: .*'dc'", lambda: GROUPING(torch.zeros(2, 3, 5), "dc")),
        (TypeError, "^group_features: ", lambda: GROUPING(torch.zeros(2, 3, 5).long())),
        (ValueError, "^relation: ", lambda: GROUPING.eigenvalues("both")),
        (RuntimeError, "no groups yet", lambda: SpectralLabelGrouping(8).pool(torch.zeros(1, 8, 2))),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()
