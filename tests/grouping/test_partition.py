"""Partitions: refinement by its definition, graphs at the edge of the definition, planted groups, published cuts."""

from __future__ import annotations

import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from sklearn.cluster import KMeans, SpectralClustering

from mlcorr.grouping import affinity, normalized_cut
from mlcorr.grouping.operators import AffinityOperator
from mlcorr.grouping.partition import by_first_label, eigengap, eigenvalues, kmeans, partition
from mlcorr.grouping.refinement import Grouping
from tests.grouping.targets import fitted_real, same_partition
from tests.reference import grouping as loops

RELATIONS = ["co", "dis"]


def draw_plus(size: int, seed: int = 0, density: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    plus = np.triu(random.random((size, size)) * (random.random((size, size)) < density), 1)
    return plus + plus.T


def operators(plus: np.ndarray, relation: str) -> list[AffinityOperator]:
    return [AffinityOperator(form, relation) for form in (plus, scipy.sparse.csr_array(plus))]


def blocks(*sizes: int, inside: float = 0.8) -> np.ndarray:
    """An affinity without any noise: labels of a block, and nothing else, stand together."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    return inside * (group[:, None] == group) * (1 - np.eye(len(group)))


# --- refinement ---


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.lists(st.integers(0, 2), min_size=7, max_size=7),
    relation=st.sampled_from(RELATIONS),
)
def test_gains_equal_the_loops(seed: int, groups: list[int], relation: str) -> None:
    plus = draw_plus(7, seed)
    m = plus.tolist() if relation == "co" else loops.apart(plus.tolist())
    for operator in operators(plus, relation):
        grouping = Grouping(operator, np.array(groups), 3)
        assert grouping.cut == pytest.approx(loops.normalized_cut(m, groups), abs=1e-12)
        for labels in (slice(1, 6), np.array([5, 0, 3])):
            gains = grouping.gains(labels, grouping.toward(labels))
            for row, label in enumerate(np.arange(7)[labels]):
                if groups.count(groups[label]) == 1:
                    continue  # its group would be gone, which refinement does not allow
                for target in set(groups):
                    expected = loops.gain(m, groups, int(label), target)
                    assert gains[row, target] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    relation=st.sampled_from(RELATIONS),
    moved=st.lists(st.integers(0, 8), min_size=1, max_size=9, unique=True),
)
def test_moves_keep_the_books(seed: int, relation: str, moved: list[int]) -> None:
    random = np.random.default_rng(seed)
    groups, labels = random.integers(3, size=9), np.array(moved)
    targets = random.integers(3, size=len(labels))
    for operator in operators(draw_plus(9, seed), relation):
        grouping = Grouping(operator, groups, 3)
        before = grouping.cut
        grouping.move(labels, targets, grouping.toward(labels))
        expected = groups.copy()
        expected[labels] = targets
        fresh = Grouping(operator, expected, 3)
        assert (grouping.groups == expected).all()
        for name in ("sizes", "volumes", "inner"):
            np.testing.assert_allclose(getattr(grouping, name), getattr(fresh, name), atol=1e-12)
        again = Grouping(operator, groups, 3)
        total = again.inner / np.maximum(again.volumes, 1e-12)
        if again.move(labels, targets, again.toward(labels), only_if_better=True):
            assert (fresh.inner / np.maximum(fresh.volumes, 1e-12)).sum() > total.sum()
        else:
            assert again.cut == before
            assert (again.groups == groups).all()


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("size", [30, 400])
def test_refinement_lowers_the_cut_to_where_no_move_does(relation: str, size: int) -> None:
    for seed in range(3):
        random = np.random.default_rng(seed)
        for operator in operators(draw_plus(size, seed), relation):
            grouping = Grouping(operator, random.integers(4, size=size), 4)
            least = int(grouping.sizes.min())
            before = grouping.cut
            grouping.refine(least)
            assert grouping.cut < before
            assert grouping.sizes.min() >= least
            assert grouping.cut == pytest.approx(Grouping(operator, grouping.groups, 4).cut, abs=1e-10)
            everything = slice(0, size)
            gains = grouping.gains(everything, grouping.toward(everything))
            gains[(grouping.sizes <= least)[grouping.groups]] = 0
            assert gains.max() <= 1e-11


@pytest.mark.parametrize("relation", RELATIONS)
def test_sweeps_end_and_go_on_where_they_ended(relation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, groups = operators(draw_plus(400), relation)[0], np.random.default_rng(0).integers(4, size=400)
    whole = Grouping(operator, groups, 4)
    whole.refine()
    monkeypatch.setattr("mlcorr.grouping.refinement._SWEEPS", 1)
    stepwise = Grouping(operator, groups, 4)
    cuts = [stepwise.cut]
    while len(cuts) == 1 or cuts[-1] != cuts[-2]:
        stepwise.refine()
        cuts.append(stepwise.cut)
    assert len(cuts) > 4  # one sweep is not enough
    assert cuts == sorted(cuts, reverse=True)
    assert (stepwise.groups == whole.groups).all()


@pytest.mark.parametrize("relation", RELATIONS)
def test_repair_fills_every_group(relation: str) -> None:
    for operator in operators(draw_plus(400), relation):
        for groups in (np.zeros(400, dtype=int), np.r_[np.zeros(397, dtype=int), 1, 2, 3]):
            grouping = Grouping(operator, groups, 5)
            grouping.repair(80)
            assert (grouping.sizes == 80).all()
            assert grouping.cut == pytest.approx(Grouping(operator, grouping.groups, 5).cut, abs=1e-10)
        with pytest.raises(ValueError, match=r"^least_size: "):
            grouping.repair(81)
    operator = operators(blocks(4, 3), "co")[0]
    grouping = Grouping(operator, np.array([0, 0, 0, 0, 0, 0, 1]), 2)
    grouping.repair(2)
    assert grouping.groups.tolist()[:4] == [0, 0, 0, 0]  # it takes what belongs there


# --- the edge of the definition ---


@pytest.mark.parametrize("form", ["dense", "operator"])
@pytest.mark.parametrize("sizes", [(4, 5, 6), (40, 50, 3), (60, 60, 60)])
def test_blocks_without_noise_are_found(form: str, sizes: tuple[int, ...]) -> None:
    plus, expected = blocks(*sizes), np.repeat(np.arange(3), sizes)
    random = np.random.default_rng(0)
    order = random.permutation(len(plus))
    for operator in operators(plus[np.ix_(order, order)], "co"):
        groups, cut = partition(operator, 3, form=form, min_group_size=4)
        assert (groups == by_first_label(expected[order])).all()
        assert cut == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("form", ["dense", "operator"])
def test_more_components_than_groups(form: str) -> None:
    for operator in operators(blocks(9, 7, 6, 5, 4, 4, 3), "co"):
        groups, cut = partition(operator, 3, form=form, min_group_size=3)
        assert cut == pytest.approx(0, abs=1e-12)  # each component stays whole
        assert np.bincount(groups).max() <= 14
    # Components below the least size are set aside, so that they are no groups of their own.
    plus = np.zeros((44, 44))
    plus[:40, :40] = draw_plus(40, density=0.3) + 0.01 * (1 - np.eye(40))
    plus[40, 41] = plus[41, 40] = plus[42, 43] = plus[43, 42] = 1.0
    for operator in operators(plus, "co"):
        groups, cut = partition(operator, 2, form=form, min_group_size=5)
        alone, _ = partition(operator.restricted(np.arange(40)), 2, form=form, min_group_size=5)
        assert (groups[:40] == alone).all()
        assert groups[40] == groups[41]
        assert groups[42] == groups[43]
        assert np.isfinite(cut)


@pytest.mark.parametrize("form", ["dense", "operator"])
def test_fewer_components_than_groups(form: str) -> None:
    """An eigenvalue that repeats must not be lost: the groups are those within the components."""
    plus = np.zeros((120, 120))
    for first, seed in ((0, 1), (60, 2)):
        part = blocks(30, 30) + 0.02 * draw_plus(60, seed)
        plus[first : first + 60, first : first + 60] = part
    for operator in operators(plus, "co"):
        groups, _ = partition(operator, 4, form=form, min_group_size=5)
        assert (groups == np.repeat(np.arange(4), 30)).all()


@pytest.mark.parametrize("form", ["dense", "operator"])
@pytest.mark.parametrize("relation", RELATIONS)
def test_degenerate_graphs(form: str, relation: str) -> None:
    for operator in operators(np.zeros((12, 12)), relation):  # nothing was ever together
        groups, cut = partition(operator, 3, form=form, min_group_size=2)
        assert np.bincount(groups, minlength=3).min() >= 2
        assert np.isfinite(cut)
        if relation == "co":
            assert np.bincount(groups).tolist() == [4, 4, 4]
            assert cut == 3
    for operator in operators(np.ones((12, 12)) - np.eye(12), relation):  # everything always was
        groups, cut = partition(operator, 3, form=form, min_group_size=2)
        assert len(np.bincount(groups)) == 3
        if relation == "dis":
            assert np.bincount(groups).tolist() == [4, 4, 4]
            assert cut == 3
    for operator in operators(draw_plus(4), relation):
        assert partition(operator, 1, form=form)[0].tolist() == [0] * 4
        assert partition(operator, 1, form=form)[1] == pytest.approx(0, abs=1e-12)
        assert partition(operator, 4, form=form)[0].tolist() == [0, 1, 2, 3]
        assert partition(operator, 7, form=form)[0].tolist() == [0, 1, 2, 3]
    assert partition(operators(np.zeros((1, 1)), relation)[0], 1, form=form) == (0, 1.0)


@pytest.mark.parametrize("form", ["dense", "operator"])
def test_isolated_labels_go_to_the_smallest_group(form: str) -> None:
    plus = np.zeros((20, 20))
    plus[:15, :15] = blocks(10, 5)
    for operator in operators(plus, "co"):
        groups, _ = partition(operator, 2, form=form)
        assert groups.tolist() == [0] * 10 + [1] * 10
        groups, _ = partition(operator, 5, form=form)  # fewer components than groups, and 5 labels alone
        assert set(groups) == set(range(5))


def test_duplicates_share_a_group() -> None:
    plus = draw_plus(20, density=0.6)
    twice = np.repeat(np.repeat(plus, 2, 0), 2, 1)
    twice[np.arange(0, 40, 2), np.arange(1, 40, 2)] = 1
    twice[np.arange(1, 40, 2), np.arange(0, 40, 2)] = 1
    groups, _ = partition(AffinityOperator(twice, "co"), 4)
    assert (groups[::2] == groups[1::2]).all()
    apart, _ = partition(AffinityOperator(twice, "dis"), 4, min_group_size=2)
    assert np.bincount(apart).min() >= 2


def test_fewer_points_than_clusters() -> None:
    points = np.repeat(np.eye(3), 5, 0)
    with pytest.warns(UserWarning, match=r"^num_groups: .*only 3 groups.*not 4"):
        found = kmeans(points, 4, 0)
    assert found.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_numbers_and_gaps() -> None:
    assert by_first_label(np.array([7, 2, 7, 0])).tolist() == [0, 1, 0, 2]
    assert eigengap(np.array([0.0, 0.1, 0.2, 0.9, 1.0])) == 3
    assert eigengap(np.array([0.0, 0.9, 1.0])) == 2
    assert eigengap(np.array([0.0, 0.5])) == 1
    assert eigengap(np.zeros(0)) == 1


# --- real label matrices ---

# The lowest cut of the published groups, or of ten seeds of the spectral clustering that they come from.
COCO_CUTS = {2: 0.57106, 3: 1.3904, 5: 3.02956, 8: 5.6819, 13: 10.430}


def real_affinity(name: str) -> torch.Tensor:
    counts = fitted_real(name).counts.counts()
    return affinity(counts.together, counts.present)


@pytest.mark.parametrize("num_groups", COCO_CUTS)
def test_cuts_of_coco(num_groups: int) -> None:
    groups = fitted_real("coco14", num_groups).assignments
    assert groups.ncut_co <= COCO_CUTS[num_groups] + 5e-5  # digits that were noted
    m = real_affinity("coco14")
    assert normalized_cut(m, groups.co) == pytest.approx(groups.ncut_co, abs=1e-12)
    assert normalized_cut((1 - m).fill_diagonal_(0), groups.dis) == pytest.approx(groups.ncut_dis, abs=1e-12)


@pytest.mark.parametrize("name", ["coco14", "voc2007"])
def test_scikit_learn_gives_the_same_groups(name: str) -> None:
    m, groups = real_affinity(name), fitted_real(name).assignments
    for seed in range(3):
        official = SpectralClustering(5, affinity="precomputed", n_init=20, random_state=seed).fit_predict(m.numpy())
        assert same_partition(torch.from_numpy(official).long(), groups.co)
    if name == "coco14":
        assert normalized_cut(m, groups.co) == pytest.approx(3.02956, abs=1e-4)


@pytest.mark.parametrize(("name", "published"), [("coco14", 4.0404), ("voc2007", None)])
def test_dis_groups_are_far_below_chance(name: str, published: float | None) -> None:
    cuts = []
    for seed in range(5):
        groups = fitted_real(name, seed=seed).assignments
        size = groups.num_labels
        assert groups.ncut_dis <= 0.996 * (5 - (size - 5) / (size - 1))
        assert groups.dis.bincount(minlength=5).min() >= max(2, size // 20)
        assert published is None or groups.ncut_dis <= published
        cuts.append(groups.ncut_dis)
    assert max(cuts) - min(cuts) <= 0.005


@pytest.mark.parametrize("name", ["coco14", "voc2007"])
def test_both_solvers_see_the_same(name: str) -> None:
    dense, operator = (fitted_real(name, solver=solver) for solver in ("dense", "operator"))
    assert same_partition(dense.co_groups, operator.co_groups)
    for relation in RELATIONS:
        values = [grouping.eigenvalues(relation, 8) for grouping in (dense, operator)]
        torch.testing.assert_close(*values, rtol=0, atol=1e-10)
    if name == "coco14":
        expected = torch.tensor([0.9957, 1.0001, 1.0003, 1.0010, 1.0021, 1.0023, 1.0025], dtype=torch.float64)
        torch.testing.assert_close(dense.eigenvalues("dis", 8)[1:], expected, rtol=0, atol=1e-4)  # four digits


def test_eigenvalues_leave_isolated_labels_out() -> None:
    plus = np.zeros((10, 10))
    plus[:8, :8] = blocks(4, 4)
    for operator, form in zip(operators(plus, "co"), ("dense", "operator"), strict=True):
        values = eigenvalues(operator, 10, form=form)
        np.testing.assert_allclose(values, [0, 0, *[4 / 3] * 6], atol=1e-12)
    assert len(eigenvalues(AffinityOperator(np.zeros((3, 3)), "co"), 3)) == 0


@pytest.mark.parametrize("form", ["dense", "operator"])
@pytest.mark.parametrize(
    ("sizes", "count"),
    [((300, 150, 30, 15, 5), 5), ((300, 150, 30, 15, 5, 2), 5), ((40, 40, 40, 3, 2), 4), ((60, 30, 15, 5, 4, 2), 5)],
)
def test_components_are_not_cut_where_they_need_not_be(sizes: tuple[int, ...], count: int, form: str) -> None:
    for operator in operators(blocks(*sizes), "co"):
        groups, cut = partition(operator, count, form=form, min_group_size=sum(sizes) // (4 * count))
        assert cut == pytest.approx(0, abs=1e-12)
        assert len(set(groups)) == count


def test_of_very_many_labels_no_spectrum_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plus = blocks(20, 20, 20)
    operator = operators(plus, "dis")[1]
    monkeypatch.setattr(sys.modules[partition.__module__], "_MANY", 59)

    def no_spectrum(*_: object) -> None:
        pytest.fail("it was asked for")

    monkeypatch.setattr(sys.modules[partition.__module__], "_eigenpairs", no_spectrum)
    found = [partition(operator, 3, min_group_size=15, seed=seed) for seed in (0, 0, 1)]
    assert (found[0][0] == found[1][0]).all()
    for groups, cut in found:
        assert np.bincount(groups).min() >= 15
        assert cut <= Grouping(operator, np.arange(60) % 3, 3).cut  # of blocks that are dealt out evenly
        assert cut == pytest.approx(Grouping(operator, groups, 3).cut, abs=1e-12)


@pytest.mark.parametrize("few", [True, False])
def test_where_lanczos_does_not_converge_another_solver_does(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = operators(blocks(60, 60, 60) + 0.1 * draw_plus(180), "co")[1]
    expected, cut = partition(operator, 3, form="dense")
    values = eigenvalues(operator, 4, form="dense")
    asked = []

    def eigsh(*_: object, **options: int) -> None:
        asked.append(options["maxiter"])
        raise scipy.sparse.linalg.ArpackNoConvergence("No convergence", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr("scipy.sparse.linalg.eigsh", eigsh)
    if not few:
        monkeypatch.setattr(sys.modules[partition.__module__], "_FEW", 100)
    found = eigenvalues(operator, 4, form="operator")
    groups, cut_found = partition(operator, 3, form="operator")
    assert len(asked) == 2
    np.testing.assert_allclose(found, values, rtol=0, atol=0 if few else 1e-6)
    assert (groups == expected).all()
    assert cut_found == cut


def test_next_to_no_affinity_is_none() -> None:
    plus = blocks(6, 5) + 1e-12 * (1 - np.eye(11))
    for operator in operators(plus, "co"):
        groups, _ = partition(operator, 2)
        assert groups.tolist() == [0] * 6 + [1] * 5


def test_the_widest_gap_and_components_beyond_what_is_looked_at() -> None:
    assert eigengap(np.zeros(20)) == 20
    assert eigengap(np.array([0.0, 0.0, 0.0, 0.9, 1.0])) == 3
    for sizes, expected in (((6,) * 25, 20), ((20, 20, 2, 2, 2), 2)):
        operator = operators(blocks(*sizes), "co")[0]
        assert eigengap(eigenvalues(operator, 20, all_pieces=False)) == expected


# --- how much is tried ---


@pytest.mark.parametrize(
    ("relation", "few", "expected"),
    [("co", 100, 4), ("co", 30, 1), ("dis", 100, 1), ("dis", 30, 1)],
    ids=["few labels", "many labels", "few labels apart", "many labels apart"],
)
def test_candidates_of_a_restart(relation: str, few: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the documentation has it: twenty starts of k-means for "co", by five; one candidate where labels are many."""
    module = sys.modules[partition.__module__]
    seeds = []

    def counted(points: np.ndarray, count: int, seed: int) -> np.ndarray:
        seeds.append(seed)
        return kmeans(points, count, seed)

    monkeypatch.setattr(module, "kmeans", counted)
    monkeypatch.setattr(module, "_FEW", few)
    partition(operators(draw_plus(50), relation)[0], 3, restarts=3, form="dense")
    assert len(seeds) == len(set(seeds)) == 3 * expected


def test_repair_moves_no_more_than_is_lacking() -> None:
    grouping = Grouping(operators(blocks(6, 2), "co")[0], np.array([0, 0, 0, 0, 0, 0, 0, 1]), 2)
    grouping.repair(2)
    assert grouping.groups.tolist() == [0] * 6 + [1, 1]
    assert grouping.sizes.tolist() == [6, 2]
    before = Grouping(operators(draw_plus(40), "co")[0], np.arange(40) % 2, 3)
    before.repair(7)
    assert before.sizes.tolist()[2] == 7  # not one more, in whatever portions they came


@pytest.mark.parametrize("form", ["dense", "operator"])
def test_eigenvalues_are_never_below_zero(form: str) -> None:
    """A Laplacian has none; rounding has."""
    for sizes in [(4, 5, 6), (40, 50, 60), (7,) * 9]:
        for operator in operators(blocks(*sizes, inside=0.3), "co"):
            values = eigenvalues(operator, 2 * len(sizes), form=form)
            assert (values >= 0).all()
            assert (np.diff(values) >= 0).all()
            assert values[: len(sizes)] == pytest.approx(0, abs=1e-12)
            assert values[len(sizes) :].min() > 0.1


def test_refinement_may_leave_one_label_alone() -> None:
    plus = np.pad(blocks(4), (0, 1))
    plus[4, :4] = plus[:4, 4] = 0.05
    alone, kept = (Grouping(operators(plus, "co")[0], np.array([0, 0, 0, 1, 1]), 2) for _ in range(2))
    alone.refine()
    assert alone.groups.tolist() == [0, 0, 0, 0, 1]
    kept.refine(2)
    assert kept.sizes.min() == 2


def test_groups_without_labels_are_worse_than_any_cut() -> None:
    operator = operators(blocks(3, 3), "co")[0]
    lacking, bad = Grouping(operator, np.repeat([0, 1], 3), 3), Grouping(operator, np.array([0, 1, 2, 0, 1, 2]), 3)
    assert lacking.score == (1, 0.0)
    assert bad.score[0] == 0
    assert bad.cut > 1
    assert bad.score < lacking.score


@pytest.mark.parametrize("form", ["dense", "operator"])
def test_a_component_is_cut_where_it_falls_apart(form: str) -> None:
    """Of several components together the largest eigenvalues count: the second of one, here, and no other."""
    plus = blocks(12, 9, 15)
    plus[0, 12] = plus[12, 0] = plus[3, 15] = plus[15, 3] = 0.1  # one component of two parts, and one of one part
    for operator in operators(plus, "co"):
        groups, cut = partition(operator, 3, restarts=3, form=form)
        assert groups.tolist() == [0] * 12 + [1] * 9 + [2] * 15
        assert cut == pytest.approx(0.0, abs=0.02)


def test_k_means_starts_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """And four times that, as candidates: the twenty of the official code."""
    starts = []

    def counted(clusters: int, *, n_init: int, random_state: int) -> KMeans:
        starts.append(n_init)
        return KMeans(clusters, n_init=n_init, random_state=random_state)

    monkeypatch.setattr("sklearn.cluster.KMeans", counted)
    points = np.random.default_rng(0).normal(size=(40, 2))
    kmeans(points, 3, 0)
    monkeypatch.setattr(sys.modules[partition.__module__], "_FEW", 39)
    kmeans(points, 3, 0)
    assert starts == [5, 1]
