"""Multi-label evaluation: OP OR OF1 CP CR CF1 as the literature defines them, mAP, and thresholds per label."""

from __future__ import annotations

import operator
from typing import Any, Literal, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch

from mlcorr._checks import check_choice, check_data, check_floating, check_integer, check_number, check_tensor, kind_of
from mlcorr._targets import check_target

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
Inputs: TypeAlias = Literal["probabilities", "logits"]
Rule: TypeAlias = Literal["threshold", "topk", "topk_threshold", "prevalence"]
Empty: TypeAlias = Literal["skip", "zero", "nan"]

_INPUTS: tuple[Inputs, ...] = ("probabilities", "logits")
_RULES: tuple[Rule, ...] = ("threshold", "topk", "topk_threshold", "prevalence")
_EMPTY: tuple[Empty, ...] = ("skip", "zero", "nan")


def multilabel_scores(
    scores: Array,
    targets: Array,
    *,
    inputs: Inputs = "probabilities",
    rule: Rule = "threshold",
    threshold: float | Array = 0.5,
    top_k: int = 3,
    prevalence: Array | None = None,
    empty: Empty = "skip",
) -> dict[str, float]:
    r"""Overall and per-class precision, recall and F1, and mean average precision.

    With ``predicted`` given by ``rule``, and all sums over entries whose target is known::

        tp, pp, ap = (predicted & positive).sum(0), predicted.sum(0), positive.sum(0)             # (C,), int64
        OP, OR, OF1 = tp.sum() / pp.sum(), tp.sum() / ap.sum(), 2 * tp.sum() / (pp.sum() + ap.sum())
        CP, CR, CF1 = mean(tp / pp), mean(tp / ap), 2 * CP * CR / (CP + CR)
        CF1_mean = mean(2 * tp / (pp + ap))                                 # "macro F1", a different number from CF1
        mAP = mean(average_precision(scores, targets)[ap > 0])

    The rules, each restricted to known entries:

    - ``"threshold"``: p > threshold.
    - ``"topk"``: the ``top_k`` best labels of every row, without a threshold. Of equal scores the lower label index
      is taken first. Rows with fewer known labels predict them all.
    - ``"topk_threshold"``: both of the above.
    - ``"prevalence"``: score >= the m_j-th largest known score of class j, with m_j = floor(prevalence_j · n_j) and
      n_j the known entries of the class; nothing where m_j = 0. Scores equal to the m_j-th are all predicted, so that
      the result does not depend on the order of rows. The product is taken in float64 and m_j clamped to [0, n_j].

    What a class j without positives (ap_j = 0) or without predictions (pp_j = 0) adds to CP, CR and CF1_mean:

    - ``"skip"``: classes without positives are left out of all three; classes without predictions have precision 0.
    - ``"zero"``: no class is left out; 0/0 is 0.
    - ``"nan"``: each ratio 0/0 is left out of its own mean, so that the three may average over different classes.

    The mAP leaves out classes without positives in every mode. A mean over no class, and OP or OR of 0/0, is 0.0, or
    nan with ``empty="nan"``. OF1 and CF1 are always finite: 0.0 where undefined. So with no row or no known entry
    every score is 0.0 (with ``empty="nan"``: nan but for OF1 and CF1).

    Args:
        scores: (N, C) of any floating-point dtype, on any device, or a NumPy array. Half precision is compared in
            float32. NaN counts as −inf.
        targets: (N, C), bool, integer or floating-point: 1 is positive, 0 negative, below 0 (or NaN) unknown. Soft
            targets are not meaningful here: every other known value counts as negative.
        inputs: ``"probabilities"``, or ``"logits"`` to compare their sigmoid with the threshold. Everything that only
            ranks (top-k, prevalence, mAP) uses the logits themselves, so that saturated sigmoids do not tie.
        rule: which entries are predicted, see above.
        threshold: a probability in [0, 1], or one per class, (C,). It is rounded to the dtype of comparison: float64
            for float64 scores, else float32. Unused by ``"topk"`` and ``"prevalence"``.
        top_k: at least 1. Used by ``"topk"`` and ``"topk_threshold"``.
        prevalence: (C,), each class's frequency in the training data, in [0, 1]. Used by ``"prevalence"``, which
            requires it.
        empty: the treatment of classes without positives or predictions, see above.

    Returns:
        Python floats, ratios computed in float64: ``mAP``, ``OP``, ``OR``, ``OF1``, ``CP``, ``CR``, ``CF1``,
        ``CF1_mean``, and the numbers ``classes_without_positives`` and ``classes_without_predictions``.

    Raises:
        TypeError: an argument is of the wrong type, or ``scores`` is not floating-point.
        ValueError: shapes or devices disagree, or a choice or number is out of range.

    References:
        Wu and Zhou, "A unified view of multi-label performance measures", ICML 2017, for the families of averages.
        Chen et al., "Multi-label image recognition with graph convolutional networks", CVPR 2019, for the names.

    Example:
        >>> scores = torch.tensor([[0.9, 0.2, 0.6], [0.8, 0.7, 0.1]])
        >>> targets = torch.tensor([[1, 1, 0], [1, -1, 0]])
        >>> result = multilabel_scores(scores, targets)
        >>> {name: round(value, 3) for name, value in result.items()}
        {'mAP': 1.0, 'OP': 0.667, 'OR': 0.667, 'OF1': 0.667, 'CP': 0.5, 'CR': 0.5, 'CF1': 0.5, 'CF1_mean': 0.5,
         'classes_without_positives': 1.0, 'classes_without_predictions': 1.0}
        >>> multilabel_scores(scores, targets, rule="topk", top_k=2)["OR"]
        0.6666666666666666
    """
    score, positive, known = _read(scores, targets)
    check_choice("inputs", inputs, _INPUTS)
    check_choice("rule", rule, _RULES)
    check_choice("empty", empty, _EMPTY)
    limit = _read_threshold(threshold, score)
    count = _read_top_k(top_k)
    frequency = None if prevalence is None else _read_per_class("prevalence", prevalence, score)

    predicted = known
    if rule == "prevalence":
        if frequency is None:
            raise ValueError(f"prevalence: expected a ({score.shape[1]},) tensor with rule='prevalence', got None")
        predicted = predicted & _above_prevalence(score, known, frequency)
    if rule in ("topk", "topk_threshold"):
        predicted = predicted & _among_top_k(score, known, count)
    if rule in ("threshold", "topk_threshold"):
        predicted = predicted & (_probability(score, inputs) > limit)

    tp, pp, ap = (entries.sum(0).cpu() for entries in (predicted & positive, predicted, positive))
    return _summary(tp, pp, ap, _average_precision(score, positive, known), empty)


