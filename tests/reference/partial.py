"""Treatments of unknown labels by their definitions, in Python floats. y is −1 where it is unknown.

A loss of an entry is a pair: its value, and its derivative to the logit.
"""

from __future__ import annotations

import math

from tests.reference import losses
from tests.reference.losses import sigmoid, softplus

Term = tuple[float, float]
Row = list[float]


def mix(*parts: tuple[float, Term]) -> Term:
    """A weighted sum of losses."""
    return sum(w * value for w, (value, _) in parts), sum(w * slope for w, (_, slope) in parts)


def positive(x: float) -> Term:
    """−log p."""
    return softplus(-x), -sigmoid(-x)


def negative(x: float) -> Term:
    """−log(1 − p)."""
    return softplus(x), sigmoid(x)


def focal_positive(x: float, gamma: float) -> Term:
    """−(1 − p)^γ log p."""
    p, q = sigmoid(x), sigmoid(-x)
    return q**gamma * softplus(-x), -(q**gamma) * (gamma * p * softplus(-x) + q)


def focal_negative(x: float, gamma: float) -> Term:
    """−p^γ log(1 − p)."""
    p, q = sigmoid(x), sigmoid(-x)
    return p**gamma * softplus(x), p**gamma * (gamma * q * softplus(x) + p)


def assume_negative(x: float, y: float, epsilon: float = 0.0) -> Term:
    """AN and AN-LS of Cole et al.; a label is what it says with probability 1 − ε/2."""
    y = max(y, 0.0)
    target = y * (1 - epsilon / 2) + (1 - y) * epsilon / 2
    return mix((target, positive(x)), (1 - target, negative(x)))


def weak_assume_negative(x: float, y: float, weight: float, epsilon: float = 0.0, trust: bool = False) -> Term:
    """WAN of Cole et al.: an assumed negative has the weight γ."""
    weight = 1.0 if trust and y >= 0 else weight
    y = max(y, 0.0)
    return mix((y, assume_negative(x, 1.0, epsilon)), ((1 - y) * weight, assume_negative(x, 0.0, epsilon)))


def partial_bce(row: Row, labels: Row, alpha: float, beta: float, gamma: float) -> list[Term]:
    """Eqs. 2 and 3 of Durand et al. for one sample."""
    known = [y >= 0 for y in labels]
    if not any(known):
        return [(0.0, 0.0)] * len(row)
    g = alpha * (sum(known) / len(row)) ** gamma + beta
    return [
        mix((g / len(row) * y, positive(x)), (g / len(row) * (1 - y), negative(x))) if y >= 0 else (0.0, 0.0)
        for x, y in zip(row, labels, strict=True)
    ]


def hill(x: float, y: float, lamb: float, margin: float, gamma: float, trust: bool = False) -> Term:
    """The Hill loss of Zhang et al."""
    p = sigmoid(x)
    absent = negative(x) if trust and y >= 0 else ((lamb - p) * p**2, (2 * lamb * p - 3 * p**2) * p * (1 - p))
    y = max(y, 0.0)
    return mix((y, focal_positive(x - margin, gamma)), (1 - y, absent))


def splc(
    x: float, y: float, tau: float, margin: float, gamma: float, correct: bool = True, trust: bool = False
) -> Term:
    """SPLC of Zhang et al. with the focal margin loss."""
    corrected = correct and sigmoid(x) > tau and (y < 0 or not trust)
    y = max(y, 0.0)
    absent = focal_positive(x, gamma) if corrected else focal_negative(x, gamma)
    return mix((y, focal_positive(x - margin, gamma)), (1 - y, absent))


def largest_unknown(rows: list[Row], labels: list[Row], count: int) -> set[tuple[int, int]]:
    """Places of the unknown entries with the largest logits; of equal ones the first."""
    places = [(i, j) for i, row in enumerate(labels) for j, y in enumerate(row) if y < 0]
    return set(sorted(places, key=lambda place: (-rows[place[0]][place[1]], place))[:count])


def partial_asymmetric(
    rows: list[Row],
    labels: list[Row],
    gammas: tuple[float, float, float],
    alphas: tuple[float, float, float],
    clip: float,
    prior: Row | None,
    threshold: float,
    topk: int,
    detached: bool = True,
) -> list[list[Term]]:
    """P-ASL of Ben-Baruch et al. with its selective treatment; (positive, negative, unknown) exponents and factors."""
    ignored = largest_unknown(rows, labels, topk * len(rows))
    if prior is not None:
        ignored |= {(i, j) for i, row in enumerate(labels) for j, y in enumerate(row) if y < 0 and prior[j] > threshold}
    slope = losses.asymmetric_gradient_detached if detached else losses.asymmetric_gradient

    def entry(i: int, j: int) -> Term:
        if (i, j) in ignored:
            return 0.0, 0.0
        p, y, other = sigmoid(rows[i][j]), labels[i][j], 2 if labels[i][j] < 0 else 1
        parts = [(p, 1.0, gammas[other], gammas[0], clip), (p, 0.0, gammas[other], gammas[0], clip)]
        y = max(y, 0.0)
        weights = (y * alphas[0], (1 - y) * alphas[other])
        return mix(*((w, (losses.asymmetric(*part), slope(*part))) for w, part in zip(weights, parts, strict=True)))

    return [[entry(i, j) for j in range(len(row))] for i, row in enumerate(rows)]


