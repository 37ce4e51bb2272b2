"""The losses of logits with 120 digits, by their definitions, and their derivatives by differences of 1e-40."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext

ZERO, ONE = Decimal(0), Decimal(1)
Entry = Callable[[Decimal, Decimal, float], Decimal]  # logit, the same where it is held constant, target
Rows = list[list[Decimal]]
_DIGITS = Context(prec=120)
_STEP = Decimal("1e-40")


def log_sigmoid(x: Decimal) -> Decimal:
    return min(x, ZERO) - (ONE + (-abs(x)).exp()).ln()


def sigmoid(x: Decimal) -> Decimal:
    return log_sigmoid(x).exp()


def cross_entropy(x: Decimal, y: float, smoothing: float = 0.0) -> Decimal:
    y = (1 - Decimal(smoothing)) * Decimal(y) + Decimal(smoothing) / 2
    return -y * log_sigmoid(x) - (1 - y) * log_sigmoid(-x)


def asymmetric(held: bool) -> Entry:
    """ASL's entry with its defaults, the focusing factors held constant or not."""

    def entry(x: Decimal, constant: Decimal, y: float) -> Decimal:
        of_factors = constant if held else x
        clip = Decimal("0.05")
        if y == 1:
            return -sigmoid(-of_factors) * log_sigmoid(x)
        above = sigmoid(x) > clip and y == 0
        return -((sigmoid(of_factors) - clip) ** 4) * (sigmoid(-x) + clip).ln() if above else ZERO

    return entry


def known_cross_entropy(x: Decimal, _: Decimal, y: float) -> Decimal:
    return cross_entropy(x, y) if y >= 0 else ZERO


def assume_negative(x: Decimal, _: Decimal, y: float) -> Decimal:
    return cross_entropy(x, max(y, 0.0))


def smoothed_assume_negative(x: Decimal, _: Decimal, y: float) -> Decimal:
    return cross_entropy(x, max(y, 0.0), 0.1)


def weak_assume_negative(weight: float) -> Entry:
    return lambda x, _, y: cross_entropy(x, 1.0) if y == 1 else Decimal(weight) * cross_entropy(x, 0.0)


def hill(x: Decimal, _: Decimal, y: float) -> Decimal:
    if y == 1:
        return -(sigmoid(ONE - x) ** 2) * log_sigmoid(x - ONE)
    return (Decimal("1.5") - sigmoid(x)) * sigmoid(x) ** 2


def splc(x: Decimal, constant: Decimal, y: float) -> Decimal:
    corrected = sigmoid(constant) > Decimal("0.6")
    z = x - ONE if y == 1 else x if corrected else -x
    return -(sigmoid(-z) ** 2) * log_sigmoid(z)


def divergence(student: Decimal, teacher: Decimal, temperature: int = 1) -> Decimal:
    """MLD's entry: T²·KL(Bernoulli(σ(t/T)) ‖ Bernoulli(σ(s/T)))."""
    s, t = student / temperature, teacher / temperature
    parts = (sigmoid(z) * (log_sigmoid(z) - log_sigmoid(w)) for z, w in ((t, s), (-t, -s)))
    return temperature**2 * sum(parts, ZERO)


def slope(function: Callable[[Decimal], Decimal], x: Decimal) -> Decimal:
    """Return the derivative at x."""
    step = max(ONE, abs(x)) * _STEP
    return (function(x + step) - function(x - step)) / (2 * step)


def dependency(student: Rows, teacher: Rows, orders: Sequence[int] = (2, 3, 4)) -> Decimal:
    """Return both levels of the n-order loss, for a delta that no difference reaches."""
    s, t = ([[sigmoid(x) for x in row] for row in rows] for rows in (student, teacher))
    labels, rows = range(len(s[0])), range(len(s))

    def difference(i: int, k: int, l: int) -> Decimal:
        return (t[i][k] - t[i][l]) ** 2 - (s[i][k] - s[i][l]) ** 2

    of_rows = [{(k, l): difference(i, k, l) for k in labels for l in labels} for i in rows]
    of_batch = {pair: sum((row[pair] for row in of_rows), ZERO) / len(of_rows) for pair in of_rows[0]}

    def loss(matrix: dict[tuple[int, int], Decimal], order: int) -> Decimal:
        sequences = list(itertools.permutations(labels, order))
        means = (sum((matrix[pair] for pair in itertools.pairwise(each)), ZERO) / (order - 1) for each in sequences)
        return sum((mean**2 / 2 for mean in means), ZERO) / len(sequences)

    return sum((sum((loss(m, n) for m in of_rows), ZERO) / len(of_rows) + loss(of_batch, n) for n in orders), ZERO)


def with_digits(compute: Callable[[], Decimal]) -> float:
    """Return a number computed with 120 digits."""
    with localcontext(_DIGITS):
        return float(compute())