def average_precision(scores: Array, targets: Array) -> torch.Tensor:
    r"""Per-class average precision, not interpolated, as scikit-learn's ``average_precision_score``.

    Over the distinct known scores t₁ > t₂ > … of a class, with P_i and R_i the precision and recall of
    ``scores >= t_i`` and R₀ = 0::

        AP = Σ_i (R_i − R_{i−1}) P_i

    Equal scores enter together, so the order of rows does not matter. Any increasing map of the scores that keeps
    them distinct leaves the result as it is: pass logits rather than their sigmoids, which tie when saturated.

    Args:
        scores: (N, C) of any floating-point dtype, on any device, or a NumPy array. NaN counts as −inf.
        targets: (N, C): 1 is positive, 0 negative, below 0 unknown; as for `multilabel_scores`.

    Returns:
        (C,) in float64 on the CPU; nan for classes without positives, hence all nan for N = 0.

    Raises:
        TypeError: an argument is neither tensor nor array, or ``scores`` is not floating-point.
        ValueError: ``scores`` is not of two dimensions, or shapes or devices disagree.

    References:
        Manning, Raghavan and Schütze, "Introduction to information retrieval", 2008, section 8.4.

    Example:
        >>> scores = torch.tensor([[0.9, 0.3], [0.8, 0.3], [0.1, 0.3]])
        >>> average_precision(scores, torch.tensor([[0, 1], [1, 0], [1, -1]]))
        tensor([0.5833, 0.5000], dtype=torch.float64)
    """
    return _average_precision(*_read(scores, targets))


