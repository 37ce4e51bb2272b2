"""OPRL: object-purified representation learning, the whole network over any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import check_flag, check_integer, check_mask, check_module, check_number, check_sequence
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._drawing import drawing
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype
from mlcorr._targets import check_target
from mlcorr.layers import GroupWiseLinear
from mlcorr.layers.average_message_gcn import AverageMessageGCN, Diagonal, Message
from mlcorr.layers.bidirectional_refiner import BidirectionalRefiner, RefinementPath
from mlcorr.layers.spatial_purified_attention import SpatialPurifiedAttention
from mlcorr.losses.asymmetric import AsymmetricLoss
from mlcorr.systems._outputs import check_output
from mlcorr.systems._positions import sine_cosine_positions
from mlcorr.systems._tokens import attention_padding, check_places, tokens_of


class OPRLOutput(NamedTuple):
    """What :class:`OPRL` returns; the prediction is ``logits.sigmoid()`` alone.

    Attributes:
        logits: (B, C).
        aux_logits: (B, C), of the probability that the best-scored places give; to train with.
        attention: (B, C, N), where each label looks: 0 at dropped places, the rest adds up to 1. N is H·W, row by row.
        label_features: (B, C, dim), as the classifier takes them.
        valid_rows: (B,) bool, which images have a valid place; None where no mask was given.
    """

    logits: Tensor
    aux_logits: Tensor
    attention: Tensor
    label_features: Tensor
    valid_rows: Tensor | None


class OPRL(SharesGroup, WholeState):
    r"""Encoder, purified attention per label, messages between labels, refinement, one classifier per label.

    The defaults are the paper's; at 2048 channels and 80 labels the head has its 43.4 million parameters.

    Args:
        backbone: A module from images to a feature map (B, D, H, W) or to tokens (B, N, D), such as
            :func:`mlcorr.systems.backbones.from_transformers` makes. ``torch.nn.Identity()`` takes features.
        in_channels: D.
        num_labels: C.
        dim: Width of the labels' features; None is D.
        encoder_layers: Layers of the transformer encoder on the features; 0 leaves it out.
        encoder_heads: Heads of its attention; a divisor of D.
        encoder_width: Hidden width of its feed-forward part.
        encoder_dropout: Its dropout.
        positions: Whether to add sines and cosines of row and column to the features before the encoder. It needs a
            map, and D divisible by 4.
        tau: Share of places that each label's attention drops, in [0, 1]; 0 drops none.
        top_k: Number of places that the auxiliary probability is the mean of.
        cooccurrence: (C, C), dense or sparse, row i the probability of each label given label i
            (:meth:`mlcorr.LabelCooccurrence.conditional`); None is the identity until :meth:`set_cooccurrence`.
        schedule: The graph layers in order, each "cooccurrence" or "average"; an empty one passes no messages.
        diagonal: "one", "zero" or "counts", what stands on the diagonal of ``cooccurrence``.
        final_activation: Whether the last graph layer has its activation.
        hidden_dim: Hidden width of the refiner across channels; None is ``max(1, dim // 16)``.
        hidden_labels: Hidden width of the refiner across labels; None is C.
        dropout: Dropout in the refiner.
        paths: The refiner's paths, "representation" and "category"; an empty sequence refines nothing.
        gamma_neg: Of the asymmetric loss, for both terms.
        gamma_pos: Likewise.
        clip: Likewise.
        aux_weight: λ >= 0 on the auxiliary term; 0 trains without it.
        group: Process group that the batch is spread over, or None. Every rank returns the objective of the whole
            batch, and DistributedDataParallel's mean of the gradients is the whole batch's.

    Shape:
        - images: what the backbone takes; ``valid``: boolean (B, N) or None, False where a place is padding.
        - Output: :class:`OPRLOutput`.

    Raises:
        TypeError: An argument of the wrong type; those of the parts.
        ValueError: A number outside its range, or at the first call features with other channels than
            ``in_channels``; those of the parts.

    Reference:
        Zhao et al., "Towards Space and Semantics: Object-Purified Representation Learning for Multi-Label Image
        Classification", ACM Multimedia 2025.

    Example:
        >>> import torch
        >>> from mlcorr.systems.oprl import OPRL
        >>> backbone = torch.nn.Conv2d(3, 16, kernel_size=8, stride=8)
        >>> model = OPRL(backbone, in_channels=16, num_labels=5, encoder_width=32)
        >>> images, target = torch.randn(2, 3, 32, 48), torch.tensor([[1, 0, 0, 1, -1], [0, 1, 0, 0, 0]])
        >>> output = model(images)
        >>> output.logits.shape, output.attention.shape
        (torch.Size([2, 5]), torch.Size([2, 5, 24]))
        >>> model.objective(output, target).backward()
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_channels: int,
        num_labels: int,
        *,
        dim: int | None = None,
        encoder_layers: int = 1,
        encoder_heads: int = 8,
        encoder_width: int = 2048,
        encoder_dropout: float = 0.1,
        positions: bool = False,
        tau: float = 0.5,
        top_k: int = 3,
        cooccurrence: Tensor | None = None,
        schedule: Sequence[Message] = ("cooccurrence", "average", "cooccurrence"),
        diagonal: Diagonal = "one",
        final_activation: bool = True,
        hidden_dim: int | None = None,
        hidden_labels: int | None = None,
        dropout: float = 0.0,
        paths: Sequence[RefinementPath] = ("representation", "category"),
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        aux_weight: float = 1.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_module("backbone", backbone)
        self.in_channels = check_integer("in_channels", in_channels, minimum=1)
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        dim = self.in_channels if dim is None else check_integer("dim", dim, minimum=1)
        self.positions = check_flag("positions", positions)
        if positions and self.in_channels % 4:
            raise ValueError(f"positions: expected in_channels divisible by 4, got {in_channels}")
        self.aux_weight = check_number("aux_weight", aux_weight, minimum=0.0)

        paths = check_sequence("paths", paths)
        self.group = check_group("group", group)
        loss = AsymmetricLoss(
            gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, reduction="batchmean", group=self.group
        )

        self.backbone = backbone
        with drawing():
            self.encoder = _make_encoder(
                self.in_channels, encoder_layers, encoder_heads, encoder_width, encoder_dropout
            )
            self.purification = SpatialPurifiedAttention(self.in_channels, num_labels, dim, tau=tau, top_k=top_k)
            self.messages = AverageMessageGCN(
                dim,
                num_labels,
                cooccurrence,
                schedule=schedule,
                diagonal=diagonal,
                final_activation=final_activation,
            )
            self.refiner = (
                BidirectionalRefiner(
                    num_labels, dim, hidden_dim=hidden_dim, hidden_labels=hidden_labels, dropout=dropout, paths=paths
                )
                if paths
                else nn.Identity()
            )
        self.classifier = GroupWiseLinear(num_labels, dim)
        self.loss = loss

    def forward(self, images: Tensor, valid: Tensor | None = None) -> OPRLOutput:
        """Return logits, auxiliary logits, attention and label features of ``images``."""
        check_places(valid, images)
        tokens = self._tokens(self.backbone(images), valid)
        purified = self.purification(tokens, valid)
        features = self.refiner(self.messages(purified.features))
        return OPRLOutput(
            self.classifier(features), purified.aux_logits, purified.attention, features, purified.valid_rows
        )

    def objective(self, output: OPRLOutput, target: Tensor) -> Tensor:
        """Return ASL(logits) + ``aux_weight``·ASL(aux_logits), summed over labels, the mean over images.

        Args:
            output: What :meth:`forward` returned.
            target: (B, C), 0/1 or soft; −1 is unknown and counts in neither term. The auxiliary term leaves out
                images without a valid place.
        """
        base, *others = self.terms(output, target).values()
        return sum(others, base)

    def terms(self, output: OPRLOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted summands of the objective: "base", and "aux" unless it has no weight.

        They are tensors in the graph, and nothing is synchronised until the caller reads one.
        """
        check_output(output, OPRLOutput, "logits", *(("aux_logits",) if self.aux_weight else ()))
        check_target("target", target, "logits", output.logits)
        if output.valid_rows is not None:
            check_mask("output.valid_rows", output.valid_rows, "the rows of output.logits", output.logits[:, 0])
        base: Tensor = self.loss(output.logits, target)
        if self.aux_weight == 0:
            return {"base": base}
        if output.valid_rows is not None:
            signed = target.to(compute_dtype(output.aux_logits))
            target = torch.where(output.valid_rows.unsqueeze(-1), signed, -1.0)
        auxiliary: Tensor = self.loss(output.aux_logits, target)
        return {"base": base, "aux": self.aux_weight * auxiliary}

    def set_cooccurrence(self, cooccurrence: Tensor) -> None:
        """Replace the labels' co-occurrence (C, C); see :class:`mlcorr.AverageMessageGCN`."""
        self.messages.set_cooccurrence(cooccurrence)

    def _tokens(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """Return encoded tokens (B, N, D) of a map or of tokens."""
        tokens, size = tokens_of(features, self.in_channels, valid, classifier=self.classifier)
        if self.positions:
            if size is None:
                raise ValueError("positions: expected a map (B, D, H, W) from the backbone, got tokens without places")
            tokens = tokens + sine_cosine_positions(*size, self.in_channels, like=tokens)
        padding = attention_padding(valid)  # an image without a valid place is left out later
        for layer in self.encoder:
            tokens = layer(tokens, src_key_padding_mask=padding)
        return tokens

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"in_channels={self.in_channels}, positions={self.positions}, aux_weight={self.aux_weight:g}"


def _make_encoder(channels: int, layers: int, heads: int, width: int, dropout: float) -> nn.ModuleList:
    """Return post-norm transformer layers, each with its own first weights (`nn.TransformerEncoder` copies one)."""
    if check_integer("encoder_layers", layers, minimum=0) and channels % check_integer(
        "encoder_heads", heads, minimum=1
    ):
        raise ValueError(f"encoder_heads: expected a divisor of in_channels, {channels}, got {heads}")
    check_integer("encoder_width", width, minimum=1)
    dropout = check_number("encoder_dropout", dropout, minimum=0.0, maximum=1.0)
    return nn.ModuleList(
        nn.TransformerEncoderLayer(channels, heads, width, dropout, batch_first=True) for _ in range(layers)
    )
