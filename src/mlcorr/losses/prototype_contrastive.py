"""SADCL's prototype-to-sample loss (P2S): a prototype per class against the features of that class."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_floating, check_number
from mlcorr._distributed import check_group, gather_rows
from mlcorr._precision import compute_dtype, no_autocast
from mlcorr._targets import check_target
from mlcorr.ops.contrast import unit_vectors

NormalizeBy: TypeAlias = Literal["positives", "classes", "sum"]
NORMALIZE_BY: Final = ("positives", "classes", "sum")
LOWEST_TEMPERATURE: Final = 1e-12


class ClassTerms(NamedTuple):
    """Of every class (L,): log Σ exp(t) over its positives, over what is known of it, and its number of positives.

    A class without such features has −inf.
    """

    numerator: Tensor
    denominator: Tensor
    positives: Tensor


def prototype_contrastive_loss(
    z: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    temperature: float = 0.07,
    normalize_by: NormalizeBy = "positives",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Σⱼ (log Σ exp(t) over known (b, j) − log Σ exp(t) over positive (b, j)) / N, t = cosine / temperature.

    t is that of prototype j and the batch's features of class j, so that the cost is that of reading ``z``. Classes
    without a positive are skipped.

    Args:
        z: Features (B, L, D), one per image and label, of any length; float16, bfloat16, float32 or float64.
        prototypes: (L, D), likewise.
        targets: (B, L): 1 positive, 0 negative; everything else, −1 among it, is unknown and counts in neither sum.
        temperature: At least 1e-12; 0.07 is the official code's.
        normalize_by: N is the number of "positives" (the official code's), of "classes" that have one, or 1 for "sum"
            (the paper's).
        group: Process group that the batch is spread over, or None. Every rank passes the same ``prototypes`` and
            returns the loss of the whole batch; DistributedDataParallel's mean of the gradients is the whole batch's.

    Returns:
        Scalar >= 0; float32, or float64 if ``z`` or ``prototypes`` is. 0 without a positive.

    Raises:
        TypeError: ``z`` or ``prototypes`` is no floating-point tensor, ``targets`` no real one, ``temperature`` no
            number, or ``group`` no process group.
        ValueError: Shapes or devices do not fit, or a parameter is outside its range.

    Differs from the authors' code:
        There a class without positives adds a term, a sum that underflows is replaced by 1, which makes losses
        negative, and a batch without any positive fails.

    Reference:
        Eq. 6 of Ma et al., "Semantic-Aware Dual Contrastive Learning for Multi-Label Image Classification", ECAI 2023.

    Example:
        >>> import torch
        >>> from mlcorr.functional import prototype_contrastive_loss
        >>> z, prototypes = torch.ones(4, 1, 8), torch.ones(1, 8)
        >>> prototype_contrastive_loss(z, prototypes, torch.tensor([[1], [0], [0], [0]]))  # log(4 / 1)
        tensor(1.3863)
    """
    temperature = check_number("temperature", temperature, minimum=LOWEST_TEMPERATURE)
    check_choice("normalize_by", normalize_by, NORMALIZE_BY)
    group = check_group("group", group)
    check_features(z, targets)
    check_prototypes(prototypes, z)
    loss, classes, positives = of_classes(class_terms(z, prototypes, targets, temperature, group))
    divisor = {"positives": positives, "classes": classes}.get(normalize_by)
    return loss if divisor is None else loss / divisor.clamp(min=1)


def class_terms(
    z: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, group: dist.ProcessGroup | None = None
) -> ClassTerms:
    """Return the terms of every class over the batch of all ranks; what is given is checked."""
    dtype = compute_dtype(z, prototypes)
    positive = targets == 1
    known = positive | (targets == 0)
    with no_autocast(z):
        z = unit_vectors(torch.where(known.unsqueeze(-1), z, 0.0), dtype)
        # Not a matrix product: the gradient of one would be rounded where a backward pass is in autocast.
        t = torch.linalg.vecdot(z, unit_vectors(prototypes, dtype)) / temperature
        numerator, denominator = (_log_sum_exp(t, among) for among in (positive, known))
        terms = ClassTerms(numerator, denominator, positive.sum(dim=0))
    return terms if group is None else of_ranks(ClassTerms(*(gather_rows(x.unsqueeze(0), group) for x in terms)))


def of_classes(terms: ClassTerms) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the losses of the classes with a positive, their number, and the number of positives."""
    has = terms.positives > 0
    losses = torch.where(has, terms.denominator, 0.0) - torch.where(has, terms.numerator, 0.0)
    return losses.sum(), has.sum(), terms.positives.sum()


def of_ranks(terms: ClassTerms) -> ClassTerms:
    """Return the terms of one batch out of those of its parts, (parts, L) each."""
    numerator, denominator = (
        # −inf is replaced, lest a class without features anywhere have a gradient of NaN.
        _log_sum_exp(torch.where(part != -torch.inf, part, 0.0), part != -torch.inf)
        for part in (terms.numerator, terms.denominator)
    )
    return ClassTerms(numerator, denominator, terms.positives.sum(dim=0))


def check_features(z: object, targets: object) -> None:
    """Raise unless ``z`` is a floating (B, L, D) and ``targets`` a real (B, L) on its device."""
    features = check_floating("z", z, min_dim=3)
    if features.dim() != 3 or features.shape[2] == 0:
        raise ValueError(f"z: expected the shape (B, L, D) with D >= 1, got {tuple(features.shape)}")
    check_target("targets", targets, "z without its last dimension", features[..., 0])


def check_prototypes(prototypes: object, z: Tensor) -> None:
    """Raise unless ``prototypes`` is a floating (L, D) as ``z`` has them, on its device."""
    of = check_floating("prototypes", prototypes)
    if of.shape != z.shape[1:]:
        raise ValueError(f"prototypes: expected the shape (L, D) of z, {tuple(z.shape[1:])}, got {tuple(of.shape)}")
    if of.device != z.device:
        raise ValueError(f"prototypes: expected the device of z, {z.device}, got {of.device}")


def _log_sum_exp(t: Tensor, among: Tensor) -> Tensor:
    """Return log Σ exp(t) over the rows ``among``, −inf for a column without any, which has no gradient then."""
    has = among.any(dim=0)
    return torch.where(has, torch.where(among | ~has, t, -torch.inf).logsumexp(dim=0), -torch.inf)
