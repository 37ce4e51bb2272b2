"""The layers of OPRL as nested loops over numbers, which read like the paper's equations.

Every number is a 0-dimensional float64 tensor, so that autograd gives the gradients of the loops too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

Vector = Sequence[Tensor]
Matrix = Sequence[Vector]


def numbers(x: Tensor):
    """Nested lists of numbers, through which gradients reach ``x``."""
    return x if x.dim() == 0 else [numbers(part) for part in x.unbind()]


def stacked(x) -> Tensor:
    """The tensor of nested lists of numbers."""
    return x if isinstance(x, Tensor) else torch.stack([stacked(part) for part in x])


def total(parts: Sequence[Tensor]) -> Tensor:
    result = torch.zeros((), dtype=torch.float64)
    for part in parts:
        result = result + part
    return result


def affine(x: Vector, weight: Matrix, bias: Vector) -> list[Tensor]:
    return [total([w * v for w, v in zip(row, x, strict=True)]) + b for row, b in zip(weight, bias, strict=True)]


def transpose(x: Matrix) -> list[list[Tensor]]:
    return [list(column) for column in zip(*x, strict=True)]


def plus(x: Matrix, y: Matrix) -> list[list[Tensor]]:
    return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(x, y, strict=True)]


def quantile(values: Sequence[float], tau: Fraction) -> Fraction:
    """The quantile with linear interpolation, without rounding."""
    ordered = sorted(Fraction(v) for v in values)
    position = tau * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def quantile_mask(values: Sequence[float], tau: Fraction, valid: Sequence[bool] | None = None) -> list[bool]:
    """Eq. 6 over the valid values."""
    valid = [True] * len(values) if valid is None else valid
    inside = [v for v, ok in zip(values, valid, strict=True) if ok]
    if not inside:
        return [False] * len(values)
    threshold = quantile(inside, tau)
    return [ok and Fraction(v) >= threshold for v, ok in zip(values, valid, strict=True)]


def spatial_purified_attention(
    tokens: Matrix,
    score: tuple[Matrix, Vector],
    transform: tuple[Matrix, Vector],
    tau: Fraction,
    top_k: int,
    valid: Sequence[bool],
) -> tuple[list[list[Tensor]], list[Tensor], list[list[Tensor]]]:
    """Eqs. 3-7 of one image: label features, auxiliary probabilities and attention."""
    positions = [n for n, ok in enumerate(valid) if ok]
    zero = torch.zeros((), dtype=torch.float64)
    scores = {n: affine(tokens[n], *score) for n in positions}  # Eq. 3
    transformed = {n: affine(tokens[n], *transform) for n in positions}  # Eq. 5
    labels, width = len(score[1]), len(transform[1])
    features, probabilities, attention = [], [], []
    for c in range(labels):
        if not positions:
            features.append([zero] * width)
            probabilities.append(zero + 0.5)
            attention.append([zero] * len(valid))
            continue
        of_label = [scores[n][c] for n in positions]
        best = sorted(of_label, key=Tensor.item, reverse=True)[:top_k]
        probabilities.append(total([1 / (1 + torch.exp(-s)) for s in best]) / len(best))  # Eq. 4
        keep = quantile_mask([s.item() for s in of_label], tau)  # Eq. 6
        kept = [n for n, k in zip(positions, keep, strict=True) if k]
        whole = total([torch.exp(scores[n][c]) for n in kept])
        weights = [torch.exp(scores[n][c]) / whole if n in kept else zero for n in range(len(valid))]  # Eq. 7
        attention.append(weights)
        features.append([total([weights[n] * transformed[n][e] for n in kept]) for e in range(width)])
    return features, probabilities, attention


def average_matrix(labels: int) -> list[list[float]]:
    """Eq. 9: 1 on the diagonal, 1/(C − 1) off it."""
    return [[1.0 if i == j else 1 / (labels - 1) for j in range(labels)] for i in range(labels)]


def messages(adjacency: Sequence[Sequence[float | Tensor]], x: Matrix) -> list[list[Tensor]]:
    """P @ X."""
    labels, width = len(x), len(x[0])
    return [[total([adjacency[i][j] * x[j][d] for j in range(labels)]) for d in range(width)] for i in range(labels)]


def average_message_gcn(
    x: Matrix,
    adjacency: Sequence[Sequence[float | Tensor]],
    weights: Sequence[Matrix],
    schedule: Sequence[str],
    slope: float,
    final_activation: bool,
    residual: bool,
) -> list[list[Tensor]]:
    """Eqs. 8 and 10 of one image."""
    if not schedule:
        return [list(row) for row in x]
    h = [list(row) for row in x]
    for layer, (message, weight) in enumerate(zip(schedule, weights, strict=True)):
        matrix = adjacency if message == "cooccurrence" else average_matrix(len(x))
        heard = messages(matrix, h)
        columns = transpose(weight)
        h = [[total([a * w for a, w in zip(row, column, strict=True)]) for column in columns] for row in heard]
        if final_activation or layer + 1 < len(schedule):
            h = [[v if v > 0 else slope * v for v in row] for row in h]
    return plus(x, h) if residual else h


def layer_norm(x: Matrix, weight: Vector, bias: Vector, eps: float = 1e-5) -> list[list[Tensor]]:
    result = []
    for row in x:
        mean = total(row) / len(row)
        variance = total([(v - mean) ** 2 for v in row]) / len(row)
        scaled = [(v - mean) / torch.sqrt(variance + eps) for v in row]
        result.append([w * v + b for w, v, b in zip(weight, scaled, bias, strict=True)])
    return result


Perceptron = tuple[Matrix, Vector, Matrix, Vector]


def perceptron(x: Matrix, parameters: Perceptron) -> list[list[Tensor]]:
    """Linear, GELU, Linear on each row."""
    first, first_bias, second, second_bias = parameters
    result = []
    for row in x:
        hidden = [0.5 * v * (1 + torch.erf(v / math.sqrt(2))) for v in affine(row, first, first_bias)]
        result.append(affine(hidden, second, second_bias))
    return result


def bidirectional_refiner(
    x: Matrix,
    norm: tuple[Vector, Vector],
    representation: tuple[Perceptron, tuple[Vector, Vector], Perceptron] | None,
    category: tuple[Perceptron, tuple[Vector, Vector], Perceptron] | None,
) -> list[list[Tensor]]:
    """Eqs. 11-13 of one image, the residual of Eq. 12 transposed and X″₁ for X′₁ in Eq. 13.

    A path is (perceptron over channels, layer norm, perceptron over labels).
    """
    u = layer_norm(x, *norm)
    paths = []
    if representation is not None:
        channels, path_norm, labels = representation
        first = transpose(layer_norm(plus(perceptron(u, channels), u), *path_norm))  # X′₁, (E, C)
        paths.append(plus(transpose(perceptron(first, labels)), transpose(first)))  # X″₁, (C, E)
    if category is not None:
        channels, path_norm, labels = category
        second = layer_norm(plus(transpose(perceptron(transpose(u), labels)), u), *path_norm)  # X′₂, (C, E)
        paths.append(plus(perceptron(second, channels), second))  # X″₂, (C, E)
    if len(paths) == 1:
        return paths[0]
    return [[(a + b) / 2 for a, b in zip(p, q, strict=True)] for p, q in zip(*paths, strict=True)]


def group_wise_linear(x: Matrix, weight: Matrix, bias: Vector) -> list[Tensor]:
    """Eq. 14 of one image, before the sigmoid."""
    return [
        total([a * w for a, w in zip(row, vector, strict=True)]) + b
        for row, vector, b in zip(x, weight, bias, strict=True)
    ]


def cooccurrence(targets: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
    """Rows with both labels, rows with label i in which j is known, and their ratio."""
    labels = range(len(targets[0]) if targets else 0)
    together = [[sum(row[i] == 1 and row[j] == 1 for row in targets) for j in labels] for i in labels]
    known = [[sum(row[i] == 1 and row[j] >= 0 for row in targets) for j in labels] for i in labels]
    ratio = [[together[i][j] / known[i][j] if known[i][j] else 0.0 for j in labels] for i in labels]
    return together, known, ratio
