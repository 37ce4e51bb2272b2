"""MDKD: multi-order label pair dependency distillation, the whole objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import check_mask, check_number
from mlcorr._distributed import SharesGroup, global_sum
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype
from mlcorr._targets import check_target, split_target
from mlcorr.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from mlcorr.losses.mld import MLDLoss
from mlcorr.losses.multi_order_dependency import MultiOrderDependencyLoss, check_pair
from mlcorr.ops import norder
from mlcorr.ops.norder.launching import UNIT


class MDKDObjective(SharesGroup, WholeState):
    r"""BCE(s, y) + ``mld_weight``·MLD(s, t) + ``dependency_weight``·(L_ID + L_BD): Eq. 15 of MDKD.

    The defaults are the paper's. It trains a student on logits of a teacher; the two networks stay outside.

    Args:
        orders: Orders of the label dependencies, with weight 1, or a mapping from order to weight.
        mld_weight: λ_MLD >= 0.
        dependency_weight: Factor >= 0 on both levels of the dependency loss.
        base_loss: What learns from the targets: a callable of (student logits, target) that returns a scalar.
            None is :class:`mlcorr.BinaryCrossEntropyLoss`, summed over labels, averaged over the batch.
        level: "instance", "batch" or "both".
        delta: Where the dependency loss's Huber turns linear.
        batch_dependency: "mean_square" or "square_of_sums".
        normalization: "sequences" (the paper's mean over label sequences) or "labels" (that times C, the scale of
            BCE and MLD). With the first, the dependency terms are small beside the others, the more so the more
            labels; :meth:`terms` and :meth:`gradient_norms` show by how much.
        temperature: Of the MLD term.
        backend: Of the dependency loss.
        samples: Number of label sequences drawn for orders >= 5 with ``delta < 1``.
        group: Process group that the batch is spread over, or None. Every rank returns the objective of the whole
            batch, and DistributedDataParallel's mean of the gradients is the whole batch's. A ``base_loss`` of yours
            has to see to it itself, as those of the library do when they are given the group.

    Shape:
        - student, teacher: logits (B, C).
        - target: (B, C), 0/1 or soft; −1 leaves the entry out of the base loss only, since the teacher's opinion on
          an unknown label is what distillation can use. ``mask=target >= 0`` leaves it out of all other terms too.
        - mask: boolean (B, C) or None, True where an entry counts in the terms that distil.
        - Output: ().

    Raises:
        TypeError: An argument of the wrong type; those of the parts.
        ValueError: A weight below 0 or not finite; those of the parts.

    Reference:
        Wang et al., "Beyond Direct Relations: Exploring Multi-Order Label Pair Dependencies for Knowledge
        Distillation", ACM Multimedia 2024.

    Example:
        >>> import torch
        >>> from mlcorr.systems.mdkd import MDKDObjective
        >>> objective = MDKDObjective(orders=(2, 3, 4))
        >>> student = torch.zeros(2, 5, requires_grad=True)
        >>> teacher = torch.tensor([[4.0, -4, 4, -4, -4], [-4, 4, -4, 4, -4]])
        >>> target = (teacher > 0).long()
        >>> objective(student, teacher, target).backward()
        >>> {name: round(term.item(), 4) for name, term in objective.terms(student, teacher, target).items()}
        {'base': 3.4657, 'mld': 30.1526, 'instance': 0.6358, 'batch': 0.5634}
    """

    def __init__(
        self,
        orders: Iterable[int] | Mapping[int, float] = (2, 3, 4),
        *,
        mld_weight: float = 10.0,
        dependency_weight: float = 1.0,
        base_loss: nn.Module | None = None,
        level: norder.Level = "both",
        delta: float = 1.0,
        batch_dependency: norder.BatchDependency = "mean_square",
        normalization: norder.Normalization = "sequences",
        temperature: float = 1.0,
        samples: int | None = None,
        backend: norder.Backend = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.mld_weight = check_number("mld_weight", mld_weight, minimum=0.0)
        self.dependency_weight = check_number("dependency_weight", dependency_weight, minimum=0.0)
        if base_loss is not None and not callable(base_loss):
            raise TypeError(
                f"base_loss: expected a callable of (input, target) or None, got {type(base_loss).__name__}"
            )
        self.dependency = MultiOrderDependencyLoss(
            orders,
            level=level,
            delta=delta,
            batch_dependency=batch_dependency,
            normalization=normalization,
            samples=samples,
            backend=backend,
            group=group,
        )
        self._settings = self.dependency.settings
        self.group = self.dependency.group
        self.base_loss = BinaryCrossEntropyLoss(group=self.group) if base_loss is None else base_loss
        self.mld = MLDLoss(temperature=temperature, group=self.group)
        self._batch_of_logits, self._batch_of_probabilities = (
            self._settings._replace(level="batch", inputs=inputs) for inputs in ("logits", "probabilities")
        )

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the objective, the sum of :meth:`terms`."""
        base, *others = self.terms(student, teacher, target, mask).values()
        return sum(others, base)

    def terms(self, student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted summands, for logging: "base", "mld", and "instance" and "batch" as far as used.

        They are tensors in the graph; nothing is synchronised until the caller reads one.
        """
        self._check(student, teacher, target, mask)
        if self._shares_a_pass():
            if norder.wants_kernels(self._settings, student.device):
                return self._terms_by_kernel(student, teacher, target, mask)
            if mask is None:
                return self._terms_in_one_pass(student, teacher, target)
        # Here, so that the gradients of all terms are added in what is computed in.
        dtype = check_pair(student, teacher, self._settings.level)
        student, teacher = student.to(dtype), teacher.to(dtype)
        dependency = self.dependency.terms(student, teacher, mask)
        return {
            "base": self.base_loss(student, target),
            "mld": self.mld_weight * self.mld(student, teacher, mask),
            **{name: self.dependency_weight * term for name, term in dependency.items()},
        }

    def gradient_norms(
        self, student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the Euclidean norm of each weighted term's gradient to the student's logits.

        This is what a term weighs in training; the values of losses do not tell. It has no side effect: no
        ``.grad`` is written. With ``group`` the logits are those of all ranks, each of which has to call.

        Example:
            >>> import torch
            >>> from mlcorr.systems.mdkd import MDKDObjective
            >>> norms = MDKDObjective().gradient_norms(
            ...     torch.zeros(4, 20), torch.randn(4, 20), torch.randint(2, (4, 20))
            ... )
            >>> list(norms)
            ['base', 'mld', 'instance', 'batch']
        """
        self._check(student, teacher, target, mask)
        with torch.enable_grad():
            leaf = student.detach().requires_grad_()
            terms = self.terms(leaf, teacher.detach(), target, mask)
            norms = {
                name: torch.linalg.vector_norm(torch.autograd.grad(term, leaf, retain_graph=True)[0])
                for name, term in terms.items()
            }
        if self.group is None:
            return norms
        # A rank's gradient is that of the global value to its own logits, times the number of ranks.
        ranks = dist.get_world_size(self.group)
        return {name: global_sum((norm / ranks).square(), self.group).sqrt() for name, norm in norms.items()}

    def _shares_a_pass(self) -> bool:
        """Return whether base loss, MLD and instance level are what one pass computes together."""
        base_loss, settings = self.base_loss, self._settings
        return (
            type(base_loss) is BinaryCrossEntropyLoss
            and base_loss.reduction == "batchmean"
            and base_loss.group is None
            and self.mld.temperature == 1.0
            and settings.level != "batch"
            and settings.group is None
            and norder.in_closed_form(settings, "instance", 1)  # which does not depend on the number of rows
        )

    def _check(self, student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None) -> None:
        check_pair(student, teacher, self._settings.level)
        check_target("target", target, "student", student)
        if mask is not None:
            check_mask("mask", mask, "student", student)
        norder.check_orders(self._settings.orders, student.shape[-1])

    def _terms_by_kernel(
        self, student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        settings = self._settings
        plan: norder.Coefficients | Tensor
        rows: Tensor | int
        if mask is None:
            rows = max(math.prod(student.shape[:-1]), 1)
            plan = norder.coefficients(settings.orders, student.shape[-1]).scaled(self._scale(student) / rows)
        else:
            dtype = compute_dtype(student, teacher)
            rows = mask.any(dim=-1).sum().clamp(min=1).to(dtype)
            plan = self.dependency_weight * norder.plan_of_rows(mask, settings, dtype)
        of_rows = norder.row_terms(student, teacher, plan, mask=mask, target=target, mld=True)
        total = norder.RowTerms(*of_rows.reshape(-1, 4).sum(dim=0).unbind())
        named = {
            "base": total.base / total.known.clamp(min=1) * UNIT,
            "mld": total.mld * (self.mld_weight / rows * UNIT),
            "instance": total.instance,
        }
        return self._with_batch(named, student, teacher, mask, self._batch_of_logits)

    def _terms_in_one_pass(self, student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, Tensor]:
        settings = self._settings
        dtype = compute_dtype(student, teacher)
        labels, known = split_target(target, dtype)
        rows = max(math.prod(student.shape[:-1]), 1)
        target_weight: Tensor | float = 1 / rows
        if known is not None:
            counted = known.to(dtype)
            target_weight = counted.div_(counted.amax(dim=-1).sum().clamp(min=1))
        terms = norder.objective_terms(
            student.to(dtype),
            teacher.to(dtype),
            labels,
            target_weight,
            self.mld_weight / rows,
            norder.coefficients(settings.orders, student.shape[-1]).scaled(self._scale(student) / rows),
        )
        named = {"base": terms.base, "mld": terms.mld, "instance": terms.instance}
        return self._with_batch(named, terms.student, terms.teacher, None, self._batch_of_probabilities)

    def _scale(self, student: Tensor) -> float:
        return self.dependency_weight * (student.shape[-1] if self._settings.normalization == "labels" else 1)

    def _with_batch(
        self, named: dict[str, Tensor], student: Tensor, teacher: Tensor, mask: Tensor | None, settings: norder.Settings
    ) -> dict[str, Tensor]:
        if self._settings.level == "both":
            dependency = norder.dependency_terms(student, teacher, mask, settings)
            named["batch"] = self.dependency_weight * dependency["batch"]
        return named

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"mld_weight={self.mld_weight:g}, dependency_weight={self.dependency_weight:g}"
