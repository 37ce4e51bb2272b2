"""Groups made better, label by label: moves that lower the normalised cut, and groups filled up to a least size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcorr.grouping.operators import AffinityOperator

Array = NDArray[Any]
_LEAST_GAIN = 1e-12
_LEAST_GAIN_OF_MANY = 1e-14  # what a move gains falls with the square of the number of labels
_ROUNDING = 1e-15  # of a group's share
_PARTS = 128  # of a sweep; up to as many labels are looked at one by one
_SWEEPS = 100
_MANY = 2048  # labels from which a sweep has to bring a thousandth of what all have brought


class Grouping:
    """A grouping of the labels of an operator, with all that its normalised cut is made of.

    Args:
        operator: The affinity.
        groups: (C,) the group of each label, in [0, num_groups).
        num_groups: T.
    """

    def __init__(self, operator: AffinityOperator, groups: Array, num_groups: int) -> None:
        self.operator = operator
        self.num_groups = num_groups
        self.groups: Array = groups.astype(np.int64)
        self.sizes: Array = np.bincount(self.groups, minlength=num_groups)
        self.volumes: Array = np.bincount(self.groups, weights=operator.degrees, minlength=num_groups)
        self.inner: Array = np.zeros(num_groups)
        for part in self._parts(8):
            own = self.groups[part]
            toward = self.toward(part)
            self.inner += np.bincount(own, weights=toward[np.arange(len(own)), own], minlength=num_groups)

    @property
    def cut(self) -> float:
        """The normalised cut; a group without labels counts 0, one without affinity 1."""
        return max(float((self.sizes > 0).sum() - _share(self.inner, self.volumes).sum()), 0.0)

    @property
    def score(self) -> tuple[int, float]:
        """What is better when it is lower: groups without labels, and then the cut, but for rounding."""
        return int((self.sizes == 0).sum()), round(self.cut, 12)

    def toward(self, labels: Array | slice) -> Array:
        """Return H (n, T), the affinity of some labels to each group."""
        plus, count = self.operator.plus, self.num_groups
        together: Array
        if isinstance(plus, np.ndarray):
            together = plus[labels] @ np.eye(count)[self.groups]
        else:
            if isinstance(labels, slice):  # no copy of what stands in a row already
                first, last = plus.indptr[labels.start], plus.indptr[labels.stop]
                length = np.diff(plus.indptr[labels.start : labels.stop + 1])
                column, value = plus.indices[first:last], plus.data[first:last]
            else:
                rows = plus[labels]
                length, column, value = np.diff(rows.indptr), rows.indices, rows.data
            key = np.repeat(np.arange(len(length)) * count, length) + self.groups[column]
            together = np.bincount(key, weights=value, minlength=len(length) * count).reshape(-1, count)
        if self.operator.relation == "co":
            return np.asarray(together)
        apart = self.sizes - together
        own = self.groups[labels]
        apart[np.arange(len(own)), own] -= 1  # a label is no neighbour of its own
        return np.asarray(apart)

    def gains(self, labels: Array | slice, toward: Array) -> Array:
        """Return (n, T) what the sum of the groups' shares would gain if one label alone moved; 0 to its own group."""
        own, degree = self.groups[labels], self.operator.degrees[labels][:, None]
        here = np.arange(len(own))
        share = _share(self.inner, self.volumes)
        into = _share(self.inner + 2 * toward, self.volumes + degree) - share
        inner, volume = self.inner[own] - 2 * toward[here, own], self.volumes[own] - degree[:, 0]
        gain = into + (_share(inner, volume) - share[own])[:, None]
        gain[here, own] = 0.0
        return np.asarray(gain)

    def move(self, labels: Array, targets: Array, toward: Array, *, only_if_better: bool = False) -> bool:
        """Move labels at once, and return whether they were moved; ``toward`` is their H as it stands."""
        own, here = self.groups[labels], np.arange(len(labels))
        before = (self.sizes, self.volumes, self.inner)
        count, degree = self.num_groups, self.operator.degrees[labels]
        self.groups[labels] = targets
        self.sizes = self.sizes + np.bincount(targets, minlength=count) - np.bincount(own, minlength=count)
        self.volumes = self.volumes + np.bincount(targets, degree, count) - np.bincount(own, degree, count)
        # Each pair of which one label moved changes once for either order; where both moved, half before, half after.
        both = toward + self.toward(labels)
        arrived = np.bincount(targets, both[here, targets], count)
        self.inner = self.inner + arrived - np.bincount(own, both[here, own], count)
        if only_if_better and _total(self.inner, self.volumes) <= _total(before[2], before[1]) + count * _ROUNDING:
            self.groups[labels] = own
            self.sizes, self.volumes, self.inner = before
            return False
        return True

    def refine(self, least_size: int = 1) -> None:
        """Move single labels as long as that lowers the cut, and no group falls below ``least_size`` by it.

        Labels are looked at in turn, and of many labels the moves of a 128th at a time are made together, if together
        they lower the cut, else the better half of them. So the cut never grows.
        """
        start = _total(self.inner, self.volumes)
        for _ in range(_SWEEPS):
            before, moved = _total(self.inner, self.volumes), 0
            for part in self._parts(_PARTS):
                moved += self._improve(part, max(least_size, 1))
            after = _total(self.inner, self.volumes)
            # The last moves of very many labels are not worth a sweep.
            if not moved or (self.operator.size > _MANY and after - before < 1e-3 * (after - start)):
                break

    def repair(self, least_size: int) -> None:
        """Fill groups below ``least_size`` up, the smallest first, with the labels that cost least."""
        if least_size * self.num_groups > self.operator.size:
            raise ValueError(f"least_size: {self.num_groups} groups of {least_size} are more than there are labels")
        while True:
            smallest = int(self.sizes.argmin())
            lacking = least_size - int(self.sizes[smallest])
            if lacking <= 0:
                return
            toward = self.toward(slice(0, self.operator.size))
            gain = self.gains(slice(0, self.operator.size), toward)[:, smallest]
            gain[(self.sizes <= least_size)[self.groups]] = -np.inf
            best = np.argsort(-gain, kind="stable")
            best = best[self._spare(best, least_size)][: max(1, lacking // 16)]
            best = best[np.isfinite(gain[best])]
            self.move(best, np.full(len(best), smallest), toward[best])

    def _improve(self, part: slice, least_size: int) -> int:
        toward = self.toward(part)
        gain = self.gains(part, toward)
        gain[self.sizes[self.groups[part]] <= least_size] = 0.0
        target = gain.argmax(axis=1)
        gain = gain[np.arange(len(gain)), target]
        order = np.argsort(-gain, kind="stable")
        order = order[gain[order] > (_LEAST_GAIN if self.operator.size <= _MANY else _LEAST_GAIN_OF_MANY)]
        order = order[self._spare(order + part.start, least_size)]
        while len(order):
            if self.move(order + part.start, target[order], toward[order], only_if_better=True):
                return len(order)
            order = order[: len(order) // 2]
        return 0

    def _spare(self, labels: Array, least_size: int) -> Array:
        """Which of ``labels`` their groups can spare, if those before them have gone."""
        spare = np.zeros(len(labels), dtype=bool)
        own = self.groups[labels]
        for group in np.unique(own):
            of_group = np.flatnonzero(own == group)
            spare[of_group[: max(int(self.sizes[group]) - least_size, 0)]] = True
        return spare

    def _parts(self, count: int) -> list[slice]:
        size = self.operator.size
        step = -(-size // count)
        return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _share(inner: Array, volume: Array) -> Array:
    return np.asarray(np.where(volume > 1e-12, inner / np.maximum(volume, 1e-12), 0.0))


def _total(inner: Array, volumes: Array) -> float:
    return float(_share(inner, volumes).sum())
