"""A partition of labels by their affinity: spectral embedding, k-means, and what makes both safe on any graph."""

from __future__ import annotations

import contextlib
import heapq
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlcorr.grouping.operators import AffinityOperator
from mlcorr.grouping.refinement import Grouping

Array = NDArray[Any]
Form: TypeAlias = Literal["dense", "operator"]
_FEW = 2048  # labels up to which k-means starts several times, and Lanczos has to converge
_STARTS = 5  # of k-means, of which the one with the least inertia counts
_CANDIDATES = 4  # with their starts 20 in a restart, as in the official code
_MANY = 50_000  # labels from which the dis-occurrence relation has no spectrum worth a solver
_LANCZOS_STEPS = 100
_BLOCK_STEPS = 30

# Held while a setting of the whole process differs: of two threads, the later would put back what the first had set.
_OF_THE_PROCESS = threading.RLock()


def partition(
    operator: AffinityOperator,
    num_groups: int,
    *,
    min_group_size: int = 1,
    restarts: int = 10,
    seed: int = 0,
    form: Form = "dense",
) -> tuple[Array, float]:
    """Return the group (C,) of each label, and the normalised cut.

    The best of ``restarts`` runs of k-means on the spectral embedding. The groups of the dis-occurrence relation are
    then filled up to ``min_group_size`` and refined. Groups are numbered by their first label.

    Labels without any affinity go to the smallest group, one by one. Unless there are exactly as many connected
    components as groups, the tiny ones (see :func:`tiny`) do so too, as a group of next to no labels is of no use; if
    there still are as many as groups, each stays whole and goes, the largest first, to the smallest group, so that
    nothing is cut. With at least as many groups as labels, each label is a group.
    """
    size = operator.size
    if num_groups >= size or num_groups == 1:
        groups = np.arange(size) if num_groups >= size else np.zeros(size, dtype=np.int64)
        return groups, Grouping(operator, groups, max(num_groups, 1)).cut
    pieces, aside = _pieces(operator, num_groups)
    best: Grouping | None = None
    for start in _starts(operator, pieces, num_groups, restarts, seed, form):
        groups = _pack(start, aside, num_groups)
        found = Grouping(operator, groups, num_groups)
        if operator.relation == "dis":
            found.repair(min_group_size)
            found.refine(min_group_size)
        if best is None or found.score < best.score:
            best = found
    assert best is not None
    return by_first_label(best.groups), Grouping(operator, best.groups, num_groups).cut


def eigenvalues(operator: AffinityOperator, count: int, *, form: Form = "dense", all_pieces: bool = True) -> Array:
    """Return the ``count`` smallest eigenvalues of the normalised Laplacian of the labels that have any affinity.

    Without ``all_pieces`` tiny components are left out too.
    """
    pieces, _ = _pieces(operator, None if all_pieces else 0)
    if not pieces or len(pieces) >= count:
        return np.zeros(min(len(pieces), count))
    found = [_eigenpairs(_part(operator, piece), count, form)[0] for piece in pieces]
    return np.sort(np.maximum(1 - np.concatenate(found), 0.0))[:count]


def eigengap(values: Array) -> int:
    """Return after how many of the ascending ``values`` the gap is widest, at least 2; 1 where there are too few.

    Where all are 0, each stands for a component, and there are at least as many groups as values.
    """
    if len(values) > 1 and values[-1] < 1e-9:
        return len(values)
    gaps = np.diff(values)[1:]
    return 2 + int(gaps.argmax()) if len(gaps) else 1