def large_loss(rows: list[Row], labels: list[Row], share: float, correct: bool) -> list[list[Term]]:
    """LL-R, or LL-Ct with ``correct``, of Kim et al."""
    modified = largest_unknown(rows, labels, math.ceil(share * sum(map(len, rows)) - 1e-6))

    def entry(i: int, j: int) -> Term:
        x = rows[i][j]
        if (i, j) in modified:
            return positive(x) if correct else (0.0, 0.0)
        return assume_negative(x, labels[i][j])

    return [[entry(i, j) for j in range(len(row))] for i, row in enumerate(rows)]


# What the authors' programs compute, step by step, with their eps at 0. Labels are 0 and 1, where nothing else is said.


def official_hill(x: float, y: int, lamb: float, margin: float, gamma: float) -> float:
    shifted, p = sigmoid(x - margin), sigmoid(x)
    base = (1 - shifted) * y + (1 - y)
    total = y * math.log(shifted) + (1 - y) * -(lamb - p) * p**2
    return -total * base**gamma


def official_splc(x: float, y: int, tau: float, margin: float, gamma: float, epoch: int, change_epoch: int) -> float:
    if y == 1:
        x = x - margin
    p = sigmoid(x)
    if epoch >= change_epoch and p > tau:
        y = 1
    base = (1 - p) * y + p * (1 - y)
    total = -y * softplus(-x) - (1 - y) * softplus(x)
    return -total * base**gamma


def official_weak(x: float, y: int, num_classes: int) -> float:
    p = sigmoid(x)
    return -math.log(p) if y == 1 else -math.log(1 - p) / (num_classes - 1)


def official_smoothed(x: float, y: int, ls_coef: float) -> float:
    p = sigmoid(x)
    of_label, of_other = (p, 1 - p) if y == 1 else (1 - p, p)
    return -(1 - ls_coef) * math.log(of_label) - ls_coef * math.log(of_other)


def official_selective(
    rows: list[Row],
    labels: list[Row],
    gammas: tuple[float, float, float],
    alphas: tuple[float, float, float],
    clip: float,
    prior: Row | None,
    threshold: float,
    topk: int,
) -> float:
    """Labels are 1, 0 and −1. The order among unknown labels is by the complement of p, clipped."""
    absence = [[min(1 - sigmoid(x) + clip, 1.0) for x in row] for row in rows]
    weight = [[1.0] * len(row) for row in rows]
    if prior is not None:
        weight = [[float(not (prior[j] > threshold and y == -1)) for j, y in enumerate(row)] for row in labels]
    unknown = [(absence[i][j], i, j) for i, row in enumerate(labels) for j, y in enumerate(row) if y == -1]
    for _, i, j in sorted(unknown)[: topk * len(rows)]:
        weight[i][j] = 0.0
    total = 0.0
    for i, row in enumerate(labels):
        for j, y in enumerate(row):
            p, kind = sigmoid(rows[i][j]), {1: 0, 0: 1, -1: 2}[int(y)]
            logarithm = math.log(p if y == 1 else absence[i][j])
            base = 1 - (p if y == 1 else absence[i][j])
            total -= alphas[kind] * logarithm * base ** gammas[kind] * weight[i][j]
    return total


def official_large_loss(rows: list[Row], labels: list[Row], share: float, scheme: str) -> float:
    """Unknown is 0, and the k-th largest loss of such a label is the threshold; share > 0."""
    number = len(rows) * len(rows[0])
    table = [
        [softplus(-x) if y == 1 else softplus(x) for x, y in zip(*pair, strict=True)]
        for pair in zip(rows, labels, strict=True)
    ]
    flipped = [
        [softplus(x) if y == 1 else softplus(-x) for x, y in zip(*pair, strict=True)]
        for pair in zip(rows, labels, strict=True)
    ]
    unobserved = [[loss * (y == 0) for loss, y in zip(*pair, strict=True)] for pair in zip(table, labels, strict=True)]
    threshold = sorted((loss for row in unobserved for loss in row), reverse=True)[math.ceil(number * share) - 1]
    total = 0.0
    for i, row in enumerate(unobserved):
        for j, loss in enumerate(row):
            total += table[i][j] if loss < threshold else (0.0 if scheme == "LL-R" else flipped[i][j])
    return total / number