def best_thresholds(scores: Array, targets: Array, *, inputs: Inputs = "probabilities") -> torch.Tensor:
    r"""Per-class thresholds that maximise F1 on validation data under the strict rule p > threshold.

    ::

        t_j = argmax_t 2 tp_j(t) / (pp_j(t) + ap_j)          # counts of p_j > t over the known entries of class j

    Of equal F1 the highest threshold (the fewest predictions) is taken. It lies midway between the lowest predicted
    score and the next lower distinct one, rounded to the result's dtype, or is that lower score itself where rounding
    would leave no room; so ``scores > t`` realises the maximum exactly. Where all entries are predicted, the next
    lower score is taken to be 0, and where the lowest score v is 0 or less, t = 2v − 1. Classes without positives,
    for which every threshold has F1 = 0, get 0.5.

    Args:
        scores: (N, C) of any floating-point dtype, on any device, or a NumPy array. NaN counts as −inf.
        targets: (N, C): 1 is positive, 0 negative, below 0 unknown; as for `multilabel_scores`.
        inputs: ``"probabilities"``, or ``"logits"`` for thresholds on their sigmoid.

    Returns:
        (C,), probabilities on the device of ``scores``. In the dtype of ``scores``, except for half-precision logits:
        float32, in which their sigmoid is taken (here and in `multilabel_scores`).

    Raises:
        TypeError: an argument is neither tensor nor array, or ``scores`` is not floating-point.
        ValueError: ``inputs`` is unknown, ``scores`` is not of two dimensions, or shapes or devices disagree.

    References:
        Lipton, Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", ECML PKDD 2014.

    Example:
        >>> scores = torch.tensor([[0.75, 0.5], [0.5, 0.25], [0.25, 0.0]])
        >>> best_thresholds(scores, torch.tensor([[1, 0], [1, 0], [0, 0]]))
        tensor([0.3750, 0.5000])
    """
    score, positive, known = _read(scores, targets)
    check_choice("inputs", inputs, _INPUTS)
    dtype = _tensor("scores", scores).dtype if inputs == "probabilities" else score.dtype
    if score.numel() == 0:
        return score.new_full(score.shape[1:], 0.5).to(dtype)

    values, tp, pp, is_cut = (x.cpu() for x in _ranked(_probability(score, inputs), positive, known))
    ap = tp[:, -1:]
    # Rounding to nearest keeps equal fractions equal and, below 2**25 rows, different ones apart. Nothing lies strictly
    # below −inf, where the unknown entries are.
    f1 = (2 * tp).double() / (pp + ap).clamp(min=1)
    f1 = f1.masked_fill(~is_cut | (values == -torch.inf), 0.0)
    best, cut = f1.amax(dim=1), f1.argmax(dim=1)  # of equal ones the first: the highest threshold

    padded = torch.nn.functional.pad(values, (0, 1), value=-torch.inf)
    high, low = values.gather(1, cut[:, None])[:, 0], padded.gather(1, cut[:, None] + 1)[:, 0]
    midway = (low + (high - low) / 2).to(dtype).to(values.dtype)
    midway = torch.where(midway < high, midway, low)  # neighbouring floats have none between them
    lowest = torch.where(high > 0, high.clamp(max=torch.finfo(dtype).max) / 2, 2 * high - 1)
    realising = torch.where(low == -torch.inf, lowest, midway)
    return torch.where(best > 0, realising, 0.5).to(device=score.device, dtype=dtype)


def _summary(
    tp: torch.Tensor, pp: torch.Tensor, ap: torch.Tensor, average_precisions: torch.Tensor, empty: Empty
) -> dict[str, float]:
    """Scores from the (C,) int64 counts of true, predicted and actual positives; all tensors on the CPU."""
    undefined = float("nan") if empty == "nan" else 0.0

    def class_mean(numerator: torch.Tensor, denominator: torch.Tensor) -> float:
        kept = {"skip": ap > 0, "zero": torch.ones_like(ap, dtype=torch.bool), "nan": denominator > 0}[empty]
        ratio = numerator.double() / denominator.clamp(min=1)  # the numerator is 0 where the denominator is
        return float(ratio[kept].mean()) if bool(kept.any()) else undefined

    hits, predictions, actual = int(tp.sum()), int(pp.sum()), int(ap.sum())
    cp, cr = class_mean(tp, pp), class_mean(tp, ap)
    ranked = average_precisions[ap > 0]
    return {
        "mAP": float(ranked.mean()) if ranked.numel() else undefined,
        "OP": hits / predictions if predictions else undefined,
        "OR": hits / actual if actual else undefined,
        "OF1": 2 * hits / (predictions + actual) if hits else 0.0,
        "CP": cp,
        "CR": cr,
        "CF1": 2 * cp * cr / (cp + cr) if cp + cr > 0 else 0.0,  # also where one is nan
        "CF1_mean": class_mean(2 * tp, pp + ap),
        "classes_without_positives": float((ap == 0).sum()),
        "classes_without_predictions": float((pp == 0).sum()),
    }