def tiny(size: int) -> int:
    """Return of fewer than how many labels a component is tiny: 3, or a hundredth of all."""
    return max(3, size // 100)


def by_first_label(groups: Array) -> Array:
    """Return the same groups, numbered in the order of their first labels."""
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[first.argsort()] = np.arange(len(first))
    return np.asarray(number[place.reshape(-1)])


def _pieces(operator: AffinityOperator, num_groups: int | None) -> tuple[list[Array], list[Array]]:
    """Connected components to be grouped, and those to be set aside; both the largest first.

    Tiny ones are set aside unless there are ``num_groups`` in all, and never where that is None.
    """
    if operator.relation == "dis":  # hardly a pair lacks in it: it is taken as one component
        connected = operator.degrees > 0
        return [np.flatnonzero(connected)] if connected.any() else [], list(np.flatnonzero(~connected)[:, None])
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    _, component = connected_components(csr_array(operator.plus), directed=False)
    order = np.argsort(component, kind="stable")
    sizes = np.bincount(component)
    ends = sizes.cumsum()
    found = [order[ends[c] - sizes[c] : ends[c]] for c in range(len(sizes))]
    found.sort(key=lambda piece: (-len(piece), piece[0]))
    least = 2 if num_groups is None or int((sizes > 1).sum()) == num_groups else tiny(operator.size)
    return [piece for piece in found if len(piece) >= least], [piece for piece in found if len(piece) < least]


def _pack(groups: Array, aside: list[Array], num_groups: int) -> Array:
    """Give the labels that were set aside, whole pieces at a time, to the smallest group."""
    groups = groups.copy()
    sizes = [(int(size), group) for group, size in enumerate(np.bincount(groups[groups >= 0], minlength=num_groups))]
    heapq.heapify(sizes)
    for piece in aside:
        size, group = sizes[0]
        groups[piece] = group
        heapq.heapreplace(sizes, (size + len(piece), group))
    return groups


def _starts(
    operator: AffinityOperator, pieces: list[Array], num_groups: int, restarts: int, seed: int, form: Form
) -> Any:
    """Yield groupings (C,), −1 for labels that are in none of the pieces."""
    nothing = np.full(operator.size, -1, dtype=np.int64)
    if len(pieces) >= num_groups or not pieces:
        yield _pack(nothing, pieces, num_groups)
        return
    labels = np.concatenate(pieces)
    count = min(num_groups, len(labels))
    random = np.random.default_rng(seed)
    if operator.relation == "dis" and len(labels) > _MANY:
        groups = nothing.copy()
        groups[labels] = random.permutation(len(labels)) % count
        yield groups
        return
    points = _embedding(operator, pieces, count, form)
    many = len(labels) > _FEW or operator.relation == "dis"
    for each in random.integers(2**31 - 1, size=restarts * (1 if many else _CANDIDATES)):
        groups = nothing.copy()
        groups[labels] = kmeans(points, count, int(each))
        yield groups


def _embedding(operator: AffinityOperator, pieces: list[Array], count: int, form: Form) -> Array:
    """D^(-1/2) U, for U the eigenvectors of the ``count`` smallest eigenvalues of the Laplacian, piece after piece.

    Each connected piece is solved on its own, as an eigenvalue that repeats is easily lost.
    """
    values, vectors = [], []
    first, size = 0, sum(len(piece) for piece in pieces)
    for piece in pieces:
        part = _part(operator, piece)
        value, vector = _eigenpairs(part, min(count - len(pieces) + 1, len(piece)), form)
        whole = np.zeros((size, len(value)))
        whole[first : first + len(piece)] = part.scale()[:, None] * vector
        first += len(piece)
        values.append(value)
        vectors.append(whole)
    largest = np.argsort(-np.concatenate(values), kind="stable")[:count]
    points = np.concatenate(vectors, axis=1)[:, largest]
    sign = np.sign(points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])])
    return np.asarray(points * sign)


def _part(operator: AffinityOperator, piece: Array) -> AffinityOperator:
    return operator if len(piece) == operator.size else operator.restricted(np.sort(piece))


def _eigenpairs(operator: AffinityOperator, count: int, form: Form) -> tuple[Array, Array]:
    """The largest eigenvalues of A, in falling order, and their vectors."""
    size = operator.size
    count = min(count, size)
    if form == "dense" or size <= max(3 * count, 32):
        from scipy.linalg import eigh

        with _one_thread():  # so that it does not depend on how many there are
            values, vectors = eigh(operator.normalized_matrix(), subset_by_index=[size - count, size - 1])
        return values[::-1], vectors[:, ::-1]
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh, lobpcg

    matrix = operator.normalized()
    random = np.random.default_rng(0)  # any start will do, if it is always the same
    if operator.relation == "co" or size <= _FEW:
        try:
            width = min(size, max(2 * count + 1, 40))
            start = random.uniform(-1, 1, size)
            values, vectors = eigsh(matrix, count, which="LA", v0=start, ncv=width, tol=0, maxiter=_LANCZOS_STEPS)
            order = np.argsort(-values, kind="stable")
            return values[order], vectors[:, order]
        except ArpackNoConvergence:
            if size <= _FEW:
                return _eigenpairs(operator, count, "dense")
    start = np.column_stack([np.sqrt(operator.degrees), random.normal(size=(size, count + 2))])
    with _without_warnings(Warning):  # it warns that so few steps do not converge
        values, vectors = lobpcg(matrix, start, largest=True, maxiter=_BLOCK_STEPS, tol=1e-9)
    order = np.argsort(-values)[:count]
    return values[order], vectors[:, order]


def kmeans(points: Array, count: int, seed: int) -> Array:
    """Return the cluster (n,) of each point; fewer clusters, with a warning, where there are fewer distinct points."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    starts = _STARTS if len(points) <= _FEW else 1
    with _without_warnings(ConvergenceWarning), _one_thread():  # of one thread, sums have one order
        found = by_first_label(KMeans(count, n_init=starts, random_state=seed).fit(points).labels_)
    clusters = int(found.max()) + 1
    if clusters < count:
        warnings.warn(f"num_groups: there are only {clusters} groups of labels that differ, not {count}", stacklevel=2)
    return found


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which matrix products take one thread."""
    from threadpoolctl import threadpool_limits

    with _OF_THE_PROCESS, threadpool_limits(limits=1):
        yield


@contextlib.contextmanager
def _without_warnings(category: type[Warning]) -> Iterator[None]:
    with _OF_THE_PROCESS, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
