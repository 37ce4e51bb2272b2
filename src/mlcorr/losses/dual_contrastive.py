"""SADCL's dual contrastive loss: features against one another and a memory bank, and against prototypes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import check_choice, check_flag, check_floating, check_integer, check_number, check_same
from mlcorr._distributed import SharesGroup, check_group, global_sum
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype
from mlcorr.losses.memory_bank import GlobalMemoryBank, MemoryBank, PerLabelMemoryBank
from mlcorr.losses.prototype_contrastive import (
    LOWEST_TEMPERATURE,
    check_features,
    check_prototypes,
    class_terms,
    of_classes,
)
from mlcorr.losses.sample_contrastive import keys_of_ranks, sample_contrastive_terms
from mlcorr.ops.contrast import widen_vectors

Bank: TypeAlias = Literal["per_label", "global"]


class DualContrastiveLoss(SharesGroup, WholeState):
    r"""``sample_weight``·S2S + ``prototype_weight``·P2S over label-level features, with a memory bank and prototypes.

    S2S is :func:`mlcorr.functional.sample_contrastive_loss` of the active features, those of labels that are 1, with
    the bank's as further keys. P2S is :func:`mlcorr.functional.prototype_contrastive_loss` of all known features.

    The bank holds features of past batches, without gradient: those of labels that are 1, whose score is above
    ``bank_threshold``, and that are finite. A forward pass in training mode writes it after the loss has used it; in
    evaluation mode it is only read. So a training-mode call does not belong into an activation checkpoint, which would
    run it again on what it has written, nor under ``torch.func.grad`` or ``torch.func.vmap``, which refuse it.

    Args:
        num_labels: L.
        dim: Dimension D of the features.
        temperature: Of S2S, at least 1e-12.
        prototype_temperature: Of P2S, likewise.
        sample_weight: >= 0; 100 is the official code's, beside 1000 on the classification loss.
        prototype_weight: >= 0; 50 likewise.
        bank: "per_label", a ring of ``bank_size`` features for every label; "global", one ring of ``bank_size`` for
            all, for many labels (10,000 labels of 32 features of 1024 numbers are 1.3 GB); or None.
        bank_size: Features a ring holds.
        bank_threshold: In [0, 1]; scores must be above it to be written.
        bank_warmup_steps: First forward passes in training mode in which the bank is filled but not used.
        max_active: Number K of active features (of a rank) that are compared at most, the first ones, in the order of
            images and labels; more are left out of S2S and of the bank, and counted in :meth:`terms`. With it all
            shapes follow from that of the batch: no synchronisation, one compiled graph for any number of positives,
            and ``torch.func.vmap`` over targets, which is refused without.
            None takes exactly the active ones in eager mode, at one synchronisation a step on a GPU, and pads to B·L in
            compiled code, where (B·L)² similarities are formed for the sake of A², A being the number of active
            features.
        group: Process group over which the batch is spread, or None. Its other ranks' active features are keys with
            gradient, all ranks return the value of the whole batch, and DistributedDataParallel's mean of the
            gradients is that of the whole batch. All ranks write the same bank, so that its ``broadcast_buffers``
            changes nothing; without ``group`` it would replace every rank's bank by rank 0's.
        own_prototypes: Whether the module has learnable prototypes; False where each call passes some, as
            :class:`mlcorr.systems.sadcl.SADCL` does.

    Attributes:
        prototypes: Parameter (L, D), or None.
        bank: The bank, in ``state_dict()`` as it is, so that a resumed run goes on bit for bit; or None. Its floating
            dtype is the module's.
        steps: () int64, forward passes in training mode so far.

    Shape:
        - z: (B, L, D), of any length; float16, bfloat16, float32 or float64.
        - targets: (B, L), 1, 0, or anything else, such as −1, for unknown labels, which count nowhere.
        - scores: probabilities (B, L), or None to write without a filter.
        - prototypes: (L, D); None takes the module's own.
        - Output: (), float32, or float64 if z, the prototypes or the bank is. 0 without a positive.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A number outside its range, shapes or devices that do not fit, or no prototypes.

    Differs from the authors' code:
        Theirs loses most anchors to a mix of two orders of rows, adds terms of classes without positives, and fails
        without positives. Its bank has a slot for every label and place in the batch, so that a batch of another
        size fails, and is a parameter, which an average of weights averages. Here projected features are stored;
        there what the projector takes, which is projected anew with gradient at each step.

    Reference:
        Ma et al., "Semantic-Aware Dual Contrastive Learning for Multi-Label Image Classification", ECAI 2023.

    Example:
        >>> import torch
        >>> from mlcorr import DualContrastiveLoss
        >>> loss = DualContrastiveLoss(num_labels=5, dim=16)
        >>> z = torch.randn(8, 5, 16, requires_grad=True)
        >>> targets, scores = torch.randint(-1, 2, (8, 5)), torch.rand(8, 5)
        >>> loss(z, targets, scores).backward()
        >>> z.grad.shape, loss.prototypes.grad.shape
        (torch.Size([8, 5, 16]), torch.Size([5, 16]))
    """

    steps: Tensor

    def __init__(
        self,
        num_labels: int,
        dim: int,
        *,
        temperature: float = 0.2,
        prototype_temperature: float = 0.07,
        sample_weight: float = 100.0,
        prototype_weight: float = 50.0,
        bank: Bank | None = "per_label",
        bank_size: int = 32,
        bank_threshold: float = 0.8,
        bank_warmup_steps: int = 0,
        max_active: int | None = None,
        group: dist.ProcessGroup | None = None,
        own_prototypes: bool = True,
    ) -> None:
        super().__init__()
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.dim = check_integer("dim", dim, minimum=1)
        self.temperature = check_number("temperature", temperature, minimum=LOWEST_TEMPERATURE)
        self.prototype_temperature = check_number(
            "prototype_temperature", prototype_temperature, minimum=LOWEST_TEMPERATURE
        )
        self.sample_weight = check_number("sample_weight", sample_weight, minimum=0.0)
        self.prototype_weight = check_number("prototype_weight", prototype_weight, minimum=0.0)
        bank_size = check_integer("bank_size", bank_size, minimum=1)
        self.bank_threshold = check_number("bank_threshold", bank_threshold, minimum=0.0, maximum=1.0)
        self.bank_warmup_steps = check_integer("bank_warmup_steps", bank_warmup_steps, minimum=0)
        self.max_active = None if max_active is None else check_integer("max_active", max_active, minimum=1)
        self.group = check_group("group", group)
        check_flag("own_prototypes", own_prototypes)
        self.bank: MemoryBank | None = None
        if bank is not None:
            check_choice("bank", bank, ("per_label", "global"))
            per_label = bank == "per_label"
            self.bank = (
                PerLabelMemoryBank(num_labels, bank_size, dim) if per_label else GlobalMemoryBank(bank_size, dim)
            )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_parameter("prototypes", None)
        if own_prototypes:
            self.prototypes = nn.Parameter(torch.empty(num_labels, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the module's own prototypes anew, of length about one."""
        if self.prototypes is not None:
            nn.init.normal_(self.prototypes, std=self.dim**-0.5)

    def reset_bank(self) -> None:
        """Forget the bank and the steps of its warm-up."""
        if self.bank is not None:
            self.bank.reset()
        self.steps.zero_()

    def forward(
        self, z: Tensor, targets: Tensor, scores: Tensor | None = None, *, prototypes: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of the two terms, and write the bank in training mode."""
        terms, x, labels = self._compare(z, targets, scores, prototypes)
        if self.training:
            if self.bank is not None:
                self.bank.write(x, labels)
            self.steps.add_(1)
        return self.sample_weight * terms["sample"] + self.prototype_weight * terms["prototype"]

    def terms(
        self, z: Tensor, targets: Tensor, scores: Tensor | None = None, *, prototypes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return what the loss consists of, for logging; the bank stays as it is.

        "sample" and "prototype" are S2S and P2S without their weights, in the graph. The others are counts, int64:
        "active" features that were compared, of them "anchors" with a positive, "classes" with a prototype term, and
        features "dropped" beyond ``max_active``. Nothing is synchronised until the caller reads one.
        """
        return self._compare(z, targets, scores, prototypes)[0]

    def _compare(
        self, z: Tensor, targets: Tensor, scores: Tensor | None, prototypes: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the terms, and embeddings and labels of all ranks to write, −1 where one is not to be written."""
        prototypes = self._check(z, targets, scores, prototypes)
        bank = () if self.bank is None else self.bank.keys()[:1]
        dtype = compute_dtype(z, prototypes, *bank)
        z = widen_vectors(z, dtype)  # once, so that the gradients of both terms and all ranks are added in it
        x, labels, admitted, dropped = self._active(z, targets, scores)
        written, written_labels = x, torch.where(admitted, labels, -1)
        keys, key_labels = x[:0], labels[:0]
        if self.group is not None:
            keys, key_labels, written_labels = keys_of_ranks(x, labels, self.group, written_labels)
            written = keys
        if self.bank is not None:
            banked, banked_labels = self.bank.keys()
            banked_labels = torch.where(self.steps >= self.bank_warmup_steps, banked_labels, -1)
            keys = torch.cat([keys, banked.to(dtype)])
            key_labels = torch.cat([key_labels, banked_labels])
        total, anchors = sample_contrastive_terms(x, labels, keys, key_labels, self.num_labels, self.temperature)
        active = (labels >= 0).sum()
        of_labels = class_terms(z, prototypes, targets, self.prototype_temperature, self.group)
        total, anchors, active, dropped = (global_sum(own, self.group) for own in (total, anchors, active, dropped))
        prototype, classes, positives = of_classes(of_labels)
        terms = {
            "sample": total / anchors.clamp(min=1),
            "prototype": prototype / positives.clamp(min=1),
            "active": active,
            "anchors": anchors,
            "classes": classes,
            "dropped": dropped,
        }
        return terms, written, written_labels

    def _active(self, z: Tensor, targets: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the active features (A, D), their labels, whether the bank takes them, and how many were dropped.

        With fixed shapes, A is the room for them: what is left of it has label −1.
        """
        is_active = (targets == 1).flatten()
        features = z.flatten(0, 1)
        if self.max_active is None and not torch.compiler.is_compiling():
            places = is_active.nonzero().squeeze(1)
        else:
            places = is_active.logical_not().to(torch.uint8).argsort(stable=True)[: self.max_active]
        given = is_active[places]
        x = torch.where(given.unsqueeze(1), features[places], 0.0)
        labels = torch.where(given, places % self.num_labels, -1)
        admitted = given if scores is None else given & (scores.flatten()[places] > self.bank_threshold)
        return x, labels, admitted, is_active.sum() - given.sum()

    def _check(self, z: Tensor, targets: Tensor, scores: Tensor | None, prototypes: Tensor | None) -> Tensor:
        check_features(z, targets)
        if z.shape[1:] != (self.num_labels, self.dim):
            raise ValueError(f"z: expected the shape (B, {self.num_labels}, {self.dim}), got {tuple(z.shape)}")
        if scores is not None:
            check_same("scores", check_floating("scores", scores), "targets", targets)
        if prototypes is None:
            prototypes = self.prototypes
            if prototypes is None:
                raise ValueError("prototypes: expected a tensor, since the loss has none of its own, got None")
        check_prototypes(prototypes, z)
        if self.steps.device != z.device:
            raise ValueError(f"z: expected the device of the loss, {self.steps.device}, got {z.device}")
        return prototypes

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"num_labels={self.num_labels}, dim={self.dim}, temperature={self.temperature:g}, "
            f"prototype_temperature={self.prototype_temperature:g}, sample_weight={self.sample_weight:g}, "
            f"prototype_weight={self.prototype_weight:g}, bank_threshold={self.bank_threshold:g}, "
            f"bank_warmup_steps={self.bank_warmup_steps}, max_active={self.max_active}"
        )
