"""Affinity, normalised cut and what a move gains, by loops over numbers."""

from __future__ import annotations


def affinity(rows: list[list[int]], tau: float = 2.0) -> list[list[float]]:
    """M⁺ of targets with 1, 0, and −1 for unknown, by the definition of its conditional frequencies."""
    size = len(rows[0])

    def lifted(i: int, j: int) -> float:
        """P(label i | label j) to the power 1/tau, over rows in which i is known."""
        given = [row for row in rows if row[j] == 1 and row[i] >= 0]
        return (sum(1 for row in given if row[i] == 1) / len(given)) ** (1 / tau) if given else 0.0

    return [[0.0 if i == j else (lifted(i, j) + lifted(j, i)) / 2 for j in range(size)] for i in range(size)]


def apart(plus: list[list[float]]) -> list[list[float]]:
    """M⁻ of M⁺."""
    size = len(plus)
    return [[0.0 if i == j else 1 - plus[i][j] for j in range(size)] for i in range(size)]


def normalized_cut(m: list[list[float]], groups: list[int]) -> float:
    """The share of each group's affinity that goes to others, summed over groups that have labels."""
    total = 0.0
    for group in set(groups):
        members = [i for i in range(len(m)) if groups[i] == group]
        volume = sum(m[i][j] for i in members for j in range(len(m)) if i != j)
        inner = sum(m[i][j] for i in members for j in members if i != j)
        total += 1 - inner / volume if volume > 1e-12 else 1
    return total


def gain(m: list[list[float]], groups: list[int], label: int, target: int) -> float:
    """How much the cut falls if one label moves, by moving it."""
    moved = [target if i == label else group for i, group in enumerate(groups)]
    return normalized_cut(m, groups) - normalized_cut(m, moved)
