"""SADCL: semantic-aware label features with dual contrastive learning, the whole network over any backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import check_flag, check_floating, check_integer, check_module, check_number
from mlcorr._distributed import SharesGroup, check_group
from mlcorr._loading import WholeState
from mlcorr._precision import compute_dtype
from mlcorr._sharding import copy_whole, reshard, whole
from mlcorr._targets import check_target
from mlcorr.layers import GroupWiseLinear
from mlcorr.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from mlcorr.losses.dual_contrastive import DualContrastiveLoss
from mlcorr.systems._label_queries import LabelQueries, start_weights
from mlcorr.systems._outputs import check_output
from mlcorr.systems._positions import sine_cosine_positions
from mlcorr.systems._prototypes import PrototypeMeans, check_batches, evaluating
from mlcorr.systems._tokens import attention_padding, check_places, tokens_of


class SADCLOutput(NamedTuple):
    """What :class:`SADCL` returns; the prediction is ``logits.sigmoid()``.

    Attributes:
        logits: (B, L).
        label_features: (B, L, d), as the classifier takes them.
        embeddings: (B, L, p), the projected label features, to train with; None with ``embed=False``.
    """

    logits: Tensor
    label_features: Tensor
    embeddings: Tensor | None


class SADCL(SharesGroup, WholeState):
    r"""Encoder, decoder with a query for each label, one classifier per label; two contrastive losses in training.

    The defaults are those of the authors' code.

    Args:
        backbone: A module from images to a feature map (B, D, H, W) or to tokens (B, N, D), such as
            :func:`mlcorr.systems.backbones.from_transformers` makes. ``torch.nn.Identity()`` takes features.
        in_channels: D.
        num_labels: L.
        dim: d, the width of tokens and label features; None is D. Where it differs from D, a 1 × 1 convolution comes
            first.
        proj_dim: p, the width of the embeddings that are contrasted.
        encoder_layers: Layers of the transformer encoder on the tokens; 0 leaves it out.
        decoder_layers: Layers in which the labels' queries attend to the tokens; at least 1.
        heads: Heads of every attention; a divisor of d.
        width: Hidden width of the feed-forward parts.
        dropout: In [0, 1].
        positions: Whether to add sines and cosines of row and column to the queries and keys that come from a map; d
            must then be divisible by 4. Tokens have no row and column and get none: a transformer that makes tokens
            has put their positions into them.
        proj_width: Hidden width of the projector.
        base_loss: What learns to classify: a callable of (logits, target) that returns a scalar, such as
            :class:`mlcorr.AsymmetricLoss`. None is binary cross-entropy, the mean over known entries.
        classification_weight: Factor >= 0 on it.
        sample_weight: Factor >= 0 on the contrast between label features (S2S).
        prototype_weight: Factor >= 0 on the contrast between prototypes and label features (P2S).
        temperature: Of S2S; see :class:`mlcorr.DualContrastiveLoss`, also for the following.
        prototype_temperature: Of P2S.
        bank: "per_label", "global" or None, the memory of earlier embeddings.
        bank_size: Its size, of each label or in all.
        bank_threshold: A positive enters it whose probability is above this.
        bank_warmup_steps: Steps before it is used.
        max_active: The most positives of a batch that are contrasted, for shapes that never change; None is all.
        group: Process group over which both contrastive losses are global, and the default base loss too. A
            ``base_loss`` of yours is of the rank's own rows.

    Attributes:
        contrast: True. Set it to False to train without contrast (stage one), and back to True for the rest. As with
            the training mode, it is not in ``state_dict()``: set it at the start of every epoch, from the epoch's
            number, and a resumed run has it right. Parameters that only the contrast uses get gradients of 0
            meanwhile, so that DistributedDataParallel waits for none.
        prototypes: The parameter (L, d), in the space of the label features; random until
            :meth:`initialize_prototypes`.

    Shape:
        - images: what the backbone takes; ``valid``: boolean (B, N) or None, False where a place is padding. An image
          without a valid place has finite outputs that mean nothing.
        - Output: :class:`SADCLOutput`.

    Raises:
        TypeError: An argument of the wrong type; those of the parts.
        ValueError: A number outside its range, or at the first call features with other channels than
            ``in_channels``; those of the parts.

    Differs from the authors' code:
        Eq. 4 is computed for all anchors; the code compares rows in one order with a mask in another and so keeps few
        of them. Classes without positives, empty batches and batches of any size work. The memory is a ring of
        projected embeddings in buffers, not a frozen parameter of the batch's shape. Positions are sines and cosines
        of the plain row and column number.

    Reference:
        Ma et al., "Semantic-Aware Dual Contrastive Learning for Multi-Label Image Classification", ECAI 2023.

    Example:
        >>> import torch
        >>> from mlcorr.systems.sadcl import SADCL
        >>> backbone = torch.nn.Conv2d(3, 16, kernel_size=8, stride=8)
        >>> model = SADCL(backbone, in_channels=16, num_labels=5, proj_dim=8, width=32, proj_width=16)
        >>> images, target = torch.randn(2, 3, 32, 48), torch.tensor([[1, 0, 0, 1, -1], [1, 1, 0, 0, 0]])
        >>> output = model(images)
        >>> output.logits.shape, output.label_features.shape, output.embeddings.shape
        (torch.Size([2, 5]), torch.Size([2, 5, 16]), torch.Size([2, 5, 8]))
        >>> model.objective(output, target).backward()
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_channels: int,
        num_labels: int,
        *,
        dim: int | None = None,
        proj_dim: int = 1024,
        encoder_layers: int = 1,
        decoder_layers: int = 2,
        heads: int = 4,
        width: int = 8192,
        dropout: float = 0.1,
        positions: bool = True,
        proj_width: int = 2048,
        base_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        classification_weight: float = 1000.0,
        sample_weight: float = 100.0,
        prototype_weight: float = 50.0,
        temperature: float = 0.2,
        prototype_temperature: float = 0.07,
        bank: Literal["per_label", "global"] | None = "per_label",
        bank_size: int = 32,
        bank_threshold: float = 0.8,
        bank_warmup_steps: int = 0,
        max_active: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_module("backbone", backbone)
        self.in_channels = check_integer("in_channels", in_channels, minimum=1)
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.dim = self.in_channels if dim is None else check_integer("dim", dim, minimum=1)
        self.proj_dim = check_integer("proj_dim", proj_dim, minimum=1)
        check_integer("proj_width", proj_width, minimum=1)
        self.positions = check_flag("positions", positions)
        if positions and self.dim % 4:
            raise ValueError(f"positions: expected dim divisible by 4, got {self.dim}")
        if base_loss is not None and not callable(base_loss):
            raise TypeError(
                f"base_loss: expected a callable of (input, target) or None, got {type(base_loss).__name__}"
            )
        self.classification_weight = check_number("classification_weight", classification_weight, minimum=0.0)
        self.sample_weight = check_number("sample_weight", sample_weight, minimum=0.0)
        self.prototype_weight = check_number("prototype_weight", prototype_weight, minimum=0.0)
        self.contrast = True
        self.group = check_group("group", group)
        contrastive_loss = DualContrastiveLoss(  # first, since it checks its arguments and draws nothing
            self.num_labels,
            self.proj_dim,
            temperature=temperature,
            prototype_temperature=prototype_temperature,
            sample_weight=self.sample_weight,
            prototype_weight=self.prototype_weight,
            bank=bank,
            bank_size=bank_size,
            bank_threshold=bank_threshold,
            bank_warmup_steps=bank_warmup_steps,
            max_active=max_active,
            group=self.group,
            own_prototypes=False,
        )

        self.backbone = backbone
        self.input_projection = nn.Identity() if self.dim == self.in_channels else nn.Linear(in_channels, self.dim)
        self.label_queries = LabelQueries(
            self.num_labels,
            self.dim,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            heads=heads,
            width=width,
            dropout=dropout,
        )
        self.classifier = GroupWiseLinear(self.num_labels, self.dim)
        self.projector = nn.Sequential(nn.Linear(self.dim, proj_width), nn.ReLU(), nn.Linear(proj_width, proj_dim))
        self.prototypes = nn.Parameter(torch.empty(self.num_labels, self.dim))
        self.base_loss = base_loss
        self.contrastive_loss = contrastive_loss
        self._cross_entropy = BinaryCrossEntropyLoss(reduction="mean", group=self.group)
        start_weights(self.input_projection)
        start_weights(self.projector)
        nn.init.normal_(self.prototypes)  # about as long as a label feature, which a layer norm gives out

    def forward(self, images: Tensor, valid: Tensor | None = None, *, embed: bool = True) -> SADCLOutput:
        """Return logits, label features and embeddings; without the last for inference.

        Args:
            images: What the backbone takes.
            valid: Boolean (B, N) or None, False where a place is padding.
            embed: False leaves the projector out.
        """
        check_places(valid, images)
        check_flag("embed", embed)
        tokens, size = tokens_of(self.backbone(images), self.in_channels, valid, classifier=self.classifier)
        tokens = self.input_projection(tokens)
        places = None
        if self.positions and size is not None:
            places = sine_cosine_positions(*size, self.dim, like=tokens)
        features = self.label_queries(tokens, places, attention_padding(valid))
        logits = self.classifier(features)
        if not embed:
            return SADCLOutput(logits, features, None)
        # All parameters are used here, the prototypes too, which the objective projects: DistributedDataParallel can
        # then tell those of the backbone that are not.
        return SADCLOutput(logits, features, self.projector(features) + _nothing(self.prototypes))

    def objective(self, output: SADCLOutput, target: Tensor) -> Tensor:
        """Return the sum of the weighted classification loss and, with :attr:`contrast`, S2S and P2S.

        In training mode it then writes this batch's confident positives into the memory bank.

        Args:
            output: What :meth:`forward` returned.
            target: (B, L), 0/1; −1 is unknown and counts nowhere.

        Raises:
            ValueError: With :attr:`contrast`, an output without embeddings; shapes that do not fit.
        """
        self._check_output(output, target)
        base = self._base(output.logits, target)
        if not self.contrast:
            return base if output.embeddings is None else base + _nothing(output.embeddings)
        embeddings, prototypes, scores = self._contrasted(output)
        contrast: Tensor = self.contrastive_loss(embeddings, target, scores, prototypes=prototypes)
        return base + contrast

    def terms(self, output: SADCLOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted summands of the objective, and counts, for logging; nothing is written to the bank.

        They are tensors in the graph, and nothing is synchronised until the caller reads one. "base", "sample" (S2S)
        and "prototype" (P2S) add up to the objective; the counts are those of
        :meth:`mlcorr.DualContrastiveLoss.terms`. Without :attr:`contrast` there is "base" alone.
        """
        self._check_output(output, target)
        base = {"base": self._base(output.logits, target)}
        if not self.contrast:
            return base
        embeddings, prototypes, scores = self._contrasted(output)
        terms = self.contrastive_loss.terms(embeddings, target, scores, prototypes=prototypes)
        weighted = {
            "sample": self.sample_weight * terms["sample"],
            "prototype": self.prototype_weight * terms["prototype"],
        }
        return {**base, **terms, **weighted}

    def initialize_prototypes(self, batches: Iterable[Sequence[Tensor]], *, threshold: float = 0.85) -> None:
        """Set each prototype to the mean feature of its label's positives that the model is sure of (Eq. 5).

        To be called once, between training without and with contrast, with the whole training set. The model runs in
        evaluation mode without gradients; parameters change only when all batches went well. A label without a sure
        positive takes the mean of all its positives. One without any positive keeps the direction it has, at the
        length of the mean of the other prototypes. A warning tells of both.

        Args:
            batches: Pairs (images, target) on the model's device, or triples with ``valid``. Of a group, every rank
                passes its own share, in any number of batches; as many as the others, where FSDP2 has the model in
                shards.
            threshold: A positive counts whose probability is at least this, in [0, 1].

        Raises:
            TypeError: ``threshold`` is no number, or a batch no pair or triple.
            ValueError: No batch has a positive, or a label feature is not finite.
        """
        means = PrototypeMeans(self.prototypes, check_number("threshold", threshold, minimum=0.0, maximum=1.0))
        with evaluating(self), torch.no_grad():
            for batch in check_batches(batches):
                images, target, *valid = batch
                output = self(images, *valid, embed=False)
                means.update(output.label_features, output.logits, target)
            reshard(self)  # what is gathered for a forward pass is not what stays
            copy_whole(self.prototypes, means.result(whole(self.prototypes), self.group))

    def _base(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted classification loss."""
        base_loss = self._cross_entropy if self.base_loss is None else self.base_loss
        return self.classification_weight * base_loss(logits, target)

    def _check_output(self, output: object, target: object) -> None:
        check_output(output, SADCLOutput, "logits")
        found = cast(SADCLOutput, output)
        if found.logits.shape[1] != self.num_labels:
            raise ValueError(f"output.logits: expected {self.num_labels} labels, got {found.logits.shape[1]}")
        check_target("target", target, "logits", found.logits)
        if found.embeddings is None:
            if self.contrast:
                raise ValueError("output: expected embeddings to contrast, got None: call the model with embed=True")
            return
        shape, own = (*found.logits.shape, self.proj_dim), check_floating("output.embeddings", found.embeddings)
        if own.shape != shape:
            raise ValueError(f"output.embeddings: expected the shape (B, L, p) = {shape}, got {tuple(own.shape)}")

    def _contrasted(self, output: SADCLOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings, prototypes and the probabilities by which positives enter the bank."""
        assert output.embeddings is not None  # _check_output saw to it
        scores = output.logits.detach().to(compute_dtype(output.logits)).sigmoid()
        return output.embeddings, self.projector(self.prototypes), scores

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"in_channels={self.in_channels}, num_labels={self.num_labels}, dim={self.dim}, "
            f"positions={self.positions}, classification_weight={self.classification_weight:g}"
        )


def _nothing(x: Tensor) -> Tensor:
    """Return 0 that depends on ``x``, with a gradient of 0 whatever ``x`` is."""
    return torch.where(torch.zeros_like(x, dtype=torch.bool), x, 0.0).sum()
