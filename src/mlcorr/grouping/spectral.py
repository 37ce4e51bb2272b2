"""Groups of labels that stand together, and of labels that do not: counted from the data, kept in buffers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_floating, check_integer, check_number
from mlcorr._distributed import check_group, global_sum
from mlcorr._extra_state import decoded, encoded
from mlcorr._loading import WholeState, unfit_tensor
from mlcorr._precision import compute_dtype
from mlcorr.grouping.affinity import ordered_affinity
from mlcorr.grouping.cooccurrence import LabelCooccurrence
from mlcorr.grouping.label_groups import RELATIONS, LabelGroups, Relation, check_names
from mlcorr.grouping.operators import AffinityOperator
from mlcorr.grouping.partition import Form, by_first_label, eigengap, eigenvalues, partition

Solver: TypeAlias = Literal["auto", "dense", "operator"]
_SOLVERS: tuple[Solver, ...] = ("auto", "dense", "operator")
_DENSE_LABELS = 1024
_GAPS = 21  # eigenvalues in which "auto" looks for a gap
_EXTRA = ("names", "num_groups", "found")  # of the extra state


class SpectralLabelGrouping(WholeState):
    r"""Groups of labels by normalised spectral clustering, for two relations: together ("co") and apart ("dis").

    After ``update`` with every batch of targets, ``fit`` partitions the labels twice, by M⁺ and by M⁻ = 1 − M⁺ (see
    :func:`mlcorr.grouping.affinity`), with U the eigenvectors of the T smallest eigenvalues of
    1 − D^(-1/2) M D^(-1/2)::

        groups = KMeans(T).fit_predict(D ** -0.5 * U)              # of many runs that with the lowest normalised cut

    The groups of M⁻ are then refined by moves of single labels, since its spectrum has no gap to go by. ``forward``
    gives each label the feature of its group, ``pool`` gives each group the mean of its labels' features.

    Args:
        num_labels: C.
        num_groups: T, for both relations. "auto" takes the widest gap among the first 20 eigenvalues of M⁺ when fitted,
            which is a rule of thumb: real spectra often have no clear gap.
        tau: τ of the affinity.
        names: The labels' names; groups without names are only safe as long as nobody sorts the labels.
        restarts: How often k-means is run, of which the result with the lowest normalised cut is taken. Each time it
            starts 20 times for the co-occurrence relation, as in the official code, and takes of five starts that with
            the least inertia. Beyond 2048 labels it starts once; beyond 50,000 the dis-occurrence groups are refined
            from one random start.
        min_group_size: Least number of labels in a dis-occurrence group. None is ``max(2, C // (4 T))``, or C // T if
            that is less.
        seed: What all random starts follow from; the global random state is neither read nor changed.
        solver: "dense" for matrices (C, C), "operator" for products with sparse counts and few
            eigenvectors, for which nothing of size C·C is formed. "auto": dense up to 1024 labels. Up to the order of
            rounding both see the same eigenvectors.

    Buffers:
        ``counts`` (a :class:`mlcorr.LabelCooccurrence`), and ``co_groups``, ``dis_groups`` (C,) int64, which are −1
        before ``fit``. Names, T and the cuts travel in ``state_dict()`` too, as bytes of JSON in a tensor.

    Note:
        Defined at the edges: a label that never came, or came alone, goes to the smallest co-occurrence group, and so
        does, as a whole, a tiny component of the graph (fewer than 3 labels, or than a hundredth of them), unless there
        are exactly T components. Other components stay whole where there are at least T. With C <= T each label is a
        group, and T becomes C, with a warning if T was more; with T = 1 all labels are one group. Labels are sorted by
        their counts first, so that their order decides nothing but between labels with the same number of rows, and
        the same sums over their pairs.

    Differs from the authors' code:
        They partition by scikit-learn's ``SpectralClustering``, and so do we in effect: on MS-COCO the co-occurrence
        groups are the published ones. Their dis-occurrence groups depend on the seed, and can be worse than random
        ones; ours are refined, and chosen by their cut. Ours need no image in memory at once.

    Reference:
        ML-VPT, CVPR 2025, supplement, Algorithm 1; von Luxburg, "A Tutorial on Spectral Clustering", 2007.

    Example:
        >>> import torch
        >>> from mlcorr import SpectralLabelGrouping
        >>> grouping = SpectralLabelGrouping(4, num_groups=2, names=("cup", "car", "fork", "bus"))
        >>> grouping.update(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]))
        >>> groups = grouping.fit()
        >>> groups.members("co"), groups.members("dis")
        ([['cup', 'fork'], ['car', 'bus']], [['cup', 'bus'], ['car', 'fork']])
        >>> grouping(torch.tensor([[[1.0], [2.0]]])).squeeze()
        tensor([1., 2., 1., 2.])
        >>> grouping.pool(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])).squeeze()
        tensor([2., 3.])
    """

    co_groups: Tensor
    dis_groups: Tensor

    def __init__(
        self,
        num_labels: int,
        num_groups: int | Literal["auto"] = 5,
        *,
        tau: float = 2.0,
        names: Sequence[str] | None = None,
        restarts: int = 10,
        min_group_size: int | None = None,
        seed: int = 0,
        solver: Solver = "auto",
    ) -> None:
        super().__init__()
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.auto_groups = isinstance(num_groups, str) and num_groups == "auto"
        wanted = (
            1
            if isinstance(num_groups, str) and num_groups == "auto"
            else check_integer("num_groups", num_groups, minimum=1)
        )
        if wanted > self.num_labels:
            warnings.warn(
                f"num_groups: {wanted} groups for {num_labels} labels; each label is a group of its own, and there are "
                f"{num_labels}",
                stacklevel=2,
            )
        self.num_groups = min(wanted, self.num_labels)
        self.tau = check_number("tau", tau, minimum=0.0, exclusive=True)
        self.names = check_names("names", names, self.num_labels)
        self.restarts = check_integer("restarts", restarts, minimum=1)
        if min_group_size is not None:
            check_integer("min_group_size", min_group_size, minimum=1)
            if not self.auto_groups and min_group_size > self.num_labels // self.num_groups:
                most = self.num_labels // self.num_groups
                raise ValueError(f"min_group_size: expected at most C // T = {most}, got {min_group_size}")
        self.min_group_size = min_group_size
        self.seed = check_integer("seed", seed, minimum=0)
        check_choice("solver", solver, _SOLVERS)
        self.solver = solver
        self.counts = LabelCooccurrence(self.num_labels)
        for relation in RELATIONS:
            self.register_buffer(f"{relation}_groups", torch.full((self.num_labels,), -1))
        self._found: tuple[str, float, float, float] | None = None  # method, tau and cuts

    def update(self, targets: Any) -> None:
        """Count a batch of targets (..., C), dense or sparse, −1 for unknown: see ``LabelCooccurrence.update``.

        The groups stay as they are until ``fit`` is called again.
        """
        self.counts.update(targets)

    @torch.no_grad()
    def fit(self, group: dist.ProcessGroup | None = None) -> LabelGroups:
        """Partition the labels by what was counted, and return the groups; they are in the buffers from then on.

        Args:
            group: Processes whose counts are added up; all of them have to call, and get the same groups. The counts in
                this module stay those of its own process. None is this process alone.
        """
        group = check_group("group", group)
        total = self.counts.reduce(group) if group is not None else self.counts
        groups = self._fit(total)
        if group is not None:
            groups = _of_first_rank(groups, group, self.co_groups.device)
        self.assign(groups)
        return groups

    @property
    def assignments(self) -> LabelGroups:
        """The groups that were fitted, assigned or loaded.

        Raises:
            RuntimeError: There are none yet.
        """
        method, tau, *cuts = self._fitted()
        return LabelGroups(self.co_groups, self.dis_groups, self.names, self.num_groups, tau, method, *cuts)

    @torch.no_grad()
    def assign(self, groups: LabelGroups) -> None:
        """Take over groups, such as published ones, in place of fitted ones.

        Raises:
            ValueError: They are of other labels or, unless ``num_groups="auto"``, of another number of groups.
        """
        if not isinstance(groups, LabelGroups):
            raise TypeError(f"groups: expected LabelGroups, got {type(groups).__name__}")
        if groups.num_labels != self.num_labels:
            raise ValueError(f"groups: expected groups of {self.num_labels} labels, got {groups.num_labels}")
        if groups.num_groups != self.num_groups and not self.auto_groups:
            raise ValueError(f"groups: expected {self.num_groups} groups, got {groups.num_groups}")
        if self.names is not None and groups.names is not None:
            groups = groups.reorder(self.names)
        self.co_groups.copy_(groups.co)
        self.dis_groups.copy_(groups.dis)
        self.names = groups.names if self.names is None else self.names
        self.num_groups = groups.num_groups
        self._found = (groups.method, groups.tau, groups.ncut_co, groups.ncut_dis)

    def eigenvalues(self, relation: Relation = "co", count: int = _GAPS) -> Tensor:
        """Return the smallest eigenvalues of the normalised Laplacian, rising, at most ``count``, float64.

        Labels without any affinity are left out. Each connected component has one eigenvalue 0. Beyond 2048 labels
        those of "dis" are rough, as they stand too close to one another to be told apart.
        """
        check_choice("relation", relation, RELATIONS)
        check_integer("count", count, minimum=1)
        plus, _ = self._affinity(self.counts)
        return torch.from_numpy(eigenvalues(AffinityOperator(plus, relation), count, form=self._form))

    def forward(self, group_features: Tensor, relation: Relation = "co") -> Tensor:
        """Return the feature (..., C, D) of each label's group.

        Args:
            group_features: (..., T, D), of any floating-point dtype.
            relation: "co" or "dis".
        """
        self._check("group_features", group_features, self.num_groups, "T", relation)
        return group_features.index_select(-2, self._groups(relation))

    def pool(self, label_features: Tensor, relation: Relation = "co") -> Tensor:
        """Return the mean (..., T, D) of the features of each group's labels; 0 for a group without labels.

        Args:
            label_features: (..., C, D), of any floating-point dtype; half precision is summed in float32.
            relation: "co" or "dis".
        """
        self._check("label_features", label_features, self.num_labels, "C", relation)
        groups = self._groups(relation)
        wide = label_features.to(compute_dtype(label_features))
        size = wide.new_zeros(self.num_groups).index_add(0, groups, wide.new_ones(self.num_labels))
        zeros = wide.new_zeros(*wide.shape[:-2], self.num_groups, wide.shape[-1])
        total = zeros.index_add(-2, groups, wide)
        return (total / size.clamp(min=1).unsqueeze(-1)).to(label_features.dtype)

    @torch.no_grad()
    def reduce(self, group: dist.ProcessGroup | None = None) -> SpectralLabelGrouping:
        """Return a copy with the counts of all processes of ``group`` added up, such as one to be saved."""
        total = copy.deepcopy(self)
        total.counts = self.counts.reduce(group)
        return total

    def get_extra_state(self) -> Tensor:
        """Return what is no tensor, as bytes of JSON, for ``state_dict``."""
        found = self._found and [None if isinstance(x, float) and math.isnan(x) else x for x in self._found]
        return encoded({"names": self.names, "num_groups": self.num_groups, "found": found})

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what ``get_extra_state`` gave."""
        content = decoded(state, *_EXTRA)
        self.names = self.names or tuple(content["names"] or ()) or None
        self.num_groups, self._found = content["num_groups"], _found_in(content)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        groups = "'auto'" if self.auto_groups and self._found is None else self.num_groups
        return (
            f"num_labels={self.num_labels}, num_groups={groups}, tau={self.tau:g}, restarts={self.restarts}, "
            f"min_group_size={self.min_group_size}, seed={self.seed}, solver={self.solver!r}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        problem = self._refuse(state_dict, prefix)
        if problem is not None:
            args[-1].append(f"{prefix.rstrip('.') or 'SpectralLabelGrouping'}: {problem}")
            # Neither the groups nor, after them, the counts are to be taken over in part.
            for name in [name for name in state_dict if name.startswith(prefix)]:
                del state_dict[name]
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}co_groups" in state_dict and f"{prefix}_extra_state" not in state_dict:
            fitted = bool((self.co_groups >= 0).all()) and bool((self.dis_groups >= 0).all())
            self._found = ("loaded", self.tau, math.nan, math.nan) if fitted else None
            if self.auto_groups and fitted:
                self.num_groups = _least_number(self.co_groups, self.dis_groups)

    def _refuse(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """Why the state of another module cannot be taken over."""
        given = [state_dict.get(f"{prefix}{relation}_groups") for relation in RELATIONS]
        wrong = [x.numel() for x in given if isinstance(x, Tensor) and x.numel() != self.num_labels]
        if wrong:
            return f"size mismatch: expected {self.num_labels} labels, got {wrong[0]}"
        groups = [x for x in given if x is not None and not any(unfit_tensor("", x, self.co_groups))]
        extra = state_dict.get(f"{prefix}_extra_state")
        if extra is None:
            number = _least_number(*groups)
            few = self.auto_groups or number <= self.num_groups
            return None if few else f"size mismatch: expected {self.num_groups} groups, got {number}"
        content = decoded(extra, *_EXTRA)
        try:
            names = check_names("names", content["names"], self.num_labels)
            number = check_integer("num_groups", content["num_groups"], minimum=1)
            method, tau, *cuts = _found_in(content) or ("", self.tau)
            fitted = groups if content["found"] is not None else ()
            for x in fitted:
                LabelGroups(x, x, names, number, tau, method, *cuts)
        except (TypeError, ValueError) as error:
            return str(error)
        if self.names and names and names != self.names:
            same = set(names) == set(self.names)
            return "other names: expected the labels' names" + (" in the same order" if same else "")
        if not self.auto_groups and number != self.num_groups:
            return f"size mismatch: expected {self.num_groups} groups, got {number}"
        return None

    @property
    def _form(self) -> Form:
        if self.solver == "auto":
            return "dense" if self.num_labels <= _DENSE_LABELS else "operator"
        return self.solver

    def _fit(self, counts: LabelCooccurrence) -> LabelGroups:
        plus, order = self._affinity(counts)
        count = self.num_groups
        if self.auto_groups:
            most = min(_GAPS, self.num_labels)
            values = eigenvalues(AffinityOperator(plus, "co"), most, form=self._form, all_pieces=False)
            count = min(eigengap(values), self.num_labels)
        least = max(2, self.num_labels // (4 * count)) if self.min_group_size is None else self.min_group_size
        least = min(least, self.num_labels // count)
        found, cuts = [], []
        for relation in RELATIONS:
            groups, cut = partition(
                AffinityOperator(plus, relation),
                count,
                min_group_size=least,
                restarts=self.restarts,
                seed=self.seed,
                form=self._form,
            )
            in_order = torch.empty_like(order)
            in_order[order] = torch.from_numpy(groups)
            found.append(torch.from_numpy(by_first_label(in_order.numpy())))
            cuts.append(cut)
        return LabelGroups(found[0], found[1], self.names, count, self.tau, f"spectral, {self._form}", *cuts)

    def _affinity(self, counts: LabelCooccurrence) -> tuple[Any, Tensor]:
        return ordered_affinity(counts, self.tau, sparse=self._form == "operator")

    def _groups(self, relation: Relation) -> Tensor:
        return self.co_groups if relation == "co" else self.dis_groups

    def _fitted(self) -> tuple[str, float, float, float]:
        if self._found is None:
            raise RuntimeError(
                "SpectralLabelGrouping: there are no groups yet; call fit() after update(), or load them"
            )
        return self._found

    def _check(self, name: str, features: Tensor, size: int, letter: str, relation: str) -> None:
        self._fitted()
        check_choice("relation", relation, RELATIONS)
        check_floating(name, features, min_dim=2)
        if features.shape[-2] != size:
            raise ValueError(
                f"{name}: expected the shape (..., {letter}, D), {letter} = {size}, got {tuple(features.shape)}"
            )
        if features.device != self.co_groups.device:
            raise ValueError(
                f"{name}: expected the device of the groups, {self.co_groups.device}, got {features.device}"
            )


def _found_in(content: dict[str, Any]) -> tuple[str, float, float, float] | None:
    """Return method, tau and cuts of an extra state, None where there are no groups."""
    found = content["found"]
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 4:
        raise ValueError(f"found: expected method, tau and two cuts, got {found!r}")
    method, *numbers = found
    tau, co, dis = (math.nan if number is None else number for number in numbers)
    return method, tau, co, dis


def _least_number(*groups: Tensor) -> int:
    """Return how many groups there are at least."""
    return max((int(x.max()) + 1 for x in groups if x.numel()), default=0)


def _of_first_rank(groups: LabelGroups, group: dist.ProcessGroup, device: torch.device) -> LabelGroups:
    """Return the groups of the first rank: other machines may round otherwise."""
    cuts = torch.tensor([groups.ncut_co, groups.ncut_dis], dtype=torch.float64, device="cpu")
    whole = torch.cat([groups.co.new_tensor([groups.num_groups]), groups.co, groups.dis])
    first = dist.get_rank(group) == 0
    sent = [global_sum((x if first else torch.zeros_like(x)).to(device), group).cpu() for x in (whole, cuts)]
    co, dis = sent[0][1:].chunk(2)
    return LabelGroups(co, dis, groups.names, int(sent[0][0]), groups.tau, groups.method, *sent[1].tolist())
