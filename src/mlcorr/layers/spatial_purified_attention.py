"""Spatial-purified attention: each label looks only where its score map is above the map's own quantile."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcorr._checks import check_boolean, check_broadcastable, check_floating, check_integer, check_number
from mlcorr._loading import WholeState
from mlcorr._precision import check_plain, compute_dtype, no_autocast

_Count = TypeVar("_Count", int, Tensor)
_STEPS = 10**12  # tau is read as a whole number of these steps


def quantile_mask(scores: Tensor, tau: float, valid: Tensor | None = None) -> Tensor:
    r"""Where a score is at least the τ-quantile of its row: ``scores >= scores.quantile(tau, -1, keepdim=True)``.

    The quantile with linear interpolation stands at position τ·(N − 1) of the sorted row, so that what is at least as
    large is the (r + 1)-th smallest score and above, with r = ⌈τ·(N − 1)⌉. That rank is worked out in whole numbers,
    whence no rounding of τ·(N − 1) can drop or add a position, and the scores are only compared, never interpolated:
    N − r are kept, and more where scores tie with the (r + 1)-th smallest.

    Args:
        scores: (..., N), N >= 1; float16, bfloat16, float32 or float64.
        tau: Share in [0, 1] that is dropped: 0 keeps all, 1 the maximum and its ties.
        valid: Boolean, of a shape that broadcasts to the scores'; False is padding, which takes no part in the
            quantile and is never kept. A row with nothing valid keeps nothing.

    Returns:
        Boolean (..., N), without a gradient. A NaN is kept, so that it is seen in what is formed of the kept scores.

    Raises:
        TypeError: ``scores`` is no floating-point tensor, ``valid`` not boolean, or ``tau`` no number.
        ValueError: ``tau`` is outside [0, 1], a row is empty, or the shape or device of ``valid`` does not fit.

    Differs from the authors' code:
        There is none to compare with; the paper says "quantile" alone (Eq. 6). `torch.quantile` itself refuses half
        precision, and in float32 it drops one position too many where τ·(N − 1) is whole but τ is rounded up.

    Reference:
        Zhao et al., "Towards Space and Semantics: Object-Purified Representation Learning for Multi-Label Image
        Classification", ACM Multimedia 2025, Eq. 6.

    Example:
        >>> import torch
        >>> from mlcorr.functional import quantile_mask
        >>> quantile_mask(torch.tensor([0.1, 0.4, 0.2, 0.3]), tau=0.5)
        tensor([False,  True, False,  True])
    """
    tau = check_number("tau", tau, minimum=0.0, maximum=1.0)
    valid = _check_scores(scores, valid)
    scores = scores.detach()
    if valid is None:
        rank = _rank(tau, scores.shape[-1])
        if torch.are_deterministic_algorithms_enabled() or torch.compiler.is_exporting():
            # `kthvalue` names an index too, which of equal scores may be any, and which some devices therefore refuse;
            # ONNX has none.
            threshold = scores.topk(scores.shape[-1] - rank, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        else:
            threshold = scores.kthvalue(rank + 1, dim=-1, keepdim=True).values
        return ~(scores < threshold)
    scores = torch.where(valid, scores, float("inf"))
    ranks = _rank(tau, valid.sum(-1, keepdim=True)).clamp(min=0)
    threshold = scores.sort(dim=-1).values.gather(-1, ranks.expand(*scores.shape[:-1], 1))
    return ~(scores < threshold) & valid


def purify(scores: Tensor, tau: float = 0.5, valid: Tensor | None = None) -> Tensor:
    r"""Softmax over the positions that :func:`quantile_mask` keeps: exp(s)·keep / Σ exp(s)·keep.

    ``torch.softmax(torch.where(quantile_mask(scores, tau), scores, -inf), -1)``. A position that is dropped has weight
    0 and gets a gradient of exactly 0. Mask and softmax are formed in float32 (float64 for float64), also under
    autocast.

    Args:
        scores: (..., N), N >= 1; float16, bfloat16, float32 or float64.
        tau: Share in [0, 1] that is dropped.
        valid: Boolean, of a shape that broadcasts to the scores'; False is padding, whose scores, NaN included, reach
            neither value nor gradient. A row with nothing valid has weights 0.

    Returns:
        Weights (..., N) >= 0 in the dtype of ``scores``, each row of sum 1. NaN or +inf at a valid position makes its
        row NaN.

    Raises:
        TypeError, ValueError: As :func:`quantile_mask`.

    Differs from the authors' code:
        There is none to compare with.

    Reference:
        Zhao et al., ACM Multimedia 2025, Eqs. 6 and 7.

    Example:
        >>> import torch
        >>> from mlcorr.functional import purify
        >>> purify(torch.tensor([0.0, 2.0, -1.0, 2.0]), tau=0.5)
        tensor([0.0000, 0.5000, 0.0000, 0.5000])
    """
    valid = _check_scores(scores, valid)
    s = scores.to(compute_dtype(scores))
    with no_autocast(s):
        kept = quantile_mask(s, tau, valid)
        if valid is None:
            weights = (s + _minus_infinity_outside(kept, s)).softmax(-1)
        else:
            # A softmax over nothing is NaN: a row of padding takes it over zeros, and is set to 0 afterwards.
            padding = ~valid.any(-1, keepdim=True)
            s = torch.where(valid, s, 0.0)
            weights = (s + _minus_infinity_outside(kept | padding, s)).softmax(-1)
            weights = torch.where(padding, 0.0, weights)
    return weights.to(scores.dtype)


def spatial_aware_logits(scores: Tensor, top_k: int = 3, valid: Tensor | None = None) -> Tensor:
    r"""Logit of the mean of the K largest probabilities: ``torch.logit(scores.topk(K).values.sigmoid().mean(-1))``.

    Formed from the scores' log-probabilities, log Σ_k σ(s_k) − log Σ_k σ(−s_k), and therefore finite with a useful
    gradient for every finite score, where the probability itself is rounded to 0 or 1. A loss on logits may follow.

    Args:
        scores: (..., N), N >= 1; float16, bfloat16, float32 or float64.
        top_k: K >= 1; the mean is over min(K, N) positions.
        valid: Boolean, of a shape that broadcasts to the scores'; False is padding, which is never among the K; the
            mean is over as many as are valid, and a row with nothing valid has logit 0.

    Returns:
        (...,), float32, or float64 for float64 scores.

    Raises:
        TypeError: ``scores`` is no floating-point tensor, ``valid`` not boolean, or ``top_k`` no integer.
        ValueError: ``top_k`` < 1, a row is empty, or the shape or device of ``valid`` does not fit.

    Differs from the authors' code:
        There is none to compare with. The paper feeds the mean probability to its loss (Eq. 4); its logit carries the
        same value without saturating.

    Reference:
        Zhao et al., ACM Multimedia 2025, Eq. 4.

    Example:
        >>> import torch
        >>> from mlcorr.functional import spatial_aware_logits
        >>> spatial_aware_logits(torch.tensor([3.0, -9.0, 2.0, -1.0]), top_k=2).sigmoid()
        tensor(0.9167)
    """
    top_k = check_integer("top_k", top_k, minimum=1)
    valid = _check_scores(scores, valid)
    s = scores.to(compute_dtype(scores))
    with no_autocast(s):
        if valid is None:
            top = s.topk(min(top_k, s.shape[-1]), dim=-1).values
            return F.logsigmoid(top).logsumexp(-1) - F.logsigmoid(-top).logsumexp(-1)
        top = torch.where(valid, s, float("-inf")).topk(min(top_k, s.shape[-1]), dim=-1).values
        count = valid.sum(-1, keepdim=True)
        place = torch.arange(top.shape[-1], device=s.device)
        top = torch.where(place < count, top, 0.0)
        counted = place < count.clamp(min=1)  # σ(0) / σ(−0), and so logit 0, where nothing is valid
        present = torch.where(counted, F.logsigmoid(top), float("-inf")).logsumexp(-1)
        absent = torch.where(counted, F.logsigmoid(-top), float("-inf")).logsumexp(-1)
    return present - absent


class PurifiedFeatures(NamedTuple):
    """What :class:`SpatialPurifiedAttention` returns.

    Attributes:
        features: (B, C, dim), one vector per label.
        aux_logits: (B, C), float32 or float64: logits of the auxiliary probability, to be supervised in training.
        attention: (B, C, N), the weights with which the positions were pooled.
        valid_rows: (B,) boolean, False for an image without any valid position; None where no ``valid`` was given.

    Example:
        >>> import torch
        >>> from mlcorr import SpatialPurifiedAttention
        >>> output = SpatialPurifiedAttention(in_channels=64, num_labels=20)(torch.randn(2, 64, 7, 5))
        >>> output.attention.unflatten(-1, (7, 5)).shape  # a map for each image and label
        torch.Size([2, 20, 7, 5])
    """

    features: Tensor
    aux_logits: Tensor
    attention: Tensor
    valid_rows: Tensor | None


class SpatialPurifiedAttention(WholeState):
    r"""One feature vector per label, pooled from where the label's score map is above its own τ-quantile.

    With T the tokens (B, N, in_channels), N = H·W::

        scores = score(T).mT                                        # (B, C, N), a 1×1 convolution
        attention = purify(scores, tau)                             # (B, C, N)
        features = attention @ transform(T)                         # (B, C, dim), a 1×1 convolution before pooling
        aux_logits = spatial_aware_logits(scores, top_k)            # (B, C)

    As the weights of a row sum to 1, pooling and the affine ``transform`` may change places; the cheaper order is
    taken, by the sizes. ``tau=0`` switches the purification off (plain attention); without the auxiliary loss on
    ``aux_logits`` there is no spatial-aware supervision.

    Args:
        in_channels: Channels of the feature map.
        num_labels: C.
        dim: Size of a label's feature vector; None is ``in_channels``.
        tau: Share in [0, 1] of the positions that each label drops.
        top_k: Positions >= 1 whose mean probability is the auxiliary one; all of them where the map has fewer.

    Shape:
        - features: (B, in_channels, H, W) or (B, N, in_channels), any H and W.
        - valid: (B, N) boolean or None, False for padding, which may hold anything, NaN included. Positions of a map
          are counted row by row, as ``flatten(2)`` does. An image that is all padding has features, attention and
          auxiliary logits of 0, and False in ``valid_rows``.
        - Output: :class:`PurifiedFeatures`. Features and attention in the dtype of the input (under autocast, of the
          matrix products); auxiliary logits in float32, or float64 for float64.

    Raises:
        TypeError: ``features`` is no floating-point tensor or ``valid`` not boolean.
        ValueError: A size, ``tau`` or ``top_k`` is out of range, or shapes do not fit.

    Differs from the authors' code:
        There is none to compare with. What the paper leaves open: the quantile is that of each image and label; both
        convolutions are 1×1 with a bias; the auxiliary probability is used in training alone.

    Reference:
        Zhao et al., "Towards Space and Semantics: Object-Purified Representation Learning for Multi-Label Image
        Classification", ACM Multimedia 2025, Eqs. 3-7.

    Example:
        >>> import torch
        >>> from mlcorr import SpatialPurifiedAttention
        >>> layer = SpatialPurifiedAttention(in_channels=64, num_labels=20, dim=32)
        >>> features, aux_logits, attention, _ = layer(torch.randn(2, 64, 7, 5))
        >>> features.shape, aux_logits.shape, attention.shape
        (torch.Size([2, 20, 32]), torch.Size([2, 20]), torch.Size([2, 20, 35]))
        >>> (attention > 0).sum(-1).unique()  # 35 − ⌈0.5 · 34⌉
        tensor([18])
    """

    def __init__(
        self, in_channels: int, num_labels: int, dim: int | None = None, *, tau: float = 0.5, top_k: int = 3
    ) -> None:
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, minimum=1)
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.dim = self.in_channels if dim is None else check_integer("dim", dim, minimum=1)
        self.tau = check_number("tau", tau, minimum=0.0, maximum=1.0)
        self.top_k = check_integer("top_k", top_k, minimum=1)
        self.score = nn.Linear(self.in_channels, self.num_labels)
        self.transform = nn.Linear(self.in_channels, self.dim)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> PurifiedFeatures:
        """Return label features, auxiliary logits, attention maps and which images have a valid position."""
        tokens = self._tokens(features)
        valid_rows = None
        if valid is not None:
            check_valid(valid, tokens)
            valid_rows = valid.any(-1)
            tokens = torch.where(valid.unsqueeze(-1), tokens, 0.0)  # 0 · NaN would be NaN in every product
            valid = valid.unsqueeze(1)
        few_labels = self.num_labels < tokens.shape[1]
        plain = type(self.score) is nn.Linear and not self.score._forward_hooks and not self.score._forward_pre_hooks
        if few_labels and plain and not tokens.is_contiguous():
            # A map is read as it lies; its copy as tokens would be larger than a score weight for every image.
            scores = torch.baddbmm(
                self.score.bias.unsqueeze(-1), self.score.weight.expand(tokens.shape[0], -1, -1), tokens.mT
            )
        else:
            scores = self.score(tokens).mT.contiguous()
        attention = purify(scores, self.tau, valid)
        pooled = self.transform(attention @ tokens) if few_labels else attention @ self.transform(tokens)
        if valid_rows is not None:
            pooled = torch.where(valid_rows[:, None, None], pooled, 0.0)
        return PurifiedFeatures(pooled, spatial_aware_logits(scores, self.top_k, valid), attention, valid_rows)

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"tau={self.tau:g}, top_k={self.top_k}"

    def _tokens(self, features: Tensor) -> Tensor:
        check_floating("features", features)
        if features.dim() not in (3, 4):
            raise ValueError(
                "features: expected a map (B, in_channels, H, W) or tokens (B, N, in_channels), "
                f"got shape {tuple(features.shape)}"
            )
        tokens = features.flatten(2).mT if features.dim() == 4 else features
        if tokens.shape[-1] != self.in_channels or tokens.shape[1] == 0:
            raise ValueError(
                f"features: expected (B, {self.in_channels}, H, W) or (B, N, {self.in_channels}) with at least one "
                f"position, got shape {tuple(features.shape)}"
            )
        check_plain("features", features, self.transform, nn.Linear)
        return tokens


def check_valid(valid: object, tokens: Tensor) -> None:
    """Raise unless ``valid`` is a boolean (B, N) tensor on the device of ``tokens`` (B, N, D)."""
    mask = check_boolean("valid", valid)
    if mask.shape != tokens.shape[:2]:
        raise ValueError(f"valid: expected the shape (B, N) = {tuple(tokens.shape[:2])}, got {tuple(mask.shape)}")
    if mask.device != tokens.device:
        raise ValueError(f"valid: expected the device of features, {tokens.device}, got {mask.device}")


def _rank(tau: float, count: _Count) -> _Count:
    """⌈τ·(count − 1)⌉ in whole numbers, for a number or an integer tensor; at most 0 for a count of 0.

    In floating point τ·(count − 1) may fall on the wrong side of a whole number. What is taken off before rounding up
    covers the rounding of τ to 10⁻¹², and 10⁻⁹ besides. Exact for decimals; 64 bits suffice for 9·10⁶ positions.
    """
    slack = count + 1000
    return (round(tau * _STEPS) * (count - 1) - slack + (_STEPS - 1)) // _STEPS


def _minus_infinity_outside(kept: Tensor, like: Tensor) -> Tensor:
    """0 where ``kept``, else −∞: added, it costs the backward nothing, where a choice would copy the gradient."""
    return torch.where(kept, like.new_zeros(()), float("-inf"))


def _check_scores(scores: Tensor, valid: Tensor | None) -> Tensor | None:
    """Check both, and return ``valid`` with the last dimension of ``scores``."""
    check_floating("scores", scores)
    if scores.shape[-1] == 0:
        raise ValueError(f"scores: expected at least one position in the last dimension, got {tuple(scores.shape)}")
    if valid is None:
        return None
    check_broadcastable("valid", valid, "scores", scores)
    if valid.dtype != torch.bool:
        raise TypeError(f"valid: expected a torch.bool tensor (True = valid), got {valid.dtype}")
    return valid.expand(*valid.shape[:-1], scores.shape[-1])
