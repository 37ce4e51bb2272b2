"""The losses as one would write them in plain PyTorch, in the dtype that comes, so as to see what that rounds.

Arguments are those of the case of the same name in ``cases.py``, results what it returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Plain = Callable[..., Tensor]


def _known(target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return target.clamp(min=0).to(dtype), target >= 0


def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    y, known = _known(target, input.dtype)
    losses = F.binary_cross_entropy_with_logits(input, y, reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.any(-1).sum()


def asymmetric(
    input: Tensor, target: Tensor, *, logits: bool = True, held: bool = True, reduced: bool = True
) -> Tensor:
    y, known = _known(target, input.dtype)
    p = input.sigmoid() if logits else input
    above = p > 0.05
    q = torch.where(above, p - 0.05, 0.0)
    of_positive, of_negative = 1 - p, q**4
    if held:
        of_positive, of_negative = of_positive.detach(), of_negative.detach()
    losses = torch.where(y == 1, -of_positive * p.log(), -of_negative * (1 - q).log())
    losses = torch.where(known, losses, 0.0)
    return losses.sum() if reduced else losses


def assume_negative(input: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
    y, _ = _known(target, input.dtype)
    return F.binary_cross_entropy_with_logits(input, y * (1 - smoothing) + smoothing / 2)


def weak_assume_negative(input: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
    y, _ = _known(target, input.dtype)
    positive, negative = -F.logsigmoid(input), -F.logsigmoid(-input)
    share, weight = smoothing / 2, 1 / (input.shape[-1] - 1)
    of_positive = (1 - share) * positive + share * negative
    of_negative = (1 - share) * negative + share * positive
    return (y * of_positive + (1 - y) * weight * of_negative).mean()


def hill(input: Tensor, target: Tensor) -> Tensor:
    y, _ = _known(target, input.dtype)
    p, shifted = input.sigmoid(), (input - 1).sigmoid()
    return (-y * (1 - shifted) ** 2 * shifted.log() + (1 - y) * (1.5 - p) * p**2).sum()


def splc(input: Tensor, target: Tensor, epoch: int = 1) -> Tensor:
    assert epoch == 1
    y, _ = _known(target, input.dtype)
    p, shifted = input.sigmoid(), (input - 1).sigmoid()
    positive = (1 - shifted) ** 2 * shifted.log()
    negative = torch.where(p > 0.6, (1 - p) ** 2 * p.log(), p**2 * (1 - p).log())
    return -(y * positive + (1 - y) * negative).sum()


def partial_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    y, known = _known(target, input.dtype)
    factor = (-4.45 * known.to(input.dtype).mean(-1, keepdim=True) + 5.45) / input.shape[-1]
    losses = factor * F.binary_cross_entropy_with_logits(input, y, reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.any(-1).sum()


def _largest(input: Tensor, among: Tensor, count: int) -> Tensor:
    ranked = torch.where(among, input, -torch.inf).flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros_like(among).flatten()
    chosen[ranked[:count]] = True
    return chosen.view(among.shape) & among


def partial_asymmetric(input: Tensor, target: Tensor, *, top: int = 5) -> Tensor:
    y, known = _known(target, input.dtype)
    ignored = _largest(input, ~known, top * len(input))
    p = input.sigmoid()
    factor = torch.where(known, p, p**2).detach()
    losses = torch.where(y == 1, -p.log(), -factor * (1 - p).log())
    return torch.where(ignored, 0.0, losses).sum()


def large(input: Tensor, target: Tensor, epoch: int = 1, *, correct: bool = False) -> Tensor:
    assert epoch == 1
    y, known = _known(target, input.dtype)
    chosen = _largest(input, ~known, -int(-0.3 * target.numel() // 1))
    if correct:
        y = torch.where(chosen, 1.0, y)
    losses = F.binary_cross_entropy_with_logits(input, y, reduction="none")
    return (losses if correct else torch.where(chosen, 0.0, losses)).mean()


def divergence(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, logits: bool = True, temperature: float = 1.0
) -> Tensor:
    s, t = ((student / temperature).sigmoid(), (teacher / temperature).sigmoid()) if logits else (student, teacher)
    losses = temperature**2 * (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log())
    mask = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
    return torch.where(mask, losses, 0.0).sum() / mask.any(-1).sum()


def dependency(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    *,
    orders: dict[int, float] | None = None,
    levels: tuple[str, ...] = ("instance", "batch"),
    delta: float = 1.0,
    logits: bool = True,
    sums: bool = False,
    reduced: bool = True,
) -> Tensor:
    """Return the n-order loss by going over all sequences."""
    s, t = (student.sigmoid(), teacher.sigmoid()) if logits else (student, teacher)
    valid = torch.ones_like(s, dtype=torch.bool) if mask is None else mask
    pairs = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    rows, total = valid.any(-1).sum(), s.new_zeros(())
    labels = s.shape[-1]

    def of_pairs(p: Tensor) -> Tensor:
        return torch.where(pairs, p.unsqueeze(-1) - p.unsqueeze(-2), 0.0)

    def along(matrices: Tensor, sequences: Tensor) -> Tensor:
        means = matrices[:, sequences[:, :-1], sequences[:, 1:]].mean(-1)
        return F.huber_loss(means, torch.zeros_like(means), delta=delta, reduction="none")

    of_rows = of_pairs(t) ** 2 - of_pairs(s) ** 2
    of_sums = of_pairs(t).sum(0) ** 2 - of_pairs(s).sum(0) ** 2
    of_batch = (of_sums if sums else of_rows.sum(0)) / rows
    for order, weight in (orders or {2: 1.0, 3: 1.0, 4: 1.0}).items():
        sequences = torch.tensor(list(itertools.permutations(range(labels), order)))
        counted = valid[:, sequences].all(-1)
        if "instance" in levels:
            number = counted.sum(-1)
            losses = torch.where(counted, along(of_rows, sequences), 0.0).sum(-1) / number.clamp(min=1)
            total = total + weight * (losses.sum() / (number > 0).sum() if reduced else losses)
        if "batch" in levels:
            total = total + weight * along(of_batch.unsqueeze(0), sequences).mean()
    return total


def distillation(student: Tensor, teacher: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    terms = divergence(student, teacher, mask), dependency(student, teacher, mask)
    return cross_entropy(student, target) + 10 * terms[0] + terms[1]


def between_samples(x: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, num_labels: int = 0) -> Tensor:
    assert num_labels >= 0
    everything, of = torch.cat([x, keys]), torch.cat([labels, key_labels])
    s = F.cosine_similarity(x.unsqueeze(1), everything, dim=-1) / 0.2
    compared = (of >= 0) & ~torch.eye(len(x), len(of), dtype=torch.bool)
    positive = compared & (labels.unsqueeze(1) == of)
    anchors = (labels >= 0) & positive.any(1)
    lse = torch.where(compared, s, -torch.inf)[anchors].logsumexp(1)
    return (lse - (torch.where(positive, s, 0.0).sum(1) / positive.sum(1))[anchors]).mean()


def with_prototypes(z: Tensor, prototypes: Tensor, targets: Tensor) -> Tensor:
    t = F.cosine_similarity(z, prototypes, dim=-1) / 0.07
    has = (targets == 1).any(0)
    sums = [torch.where(among, t, -torch.inf)[:, has].logsumexp(0) for among in (targets >= 0, targets == 1)]
    return (sums[0] - sums[1]).sum() / (targets == 1).sum()


def dual(z: Tensor, prototypes: Tensor, targets: Tensor, scores: Tensor, *, most: int | None = None) -> Tensor:
    assert scores.shape == targets.shape
    places = (targets == 1).flatten().nonzero().squeeze(1)[:most]
    x, labels = z.flatten(0, 1)[places], places % z.shape[1]
    samples = between_samples(x, labels, x[:0], labels[:0])
    return 100 * samples + 50 * with_prototypes(z, prototypes, targets)


def purified(scores: Tensor, valid: Tensor) -> Tensor:
    ranked = torch.where(valid, scores, torch.inf).sort(-1).values
    rank = (valid.sum(-1, keepdim=True) // 2).clamp(min=0)  # ⌈(n − 1)/2⌉
    kept = (scores >= ranked.gather(-1, rank.clamp(max=scores.shape[-1] - 1))) & valid
    return torch.where(valid.any(-1, keepdim=True), torch.where(kept, scores, -torch.inf).softmax(-1), 0.0)


def aware(scores: Tensor, valid: Tensor) -> Tensor:
    top = torch.where(valid, scores, -torch.inf).topk(3, dim=-1).values
    counted = top > -torch.inf
    mean = torch.where(counted, top.sigmoid(), 0.0).sum(-1) / counted.sum(-1)
    return mean.logit()


def message(x: Tensor) -> Tensor:
    labels = x.shape[-2]
    k = torch.full((labels, labels), 1 / (labels - 1), dtype=x.dtype).fill_diagonal_(1)
    return k @ x


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x * weight).sum(-1) + bias


_UNMASKED = {"mask": None}
PLAIN: dict[str, Plain] = {
    "asymmetric_loss": asymmetric,
    "asymmetric_loss, probabilities": partial(asymmetric, logits=False),
    "asymmetric_loss, none": partial(asymmetric, reduced=False),
    "asymmetric_loss, factors with gradient": partial(asymmetric, held=False),
    "AsymmetricLoss": asymmetric,
    "binary_cross_entropy_loss": cross_entropy,
    "BinaryCrossEntropyLoss": cross_entropy,
    "assume_negative_loss": assume_negative,
    "AssumeNegativeLoss": partial(assume_negative, smoothing=0.1),
    "weak_assume_negative_loss": weak_assume_negative,
    "WeakAssumeNegativeLoss": partial(weak_assume_negative, smoothing=0.1),
    "hill_loss": hill,
    "HillLoss": hill,
    "splc_loss": splc,
    "SPLCLoss": splc,
    "partial_bce_loss": partial_cross_entropy,
    "PartialBCELoss": partial_cross_entropy,
    "partial_asymmetric_loss": partial_asymmetric,
    "PartialAsymmetricLoss": partial(partial_asymmetric, top=1),
    "large_loss": large,
    "LargeLoss": partial(large, correct=True),
    "mld_loss": divergence,
    "mld_loss, probabilities": partial(divergence, logits=False),
    "MLDLoss": partial(divergence, temperature=2.0),
    "multi_order_dependency_loss": dependency,
    "multi_order_dependency_loss, masked": dependency,
    "multi_order_dependency_loss, instance": partial(dependency, levels=("instance",)),
    "multi_order_dependency_loss, rows": partial(
        dependency, orders={2: 1.0, 3: 1.0, 5: 1.0}, levels=("instance",), reduced=False
    ),
    "multi_order_dependency_loss, small delta": partial(dependency, delta=0.1),
    "multi_order_dependency_loss, square of sums": partial(dependency, levels=("batch",), sums=True, delta=1.0),
    "multi_order_dependency_loss, probabilities": partial(dependency, logits=False),
    "MultiOrderDependencyLoss": partial(dependency, orders={2: 1.0, 3: 0.5}),
    "MDKDObjective": distillation,
    "sample_contrastive_loss": between_samples,
    "sample_contrastive_loss, compared": between_samples,
    "prototype_contrastive_loss": with_prototypes,
    "DualContrastiveLoss": dual,
    "DualContrastiveLoss, no bank": dual,
    "DualContrastiveLoss, bounded": partial(dual, most=4),
    "purify": purified,
    "spatial_aware_logits": aware,
    "average_message": message,
    "group_wise_linear": linear,
}