def _average_precision(score: torch.Tensor, positive: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(score.shape[1], dtype=torch.float64, device="cpu")
    if score.numel():
        _, tp, pp, is_cut = _ranked(score, positive, known)
        reached = torch.where(is_cut, tp, 0).cummax(dim=1).values  # tp at the last cut so far
        gained = tp - torch.nn.functional.pad(reached, (1, 0))[:, :-1]
        # Only cuts that gain recall add to the sum, at most one per positive: float64 is needed for these alone, and
        # is taken on the CPU because some devices have none.
        place = (is_cut & (gained > 0)).nonzero(as_tuple=True)
        precision = tp[place].cpu().double() / pp[place].cpu()
        total.index_add_(0, place[0].cpu(), gained[place].cpu() * precision)
    return total / positive.sum(0).cpu()  # 0/0 = nan for classes without positives


def _ranked(
    score: torch.Tensor, positive: torch.Tensor, known: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every class by descending score, (C, N): the scores, tp and pp up to each, and whether a cut may follow it.

    Unknown entries stand at −inf and count in neither. A cut may not part equal scores.
    """
    values, order = score.masked_fill(~known, -torch.inf).T.contiguous().sort(dim=1, descending=True)
    tp = positive.T.gather(1, order).cumsum(dim=1)
    pp = known.T.gather(1, order).cumsum(dim=1)
    is_cut = torch.ones_like(values, dtype=torch.bool)
    is_cut[:, :-1] = values[:, :-1] != values[:, 1:]
    return values, tp, pp, is_cut


def _among_top_k(score: torch.Tensor, known: torch.Tensor, top_k: int) -> torch.Tensor:
    order = score.argsort(dim=1, descending=True, stable=True)  # stable: the lower label index first
    known_first = known.gather(1, order)
    chosen = known_first & (known_first.cumsum(dim=1) <= top_k)
    return torch.zeros_like(known).scatter(1, order, chosen)


def _above_prevalence(score: torch.Tensor, known: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    if score.shape[0] == 0:
        return known
    total = known.sum(0).cpu()
    wanted = (frequency.cpu().double() * total).floor().nan_to_num(nan=0.0)
    wanted = torch.minimum(wanted.clamp(min=0), total).long().to(score.device)
    ranked = score.masked_fill(~known, -torch.inf).sort(dim=0, descending=True).values
    limit = ranked.gather(0, (wanted - 1).clamp(min=0)[None])
    return (score >= limit) & (wanted > 0)


def _probability(score: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return score.sigmoid() if inputs == "logits" else score


def _read(scores: object, targets: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores in float32 or float64 without NaN, and which entries are positive and which known."""
    score, target = _tensor("scores", scores), _tensor("targets", targets)
    score = check_floating("scores", score, min_dim=0, any_bits=True)
    if score.dim() != 2:
        raise ValueError(f"scores: expected shape (N, C), got {tuple(score.shape)}")
    if not isinstance(targets, torch.Tensor):  # arrays have no device: they follow the tensor
        target = target.to(score.device)
    elif not isinstance(scores, torch.Tensor):
        score = score.to(target.device)
    target = check_target("targets", target, "scores", score)
    check_data("scores", score)
    score = score.detach()
    if score.dtype != torch.float64:
        score = score.float()
    # Contiguous, as strided sigmoids may differ in the last place. Adding 0 makes −0 into 0: radix sorts part the two.
    score = torch.where(score.isnan(), -torch.inf, score).contiguous() + 0.0
    return score, target == 1, target >= 0


def _read_threshold(threshold: object, score: torch.Tensor) -> float | torch.Tensor:
    if isinstance(threshold, (torch.Tensor, np.ndarray)):
        return _read_per_class("threshold", threshold, score).to(device=score.device, dtype=score.dtype)
    return check_number("threshold", threshold, minimum=0.0, maximum=1.0)


def _read_top_k(top_k: object) -> int:
    if isinstance(top_k, (bool, torch.Tensor, np.ndarray)):
        raise TypeError(f"top_k: expected an integer, got {kind_of(top_k)}")
    try:
        count = operator.index(cast(SupportsIndex, top_k))
    except TypeError as error:
        raise TypeError(f"top_k: expected an integer, got {kind_of(top_k)}") from error
    return check_integer("top_k", count, minimum=1)


def _read_per_class(name: str, value: object, score: torch.Tensor) -> torch.Tensor:
    tensor = check_floating(name, _tensor(name, value), min_dim=0, any_bits=True).detach()
    if tensor.shape != score.shape[1:]:
        raise ValueError(f"{name}: expected shape {tuple(score.shape[1:])}, one per class, got {tuple(tensor.shape)}")
    return check_data(name, tensor)


def _tensor(name: str, value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return check_tensor(name, value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a torch.Tensor or numpy.ndarray, got {type(value).__name__}")
    try:  # a copy in native byte order: torch takes neither foreign ones nor negative strides
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise TypeError(f"{name}: expected an array of a bool, integer or float dtype, got {value.dtype}") from error
