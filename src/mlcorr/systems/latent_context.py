"""Label correlations with latent context, from full and from partial labels: the whole network over any backbone.

An independent design that satisfies every fact listed in the supplement of the paper; see the page of the system for
which they are. No fidelity to the main paper is claimed beyond those facts, and the supplement's accuracy figures are
reference points, not reproduction targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import (
    check_choice,
    check_flag,
    check_floating,
    check_integer,
    check_mask,
    check_module,
    check_number,
    check_same,
    check_tensor,
)
from mlcorr._distributed import SharesGroup, check_group, global_sum
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype
from mlcorr._targets import check_target, labels_and_known
from mlcorr.layers import GroupWiseLinear
from mlcorr.losses.asymmetric import AsymmetricLoss
from mlcorr.systems._hidden_labels import PartialLabels, PartialMode, draw_hidden
from mlcorr.systems._label_transformer import LabelTransformer
from mlcorr.systems._latent_units import FeatureFusion, Fusion, LatentUnits, softmax_over
from mlcorr.systems._outputs import check_output
from mlcorr.systems._tokens import check_places, rows_of, tokens_of

_BEST_BETA = (0.1, 0.5, 0.9), (0.1, 0.3, 0.4)  # of these shares of missing labels: Table 2 of the supplement


class LatentContextOutput(NamedTuple):
    """What :class:`LatentContext` returns; the prediction is ``logits.sigmoid()`` alone.

    Attributes:
        logits: (B, C).
        aux_logits: (B, C), of the class-aware features, which hear of no other label; to train with.
        partial_logits: (B, C), of the branch that was shown a part of the labels; None where it did not run.
        hide: (B, C) bool, the labels that it had to infer; None likewise.
        attention: (B, C, N), where each label looks; each row adds up to 1. N is H·W, row by row.
        context_attention: (B, C, N), where the context comes from that a label hears of, likewise, without gradient;
            it leaves the residual and feed-forward parts out of account. None without latent context.
        class_features: (B, C, D), class-aware.
        context_features: (B, C, D), context-aware; None without latent context.
        fused_features: (B, C, D), which the label transformer takes.
    """

    logits: Tensor
    aux_logits: Tensor
    partial_logits: Tensor | None
    hide: Tensor | None
    attention: Tensor
    context_attention: Tensor | None
    class_features: Tensor
    context_features: Tensor | None
    fused_features: Tensor


class LatentContext(SharesGroup, WholeState):
    r"""Class-aware features, latent context, their fusion, and a transformer over labels.

    In training a second branch is shown a random part of the known labels and infers the others; inference has
    neither that branch nor its parameters (:meth:`deploy`). Depth, mask ratio, α and β are the supplement's best.

    Args:
        backbone: A module from images to a feature map (B, in_channels, H, W) or to tokens (B, N, in_channels), such
            as :func:`mlcorr.systems.backbones.from_transformers` makes. ``torch.nn.Identity()`` takes features.
        in_channels: Number of the backbone's channels.
        num_labels: C.
        dim: D, the width of everything behind the backbone.
        units: Number of latent context units.
        depth: Layers of the label transformer; with 0 labels do not hear of each other.
        heads: Heads of every attention; a divisor of ``dim``.
        width: Hidden width of the feed-forward parts.
        dropout: In [0, 1].
        mask_ratio: r in [0, 1], the share of each image's known labels that the partial-label branch must infer,
            rounded up.
        alpha: Factor >= 0 on the loss of ``logits``.
        beta: Factor >= 0 on the loss of ``partial_logits``. With 0 the branch does not run and draws nothing, and its
            parameters are frozen (``model.partial.requires_grad_()`` frees them, for a β that is raised later).
            :func:`recommended_beta` says what did best where labels are missing.
        fusion: "gate", "sum" or "concat", how context joins the class-aware features; "none" leaves it out.
        partial_mode: "state" shows the branch the values of the labels that are not hidden; "feature" shows no values
            and takes the hidden labels' features away.
        share_encoder: Whether both branches share one label transformer. Apart, what the partial-label branch learns
            about labels reaches inference through the features alone.
        base_loss: A callable of (logits, target) that returns a loss for each entry (B, C), for all three terms. The
            target comes as floating point, with 0 at unknown labels, whose loss counts nowhere. None is the asymmetric
            loss with γ⁻ = 4, γ⁺ = 0, clip 0.05.
        group: Process group over which the means of the loss are global.

    Shape:
        - images: what the backbone takes; target: (B, C), 0/1 or soft, −1 is unknown.
        - hide: boolean (B, C) or None; valid: boolean (B, N) or None, False where a place is padding. An image without
          a valid place has finite outputs that mean nothing.
        - Output: :class:`LatentContextOutput`.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A number outside its range, or at the first call features with other channels than
            ``in_channels``.

    Differs from the authors' code:
        The main paper and its code were not used. The supplement states the structure and the best hyperparameters;
        it contains no equation. Those here are ours.

    Reference:
        Chen et al., "Modeling Label Correlations with Latent Context for Multi-Label Recognition", ECCV 2024,
        supplementary material.

    Example:
        >>> import torch
        >>> from mlcorr.systems.latent_context import LatentContext
        >>> backbone = torch.nn.Conv2d(3, 16, kernel_size=8, stride=8)
        >>> model = LatentContext(backbone, in_channels=16, num_labels=5, dim=16, units=4, width=32)
        >>> images, target = torch.randn(2, 3, 32, 48), torch.tensor([[1, 0, 0, 1, -1], [0, -1, -1, 0, 0]])
        >>> output = model(images, target)
        >>> output.logits.shape, output.attention.shape, output.hide.sum(1)
        (torch.Size([2, 5]), torch.Size([2, 5, 24]), tensor([1, 1]))
        >>> model.objective(output, target).backward()
        >>> model.deploy().eval()(images).logits.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_channels: int,
        num_labels: int,
        *,
        dim: int = 512,
        units: int = 64,
        depth: int = 3,
        heads: int = 8,
        width: int = 2048,
        dropout: float = 0.1,
        mask_ratio: float = 0.1,
        alpha: float = 1.0,
        beta: float = 0.1,
        fusion: Fusion = "gate",
        partial_mode: PartialMode = "state",
        share_encoder: bool = True,
        base_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_module("backbone", backbone)
        self.in_channels = check_integer("in_channels", in_channels, minimum=1)
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.dim = check_integer("dim", dim, minimum=1)
        check_integer("units", units, minimum=1)
        check_integer("depth", depth, minimum=0)
        if self.dim % check_integer("heads", heads, minimum=1):
            raise ValueError(f"heads: expected a divisor of dim, {dim}, got {heads}")
        check_integer("width", width, minimum=1)
        dropout = check_number("dropout", dropout, minimum=0.0, maximum=1.0)
        self.mask_ratio = check_number("mask_ratio", mask_ratio, minimum=0.0, maximum=1.0)
        self.alpha = check_number("alpha", alpha, minimum=0.0)
        self.beta = check_number("beta", beta, minimum=0.0)
        check_choice("fusion", fusion, ("gate", "sum", "concat", "none"))
        check_choice("partial_mode", partial_mode, ("state", "feature"))
        check_flag("share_encoder", share_encoder)
        if base_loss is not None and not callable(base_loss):
            raise TypeError(
                f"base_loss: expected a callable of (input, target) or None, got {type(base_loss).__name__}"
            )
        self.group = check_group("group", group)

        self.backbone = backbone
        self.projection = nn.Linear(self.in_channels, self.dim)
        self.norm = nn.LayerNorm(self.dim)
        self.class_map = nn.Linear(self.in_channels, self.num_labels, bias=False)  # a softmax would not see a bias
        self.aux_classifier = GroupWiseLinear(self.num_labels, self.dim)
        self.context = None if fusion == "none" else LatentUnits(self.dim, units, heads, width, dropout)
        self.fusion = FeatureFusion(self.dim, fusion)
        self.label_embeddings = nn.Parameter(0.02 * torch.randn(self.num_labels, self.dim))
        self.encoder = LabelTransformer(self.dim, depth, heads, width, dropout)
        self.classifier = GroupWiseLinear(self.num_labels, self.dim)
        own = None if share_encoder else LabelTransformer(self.dim, depth, heads, width, dropout)
        self.partial: PartialLabels | None = PartialLabels(self.num_labels, self.dim, partial_mode, own)
        if self.beta == 0:
            self.partial.requires_grad_(False)  # DistributedDataParallel would wait for gradients that never come
        self.base_loss = (
            AsymmetricLoss(gamma_neg=4.0, gamma_pos=0.0, clip=0.05, reduction="none")
            if base_loss is None
            else base_loss
        )

    def forward(
        self,
        images: Tensor,
        target: Tensor | None = None,
        *,
        hide: Tensor | None = None,
        valid: Tensor | None = None,
        return_partial: bool | None = None,
    ) -> LatentContextOutput:
        """Return logits, and what they are made of.

        Args:
            images: What the backbone takes.
            target: (B, C), −1 is unknown. Only the partial-label branch reads it: ``logits`` do not depend on it.
            hide: Boolean (B, C), which of the known labels that branch must infer; None draws them. Compiled regions
                and exact repetitions can so keep the draw outside.
            valid: Boolean (B, N) or None, False where a place is padding.
            return_partial: Whether the partial-label branch runs; None is in training, unless ``beta`` is 0.

        Raises:
            ValueError: The branch runs without ``target``, or was deployed away; shapes that do not fit.
        """
        if return_partial is not None:
            check_flag("return_partial", return_partial)
        else:
            return_partial = self.training and self.beta > 0 and self.partial is not None
        check_places(valid, images)
        if target is not None:  # even where nothing reads it
            self._check_target("target", images, target)
            if hide is not None:
                check_mask("hide", hide, "target", target)
        shown = self._check_partial(target) if return_partial else None

        tokens, _ = tokens_of(self.backbone(images), self.in_channels, valid, classifier=self.classifier)
        hidden = None
        if shown is not None:
            # Drawn when nothing can be wrong any more, so that an error leaves the random state as it was.
            hidden = draw_hidden(shown[1], self.mask_ratio) if hide is None else shown[1] & hide
        scores = self.class_map(tokens).transpose(1, 2)
        attention = softmax_over(scores, None if valid is None else valid.unsqueeze(1))
        tokens = self.norm(self.projection(tokens))
        class_features = attention.to(tokens.dtype) @ tokens
        aux_logits = self.aux_classifier(class_features)

        context, places = (None, None) if self.context is None else self.context(class_features, tokens, valid)
        fused = self.fusion(class_features, context)
        partial_logits = None
        if shown is None or hidden is None or self.partial is None:
            encoded = self.encoder(fused + self.label_embeddings.to(fused.dtype))
        else:
            told = self.partial(fused, *shown, hidden)
            if self.partial.encoder is None:
                both = torch.cat([fused, told]) + self.label_embeddings.to(fused.dtype)
                encoded, inferred = self.encoder(both).unflatten(0, (2, fused.shape[0])).unbind()
            else:
                encoded = self.encoder(fused + self.label_embeddings.to(fused.dtype))
                inferred = self.partial.encoder(told + self.label_embeddings.to(fused.dtype))
            partial_logits = self.partial.classifier(inferred)
        return LatentContextOutput(
            self.classifier(encoded),
            aux_logits,
            partial_logits,
            hidden,
            attention,
            places,
            class_features,
            context,
            fused,
        )

    def objective(self, output: LatentContextOutput, target: Tensor) -> Tensor:
        """Return the loss of ``aux_logits`` + α·that of ``logits`` + β·that of ``partial_logits``.

        The first two are means over known labels, the third over hidden ones; a mean over nothing is 0.

        Args:
            output: What :meth:`forward` returned.
            target: (B, C), 0/1 or soft; −1 is unknown and counts nowhere.

        Raises:
            ValueError: Shapes that do not fit, or ``base_loss`` returns no loss for each entry.
        """
        return torch.stack(list(self.terms(output, target).values())).sum()

    def terms(self, output: LatentContextOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted summands of the objective: "aux", "full", and "partial" where that branch ran.

        They are tensors in the graph, and nothing is synchronised until the caller reads one.
        """
        check_output(output, LatentContextOutput, "logits", "aux_logits")
        check_target("target", target, "logits", output.logits)
        if output.partial_logits is not None and output.hide is not None:
            check_floating("output.partial_logits", output.partial_logits)
            check_same("output.partial_logits", output.partial_logits, "output.logits", output.logits)
            check_mask("output.hide", output.hide, "output.logits", output.logits)
        labels, known = labels_and_known(target, compute_dtype(output.logits))
        parts = [("aux", 1.0, output.aux_logits, known), ("full", self.alpha, output.logits, known)]
        if output.partial_logits is not None and output.hide is not None:
            parts.append(("partial", self.beta, output.partial_logits, known & output.hide))
        totals = [torch.where(counted, self._entries(logits, labels), 0.0).sum() for _, _, logits, counted in parts]
        counts = [counted.sum().to(totals[0].dtype) for *_, counted in parts]
        sums, numbers = global_sum(torch.stack(totals + counts), self.group).chunk(2)
        means = sums / numbers.clamp(min=1)
        return {name: weight * mean for (name, weight, *_), mean in zip(parts, means, strict=True)}

    def logits_given(self, images: Tensor, known_labels: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return logits (B, C) for images of which some labels are known already, from the partial-label branch.

        Args:
            images: What the backbone takes.
            known_labels: (B, C), 0/1, −1 where the label is asked for.
            valid: Boolean (B, N) or None, False where a place is padding.

        Raises:
            ValueError: The branch was deployed away, or has ``partial_mode="feature"`` and is shown no values.
        """
        if self.partial is None:
            raise ValueError("logits_given: expected a model with the partial-label branch, got a deployed one")
        if self.partial.mode == "feature":
            raise ValueError("partial_mode: expected 'state' to show labels' values, got 'feature'")
        self._check_target("known_labels", images, known_labels)
        nothing = torch.zeros_like(known_labels, dtype=torch.bool)
        output = self(images, known_labels, hide=nothing, valid=valid, return_partial=True)
        logits: Tensor = output.partial_logits
        return logits

    def deploy(self) -> LatentContext:
        """Return a copy without what only the partial-label branch has: 2·D + C·D + C parameters by default.

        It loads the state of a deployed model, and that of a whole one, of which it takes its part.
        """
        return copy.deepcopy(self, {id(self.partial): None})

    def _check_partial(self, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return labels, and which are known, both (B, C)."""
        if self.partial is None:
            raise ValueError("return_partial: expected a model with the partial-label branch, got a deployed one")
        if target is None:
            raise ValueError(
                "target: expected the labels, for the partial-label branch, got None; a model with beta=0, or a "
                "deployed one, trains without"
            )
        return labels_and_known(target, compute_dtype(self.label_embeddings))

    def _check_target(self, name: str, images: object, target: object) -> None:
        rows = rows_of(images)
        if rows is None:
            rows = check_tensor(name, target, min_dim=1).shape[0]
        check_target(name, target, "logits", self.label_embeddings.new_empty(()).expand(rows, self.num_labels))

    def _entries(self, logits: Tensor, labels: Tensor) -> Tensor:
        entries = self.base_loss(logits, labels)
        if not isinstance(entries, Tensor) or entries.shape != logits.shape:
            found = tuple(entries.shape) if isinstance(entries, Tensor) else type(entries).__name__
            raise ValueError(
                f"base_loss: expected a loss for each entry, {tuple(logits.shape)}, got {found}; with reduction='none'?"
            )
        return entries.to(labels.dtype)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"in_channels={self.in_channels}, num_labels={self.num_labels}, dim={self.dim}, "
            f"mask_ratio={self.mask_ratio:g}, alpha={self.alpha:g}, beta={self.beta:g}"
        )


def recommended_beta(missing: float) -> float:
    """Return the β that did best in the supplement where this share of the labels is missing.

    Interpolated between the three entries of its Table 2 (0.1 at 10 %, 0.3 at 50 %, 0.4 at 90 %), and constant outside
    them; that its "ratio" is of missing labels is our reading. The table does not say which data it is of. Nothing in
    the library applies it by itself.

    Args:
        missing: Share of unknown labels, in [0, 1].

    Raises:
        TypeError: ``missing`` is no number.
        ValueError: It is outside [0, 1].

    Example:
        >>> from mlcorr.systems.latent_context import recommended_beta
        >>> [round(recommended_beta(missing), 2) for missing in (0.0, 0.3, 0.7, 1.0)]
        [0.1, 0.2, 0.35, 0.4]
    """
    missing = check_number("missing", missing, minimum=0.0, maximum=1.0)
    return float(np.interp(missing, *_BEST_BETA))
