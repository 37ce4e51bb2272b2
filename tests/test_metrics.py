from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from mlcorr.metrics import average_precision, best_thresholds, multilabel_scores
from tests.reference import metrics as reference

RULES = ("threshold", "topk", "topk_threshold", "prevalence")
EMPTY = ("skip", "zero", "nan")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TOLERANCE = 1e-12

# Eighths: they tie often, and every dtype holds them exactly, so that all dtypes must give the same answer.
GRID = [i / 8 for i in range(9)]
grid_scores = st.sampled_from(GRID)
any_scores = st.floats(0, 1)
either = st.sampled_from([grid_scores, any_scores])
shapes = st.tuples(st.integers(0, 9), st.integers(1, 4))
few = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw, elements=either, labels=(-1, 0, 1), min_rows=0):
    rows, classes = draw(shapes.filter(lambda shape: shape[0] >= min_rows))
    values = draw(elements)
    scores = draw(hnp.arrays(np.float64, (rows, classes), elements=values))
    targets = draw(hnp.arrays(np.int64, (rows, classes), elements=st.sampled_from(labels)))
    return torch.from_numpy(scores), torch.from_numpy(targets)


def assert_same(actual: dict[str, float], expected: dict[str, float]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert type(actual[name]) is float
        assert actual[name] == pytest.approx(value, rel=0, abs=TOLERANCE, nan_ok=True), name


def entries_of(scores: torch.Tensor, targets: torch.Tensor, j: int) -> list[tuple[float, bool]]:
    return reference.column(scores.double().tolist(), targets.tolist(), j)


# --- multilabel_scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("rule", RULES)
@few
@given(data=st.data())
def test_scores_equal_the_counting_loop(rule, empty, data):
    scores, targets = data.draw(problems())
    classes = scores.shape[1]
    thresholds = data.draw(st.one_of(grid_scores, st.lists(grid_scores, min_size=classes, max_size=classes)))
    prevalence = data.draw(st.lists(st.one_of(grid_scores, any_scores), min_size=classes, max_size=classes))
    top_k = data.draw(st.integers(1, 5))
    actual = multilabel_scores(
        scores,
        targets,
        rule=rule,
        threshold=torch.tensor(thresholds, dtype=torch.float64) if isinstance(thresholds, list) else thresholds,
        top_k=top_k,
        prevalence=torch.tensor(prevalence, dtype=torch.float64),
        empty=empty,
    )
    expected = reference.multilabel_scores(
        scores.tolist(),
        targets.tolist(),
        classes,
        rule=rule,
        thresholds=thresholds if isinstance(thresholds, list) else [thresholds] * classes,
        top_k=top_k,
        prevalence=prevalence,
        empty=empty,
    )
    assert_same(actual, expected)


# sigmoids of these, but for 0, are far from the thresholds below: no rounding of the sigmoid can matter
LOGITS = st.sampled_from([-6.0, -3.0, -1.5, -0.75, 0.0, 0.25, 1.0, 2.5])


@pytest.mark.parametrize("rule", RULES)
@few
@given(data=st.data())
def test_logits_equal_the_counting_loop(rule, data):
    scores, targets = data.draw(problems(st.just(LOGITS)))
    classes = scores.shape[1]
    threshold = data.draw(st.sampled_from([0.125, 0.5, 0.8]))
    prevalence = [0.5] * classes
    actual = multilabel_scores(
        scores, targets, inputs="logits", rule=rule, threshold=threshold, prevalence=torch.tensor(prevalence)
    )
    expected = reference.multilabel_scores(
        scores.tolist(),
        targets.tolist(),
        classes,
        inputs="logits",
        rule=rule,
        thresholds=[threshold] * classes,
        prevalence=prevalence,
    )
    assert_same(actual, expected)


@pytest.mark.parametrize("rule", RULES)
@few
@given(problem=problems(st.just(grid_scores)))
def test_every_dtype_and_numpy_give_the_same_answer(rule, problem):
    scores, targets = problem
    prevalence = torch.full(scores.shape[1:], 0.5)
    expected = multilabel_scores(scores, targets, rule=rule, threshold=0.375, prevalence=prevalence)
    for dtype in DTYPES:
        threshold = torch.full(scores.shape[1:], 0.375, dtype=dtype)
        half = multilabel_scores(
            scores.to(dtype), targets.to(dtype), rule=rule, threshold=threshold, prevalence=prevalence.to(dtype)
        )
        assert_same(half, expected)
    for dtype in (torch.int8, torch.int32):
        assert_same(
            multilabel_scores(scores, targets.to(dtype), rule=rule, threshold=0.375, prevalence=prevalence), expected
        )
    arrays = multilabel_scores(
        scores.numpy().astype(">f4"), targets.numpy(), rule=rule, threshold=0.375, prevalence=prevalence.numpy()
    )
    assert_same(arrays, expected)
    assert_same(multilabel_scores(scores.numpy(), targets, rule=rule, threshold=0.375, prevalence=prevalence), expected)


@few
@given(problem=problems(labels=(0, 1)))
def test_bool_and_unsigned_targets(problem):
    scores, targets = problem
    for dtype in (torch.bool, torch.uint8):
        assert_same(multilabel_scores(scores, targets.to(dtype)), multilabel_scores(scores, targets))


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("rule", RULES)
@few
@given(data=st.data())
def test_unknown_entries_do_not_matter_whatever_their_score(rule, empty, data):
    scores, targets = data.draw(problems())
    noise = data.draw(hnp.arrays(np.float64, tuple(scores.shape), elements=st.floats(width=64)))
    other = torch.where(targets < 0, torch.from_numpy(noise), scores)
    options = {"rule": rule, "empty": empty, "prevalence": torch.full(scores.shape[1:], 0.4), "top_k": 2}
    assert_same(multilabel_scores(other, targets, **options), multilabel_scores(scores, targets, **options))
    torch.testing.assert_close(
        average_precision(other, targets), average_precision(scores, targets), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(best_thresholds(other, targets), best_thresholds(scores, targets), rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
@few
@given(data=st.data())
def test_the_order_of_rows_does_not_matter(rule, data):
    scores, targets = data.draw(problems())
    order = data.draw(st.permutations(range(scores.shape[0])))
    options = {"rule": rule, "prevalence": torch.full(scores.shape[1:], 0.4), "top_k": 2}
    assert multilabel_scores(scores[order], targets[order], **options) == multilabel_scores(scores, targets, **options)
    assert torch.equal(best_thresholds(scores[order], targets[order]), best_thresholds(scores, targets))


@pytest.mark.parametrize("rule", RULES)
@few
@given(data=st.data())
def test_the_order_of_classes_does_not_matter(rule, data):
    scores, targets = data.draw(problems(st.just(grid_scores)))
    scores = scores + 0.01 * torch.arange(scores.shape[1])  # no ties in a row, where label indices decide
    order = data.draw(st.permutations(range(scores.shape[1])))
    prevalence = torch.tensor([0.1, 0.4, 0.7, 1.0])[: scores.shape[1]]
    assert_same(
        multilabel_scores(scores[:, order], targets[:, order], rule=rule, prevalence=prevalence[order], top_k=2),
        multilabel_scores(scores, targets, rule=rule, prevalence=prevalence, top_k=2),
    )
    assert torch.equal(best_thresholds(scores[:, order], targets[:, order]), best_thresholds(scores, targets)[order])


@few
@given(problem=problems(labels=(0, 1), min_rows=1).filter(lambda problem: problem[0].shape[1] > 1))
def test_overall_and_per_class_scores_equal_sklearn(problem):
    scores, targets = problem
    actual = multilabel_scores(scores, targets, empty="zero")
    predicted = (scores > 0.5).numpy()
    micro = precision_recall_fscore_support(targets.numpy(), predicted, average="micro", zero_division=0.0)
    macro = precision_recall_fscore_support(targets.numpy(), predicted, average="macro", zero_division=0.0)
    assert [actual[name] for name in ("OP", "OR", "OF1")] == pytest.approx(micro[:3], rel=0, abs=TOLERANCE)
    assert [actual[name] for name in ("CP", "CR", "CF1_mean")] == pytest.approx(macro[:3], rel=0, abs=TOLERANCE)


def test_harmonic_cf1_is_not_the_mean_of_f1():
    scores = torch.tensor([[0.9, 0.9], [0.1, 0.9], [0.1, 0.9]])
    targets = torch.tensor([[1, 1], [1, 0], [1, 0]])
    result = multilabel_scores(scores, targets)
    assert result["CP"] == pytest.approx((1 + 1 / 3) / 2, abs=TOLERANCE)
    assert result["CR"] == pytest.approx((1 / 3 + 1) / 2, abs=TOLERANCE)
    assert result["CF1"] == pytest.approx(2 / 3, abs=TOLERANCE)
    assert result["CF1_mean"] == pytest.approx(1 / 2, abs=TOLERANCE)


def test_empty_classes_by_hand():
    # class 0: precision 1/2, recall 1; class 1: no positive, one prediction; class 2: no prediction; class 3: neither
    scores = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.8, 0.1, 0.1, 0.1]])
    targets = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])
    by_mode = {empty: multilabel_scores(scores, targets, empty=empty) for empty in EMPTY}
    picked = {
        empty: tuple(round(result[name], 12) for name in ("CP", "CR", "CF1_mean", "mAP"))
        for empty, result in by_mode.items()
    }
    assert picked["skip"] == (1 / 4, 1 / 2, round(1 / 3, 12), 3 / 4)
    assert picked["zero"] == (1 / 8, 1 / 4, round(1 / 6, 12), 3 / 4)
    assert picked["nan"] == (1 / 4, 1 / 2, round(2 / 9, 12), 3 / 4)
    for result in by_mode.values():
        assert result["classes_without_positives"] == 2
        assert result["classes_without_predictions"] == 2
        assert (result["OP"], result["OR"]) == (pytest.approx(1 / 3), 1 / 2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("shape", [(0, 3), (0, 1), (4, 2), (2, 0), (0, 0)])
def test_nothing_known(shape, empty, rule):
    scores = torch.full(shape, 0.9)
    targets = torch.full(shape, -1)
    prevalence = torch.full(shape[1:], 0.5)
    result = multilabel_scores(scores, targets, rule=rule, empty=empty, prevalence=prevalence)
    undefined = math.nan if empty == "nan" else 0.0
    expected = dict.fromkeys(result, undefined) | {"OF1": 0.0, "CF1": 0.0}
    expected |= dict.fromkeys(("classes_without_positives", "classes_without_predictions"), shape[1])
    assert_same(result, expected)
    assert average_precision(scores, targets).isnan().all()
    assert average_precision(scores, targets).shape == shape[1:]
    assert torch.equal(best_thresholds(scores, targets), torch.full(shape[1:], 0.5))


def predictions(scores, rule, targets=None, **options) -> list[list[int]]:
    """What a rule predicts: each known entry in turn is the only positive, so that OR is 1 if it is predicted."""
    scores = torch.as_tensor(scores)
    base = torch.zeros(scores.shape) if targets is None else targets.clamp(max=0)
    found = []
    for i in range(scores.shape[0]):
        row = []
        for j in range(scores.shape[1]):
            if base[i, j] < 0:
                row.append(0)
                continue
            only = base.clone()
            only[i, j] = 1
            row.append(int(multilabel_scores(scores, only, rule=rule, **options)["OR"]))
        found.append(row)
    return found


def test_threshold_is_strict_and_per_class():
    scores = [[0.5, 0.5], [0.625, 0.25]]
    assert predictions(scores, "threshold") == [[0, 0], [1, 0]]
    assert predictions(scores, "threshold", threshold=torch.tensor([0.625, 0.25])) == [[0, 1], [0, 0]]
    assert predictions([[0.0, 1.0]], "threshold", threshold=1) == [[0, 0]]
    assert predictions([[0.0, 1.0]], "threshold", threshold=0) == [[0, 1]]
    # a float is rounded to the scores' precision, as in `scores > 0.1`
    assert predictions(torch.tensor([[0.1]]), "threshold", threshold=0.1) == [[0]]


def test_top_k_breaks_ties_by_label_index_among_known_labels():
    assert predictions([[0.25, 0.5, 0.5, 0.5]], "topk", top_k=2) == [[0, 1, 1, 0]]
    assert predictions([[0.25, 0.5, 0.5, 0.5]], "topk_threshold", top_k=2) == [[0, 0, 0, 0]]
    assert predictions([[0.25, 0.75, 0.5]], "topk", top_k=7) == [[1, 1, 1]]
    assert predictions([[-0.0, 0.0]], "topk", top_k=1) == [[1, 0]]
    known = torch.tensor([[-1, 0, 0, 0]])
    assert predictions([[0.9, 0.25, 0.125, 0.25]], "topk", targets=known, top_k=1) == [[0, 1, 0, 0]]
    # a known score of −inf still comes before unknown labels
    assert predictions([[-math.inf, -math.inf]], "topk", targets=torch.tensor([[-1, 0]]), top_k=1) == [[0, 1]]


def test_top_k_with_many_ties_is_stable():
    scores = torch.zeros(1, 200)
    result = multilabel_scores(scores, (torch.arange(200) < 30).long()[None], rule="topk", top_k=30)
    assert (result["OP"], result["OR"]) == (1.0, 1.0)


def test_prevalence_rule_by_hand():
    scores = [[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.4, 0.5]]
    quarters = {0.0: [0, 0, 0, 0], 0.24: [0, 0, 0, 0], 0.25: [0, 0, 0, 1], 0.74: [0, 0, 1, 1], 1.0: [1, 1, 1, 1]}
    for frequency, expected in quarters.items():
        found = predictions(scores, "prevalence", prevalence=torch.tensor([frequency, frequency]))
        assert [row[0] for row in found] == expected
        # a constant column is one tie: all or nothing
        assert [row[1] for row in found] == [int(any(expected))] * 4
    # m_j counts known rows only: floor(0.5 * 3) = 1
    known = torch.tensor([[0, 0], [0, 0], [0, 0], [-1, 0]])
    found = predictions(scores, "prevalence", targets=known, prevalence=torch.tensor([0.5, 0.0]))
    assert [row[0] for row in found] == [0, 0, 1, 0]


def test_saturated_logits_do_not_tie():
    logits = torch.tensor([[50.0, 40.0, 60.0], [45.0, 60.0, 70.0], [90.0, 70.0, 80.0]])
    assert (logits.sigmoid() == 1).all()
    targets = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    assert multilabel_scores(logits, targets, inputs="logits")["mAP"] == 1.0
    assert predictions(logits, "topk", inputs="logits", top_k=1) == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert predictions(logits, "prevalence", inputs="logits", prevalence=third) == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_nan_scores_rank_last_and_are_not_predicted():
    scores = torch.tensor([[math.nan], [0.7], [0.2]])
    targets = torch.tensor([[0], [1], [1]])
    clean = torch.tensor([[-math.inf], [0.7], [0.2]])
    assert multilabel_scores(scores, targets) == multilabel_scores(clean, targets)
    assert multilabel_scores(scores, targets)["mAP"] == 1.0
    assert multilabel_scores(scores, targets, inputs="logits")["OP"] == 1.0


def test_arguments_are_left_as_they_were():
    scores = torch.tensor([[0.25, -0.0], [math.nan, 0.5]], requires_grad=True)
    targets = torch.tensor([[1, -1], [0, 1]])
    before = scores.detach().clone(), targets.clone()
    for rule in RULES:
        multilabel_scores(scores, targets, rule=rule, prevalence=torch.ones(2))
    assert not average_precision(scores, targets).requires_grad
    assert not best_thresholds(scores, targets).requires_grad
    torch.testing.assert_close(scores.detach(), before[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(targets, before[1])


def test_read_only_and_reversed_arrays():
    scores = np.array([[0.9, 0.2], [0.1, 0.7], [0.6, 0.4]])
    scores.flags.writeable = False
    targets = np.array([[True, False], [False, True], [True, True]])
    expected = multilabel_scores(torch.tensor(scores.tolist()).double(), torch.tensor(targets.tolist()))
    assert multilabel_scores(scores, targets) == expected
    assert multilabel_scores(scores[::-1], targets[::-1]) == expected


# --- average_precision ---------------------------------------------------------------------------------------------


@few
@given(problem=problems())
def test_average_precision_equals_reference_and_sklearn(problem):
    scores, targets = problem
    actual = average_precision(scores, targets)
    assert actual.dtype == torch.float64
    for j in range(scores.shape[1]):
        entries = entries_of(scores, targets, j)
        assert float(actual[j]) == pytest.approx(
            reference.average_precision(entries), rel=0, abs=TOLERANCE, nan_ok=True
        )
        if any(positive for _, positive in entries):
            theirs = average_precision_score([positive for _, positive in entries], [score for score, _ in entries])
            assert float(actual[j]) == pytest.approx(theirs, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_precision_of_many_rows_equals_sklearn(dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(500, 6, generator=generator).to(dtype)  # half precision ties often
    targets = torch.randint(-1, 2, scores.shape, generator=generator)
    actual = average_precision(scores, targets)
    for j in range(6):
        known = targets[:, j] >= 0
        theirs = average_precision_score(targets[known, j].numpy(), scores[known, j].double().numpy())
        assert float(actual[j]) == pytest.approx(theirs, rel=0, abs=TOLERANCE)


@few
@given(problem=problems())
def test_average_precision_is_blind_to_increasing_maps_and_to_the_order_of_rows(problem):
    scores, targets = problem
    grid = (scores * 8).round()
    expected = average_precision(grid, targets)
    for other in (grid * 3 - 7, grid**3, grid.exp()):
        torch.testing.assert_close(average_precision(other, targets), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        average_precision(grid.flip(0), targets.flip(0)), expected, rtol=0, atol=0, equal_nan=True
    )


def test_average_precision_of_a_constant_column_is_its_frequency():
    scores = torch.full((8, 1), 0.3)
    targets = (torch.arange(8) < 3).long()[:, None]
    assert average_precision(scores, targets).tolist() == [3 / 8]
    assert average_precision(torch.full((8, 1), -math.inf), targets).tolist() == [3 / 8]


# --- best_thresholds -----------------------------------------------------------------------------------------------


@few
@given(problem=problems())
def test_best_thresholds_equal_the_reference(problem):
    scores, targets = problem
    actual = best_thresholds(scores, targets)
    for j in range(scores.shape[1]):
        assert float(actual[j]) == reference.best_threshold(entries_of(scores, targets, j))


def best_f1(entries: list[tuple[float, bool]]) -> Fraction:
    """The largest F1 of any strict threshold: the scores themselves and one below them all decide."""
    return max(reference.f1_above(entries, t) for t in [-math.inf, *(score for score, _ in entries)])


@pytest.mark.parametrize("inputs", ["probabilities", "logits"])
@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(data=st.data())
def test_thresholds_realise_the_best_f1_in_the_dtype_of_the_scores(dtype, inputs, data):
    # a handful of neighbouring floats, where the midpoint cannot be represented, beside the usual scores
    scores, targets = data.draw(problems())
    scores = scores.to(dtype)
    if data.draw(st.booleans()):
        ulp = torch.finfo(dtype).eps / 2
        steps = torch.from_numpy(data.draw(hnp.arrays(np.int64, tuple(scores.shape), elements=st.integers(0, 4))))
        scores = (0.5 + steps * ulp).to(dtype)
    if inputs == "logits":
        scores = (scores - 0.5) * 40
        wide = scores if dtype == torch.float64 else scores.float()
        compared = wide.sigmoid()
    else:
        compared = scores
    thresholds = best_thresholds(scores, targets, inputs=inputs)
    assert thresholds.dtype == compared.dtype
    predicted = compared > thresholds
    for j in range(scores.shape[1]):
        entries = entries_of(compared, targets, j)
        realised = [
            (float(hit), positive)
            for hit, (_, positive) in zip(predicted[targets[:, j] >= 0, j].tolist(), entries, strict=True)
        ]
        if any(positive for _, positive in entries):
            assert reference.f1_above(realised, 0.5) == best_f1(entries)
        else:
            assert float(thresholds[j]) == 0.5
    # and so does multilabel_scores
    if scores.shape[0]:
        mine = multilabel_scores(scores, targets, inputs=inputs, threshold=thresholds)["CF1_mean"]
        best = [best_f1(entries_of(compared, targets, j)) for j in range(scores.shape[1])]
        with_positives = [
            f1 for f1, any_positive in zip(best, (targets == 1).any(0).tolist(), strict=True) if any_positive
        ]
        expected = float(sum(with_positives) / len(with_positives)) if with_positives else 0.0
        assert mine == pytest.approx(expected, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_best_thresholds_by_hand(dtype):
    scores = torch.tensor([[0.75, 0.5, 0.0, 0.5], [0.5, 0.25, 0.0, 0.25], [0.25, 0.125, 0.0, 0.75]], dtype=dtype)
    targets = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, -1]])
    # midway; half the lowest score where all are predicted; below 0 where only that predicts 0; no positive
    assert best_thresholds(scores, targets).tolist() == [0.625, 0.0625, -1.0, 0.5]


def test_of_equal_f1_the_highest_threshold():
    # {best} has F1 2·1/(1 + 2), all four 2·2/(4 + 2): both 2/3
    scores = torch.tensor([[0.75], [0.5], [0.25], [0.125]])
    targets = torch.tensor([[1], [0], [0], [1]])
    assert best_thresholds(scores, targets).tolist() == [0.625]


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_neighbouring_floats_the_threshold_is_the_lower(dtype):
    low = torch.tensor(0.5, dtype=dtype)
    for _ in range(4):
        # float16 and bfloat16 have eight bits or more between 0.5 and 1, so eps/2 is one step there
        high = low + torch.finfo(dtype).eps / 2
        assert high > low
        found = best_thresholds(torch.stack([high, low])[:, None], torch.tensor([[1], [0]]))
        assert found.dtype == dtype
        assert high > found.item() >= low
        low = high


@pytest.mark.parametrize("extreme", [math.inf, -math.inf, -3.0, math.nan])
def test_scores_outside_the_unit_interval(extreme):
    scores = torch.tensor([[extreme], [extreme]])
    found = best_thresholds(scores, torch.tensor([[1], [1]]))
    assert found.isfinite().all()
    if extreme > -math.inf:
        assert (scores > found).all()
    else:
        assert found.tolist() == [0.5]


# --- edges ---------------------------------------------------------------------------------------------------------

GOOD = torch.full((4, 3), 0.5), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("scores", "targets", "options", "error", "message"),
    [
        ([[0.5]], GOOD[1], {}, TypeError, "scores: expected a torch.Tensor or numpy.ndarray, got list"),
        (GOOD[0], [[1]], {}, TypeError, "targets: expected a torch.Tensor or numpy.ndarray, got list"),
        (GOOD[1].long(), GOOD[1], {}, TypeError, "scores: expected a floating-point tensor, got torch.int64"),
        (GOOD[0] + 0j, GOOD[1], {}, TypeError, "scores: expected a floating-point tensor, got torch.complex64"),
        (np.array([["a"]]), GOOD[1], {}, TypeError, "scores: expected an array of a bool, integer or float dtype"),
        (GOOD[0], GOOD[1] + 0j, {}, TypeError, "targets: expected a bool, integer or floating-point tensor"),
        (GOOD[0][0], GOOD[1][0], {}, ValueError, r"scores: expected shape \(N, C\), got \(3,\)"),
        (GOOD[0][None], GOOD[1][None], {}, ValueError, r"scores: expected shape \(N, C\), got \(1, 4, 3\)"),
        (GOOD[0], GOOD[1][:1], {}, ValueError, r"targets: expected the shape of scores, \(4, 3\), got \(1, 3\)"),
        (GOOD[0], GOOD[1].to("meta"), {}, ValueError, "targets: expected the device of scores, cpu, got meta"),
        (*GOOD, {"inputs": "logit"}, ValueError, "inputs: expected one of 'probabilities', 'logits', got 'logit'"),
    ],
)
def test_wrong_scores_and_targets(scores, targets, options, error, message):
    functions = [multilabel_scores, best_thresholds] + ([] if options else [average_precision])
    for function in functions:
        with pytest.raises(error, match=message):
            function(scores, targets, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rule": "top"}, ValueError, "rule: expected one of 'threshold', 'topk', .* got 'top'"),
        ({"empty": "drop"}, ValueError, "empty: expected one of 'skip', 'zero', 'nan', got 'drop'"),
        ({"threshold": 1.5}, ValueError, "threshold: expected a .*number .*, got 1.5"),
        ({"threshold": math.nan}, ValueError, "threshold: expected a .*number .*, got nan"),
        ({"threshold": "0.5"}, TypeError, "threshold: expected a number, got '0.5' of type str"),
        ({"threshold": [0.5, 0.5, 0.5]}, TypeError, "threshold: expected a number, got list"),
        ({"threshold": torch.ones(2)}, ValueError, r"threshold: expected shape \(3,\), one per class, got \(2,\)"),
        ({"threshold": torch.tensor(0.5)}, ValueError, r"threshold: expected shape \(3,\), one per class, got \(\)"),
        ({"threshold": torch.ones(3).long()}, TypeError, "threshold: expected a floating-point tensor"),
        ({"top_k": 0}, ValueError, "top_k: expected an integer >= 1, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k: expected an integer, got 2.0 of type float"),
        ({"top_k": True}, TypeError, "top_k: expected an integer, got True of type bool"),
        ({"rule": "prevalence"}, ValueError, r"prevalence: expected a \(3,\) tensor with rule='prevalence', got None"),
        ({"prevalence": torch.ones(1)}, ValueError, r"prevalence: expected shape \(3,\), one per class, got \(1,\)"),
        ({"prevalence": 0.5}, TypeError, "prevalence: expected a torch.Tensor or numpy.ndarray, got float"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        multilabel_scores(*GOOD, **options)


def test_numpy_integers_are_integers():
    assert multilabel_scores(*GOOD, rule="topk", top_k=np.int64(2)) == multilabel_scores(*GOOD, rule="topk", top_k=2)


def test_import_needs_neither_sklearn_nor_scipy():
    code = "import sys, mlcorr.metrics; sys.exit(bool({'sklearn', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_equals_cpu(dtype, rule):
    generator = torch.Generator().manual_seed(1)
    scores = (torch.randint(0, 9, (300, 20), generator=generator) / 8).to(dtype)
    targets = torch.randint(-1, 2, scores.shape, generator=generator)
    options = {"rule": rule, "prevalence": torch.rand(20, generator=generator), "threshold": torch.full((20,), 0.375)}
    assert multilabel_scores(scores.cuda(), targets.cuda(), **options) == multilabel_scores(scores, targets, **options)
    assert multilabel_scores(scores.cuda(), targets.numpy(), **options) == multilabel_scores(scores, targets, **options)
    assert torch.equal(average_precision(scores.cuda(), targets.cuda()), average_precision(scores, targets))
    found = best_thresholds(scores.cuda(), targets.cuda())
    assert found.is_cuda
    assert torch.equal(found.cpu(), best_thresholds(scores, targets))
