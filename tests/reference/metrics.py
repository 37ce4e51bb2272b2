"""Evaluation metrics as scalar loops: one class at a time, Python floats, read off the definitions.

Scores and targets are lists of rows; −1 is an unknown target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Rows = Sequence[Sequence[float]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def column(scores: Rows, targets: Rows, j: int) -> list[tuple[float, bool]]:
    """The known entries of class j: their scores and whether they are positive."""
    return [(row[j], target[j] == 1) for row, target in zip(scores, targets, strict=True) if target[j] >= 0]


def average_precision(entries: list[tuple[float, bool]]) -> float:
    """AP = Σ_i (R_i − R_{i−1}) P_i over the distinct scores t_i, descending, of one class."""
    positives = sum(positive for _, positive in entries)
    if positives == 0:
        return math.nan
    total, recall_before = 0.0, 0.0
    for t in sorted({score for score, _ in entries}, reverse=True):
        predicted = [positive for score, positive in entries if score >= t]
        precision = sum(predicted) / len(predicted)
        recall = sum(predicted) / positives
        total += (recall - recall_before) * precision
        recall_before = recall
    return total


def predict(
    scores: Rows,
    targets: Rows,
    num_labels: int,
    *,
    inputs: str,
    rule: str,
    thresholds: Sequence[float],
    top_k: int,
    prevalence: Sequence[float] | None,
) -> list[list[bool]]:
    """Whether each entry is predicted; unknown entries never are."""
    predicted = []
    for score, target in zip(scores, targets, strict=True):
        known = [j for j in range(num_labels) if target[j] >= 0]
        best = sorted(known, key=lambda j: (-score[j], j))[:top_k]
        row = []
        for j in range(num_labels):
            p = sigmoid(score[j]) if inputs == "logits" else score[j]
            if j not in known:
                row.append(False)
            elif rule == "threshold":
                row.append(p > thresholds[j])
            elif rule == "topk":
                row.append(j in best)
            elif rule == "topk_threshold":
                row.append(j in best and p > thresholds[j])
            else:
                assert rule == "prevalence"
                assert prevalence is not None
                ranked = sorted((s for s, _ in column(scores, targets, j)), reverse=True)
                m = math.floor(prevalence[j] * len(ranked))
                row.append(m > 0 and score[j] >= ranked[m - 1])
        predicted.append(row)
    return predicted


def multilabel_scores(
    scores: Rows,
    targets: Rows,
    num_labels: int,
    *,
    inputs: str = "probabilities",
    rule: str = "threshold",
    thresholds: Sequence[float] | None = None,
    top_k: int = 3,
    prevalence: Sequence[float] | None = None,
    empty: str = "skip",
) -> dict[str, float]:
    predicted = predict(
        scores,
        targets,
        num_labels,
        inputs=inputs,
        rule=rule,
        thresholds=[0.5] * num_labels if thresholds is None else thresholds,
        top_k=top_k,
        prevalence=prevalence,
    )
    precisions, recalls, f1s, average_precisions = [], [], [], []
    all_tp = all_pp = all_ap = without_positives = without_predictions = 0
    for j in range(num_labels):
        tp = pp = ap = 0
        for row, target in zip(predicted, targets, strict=True):
            tp += row[j] and target[j] == 1
            pp += row[j]
            ap += target[j] == 1
        all_tp, all_pp, all_ap = all_tp + tp, all_pp + pp, all_ap + ap
        without_positives += ap == 0
        without_predictions += pp == 0
        if ap > 0:
            average_precisions.append(average_precision(column(scores, targets, j)))
        if empty == "skip" and ap == 0:
            continue
        if pp > 0 or empty != "nan":
            precisions.append(tp / pp if pp > 0 else 0.0)
        if ap > 0 or empty != "nan":
            recalls.append(tp / ap if ap > 0 else 0.0)
        if pp + ap > 0 or empty != "nan":
            f1s.append(2 * tp / (pp + ap) if pp + ap > 0 else 0.0)

    undefined = math.nan if empty == "nan" else 0.0

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values) if values else undefined

    def harmonic(a: float, b: float) -> float:
        return 0.0 if math.isnan(a) or math.isnan(b) or a + b == 0 else 2 * a * b / (a + b)

    op = all_tp / all_pp if all_pp > 0 else undefined
    or_ = all_tp / all_ap if all_ap > 0 else undefined
    cp, cr = mean(precisions), mean(recalls)
    return {
        "mAP": mean(average_precisions),
        "OP": op,
        "OR": or_,
        "OF1": harmonic(op, or_),
        "CP": cp,
        "CR": cr,
        "CF1": harmonic(cp, cr),
        "CF1_mean": mean(f1s),
        "classes_without_positives": without_positives,
        "classes_without_predictions": without_predictions,
    }


def f1_above(entries: list[tuple[float, bool]], threshold: float) -> Fraction:
    """F1 of the rule score > threshold for one class, as an exact fraction; 0/0 is 0."""
    tp = sum(positive for score, positive in entries if score > threshold)
    pp = sum(score > threshold for score, _ in entries)
    ap = sum(positive for _, positive in entries)
    return Fraction(2 * tp, pp + ap) if pp + ap > 0 else Fraction(0)


def best_threshold(entries: list[tuple[float, bool]]) -> float:
    """Of the midpoints between distinct scores, and one below all, the highest with the largest F1."""
    if not any(positive for _, positive in entries):
        return 0.5
    distinct = sorted({score for score, _ in entries}, reverse=True)
    best, chosen = Fraction(-1), math.nan
    for high, low in zip(distinct, [*distinct[1:], None], strict=True):
        if low is None:
            threshold = high / 2 if high > 0 else 2 * high - 1
        else:
            threshold = low + (high - low) / 2
            threshold = threshold if threshold < high else low
        if f1_above(entries, threshold) > best:
            best, chosen = f1_above(entries, threshold), threshold
    return chosen
