"""The losses per label by their definitions, in Python floats."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

getcontext().prec = 60  # digits enough for exp(-1e2), not for exp(-1e4): logits of that size are asked for by limits


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def binary_cross_entropy(logit: float, y: float) -> float:
    """Eq. 1 of MDKD for one label."""
    return y * softplus(-logit) + (1 - y) * softplus(logit)


def bernoulli_divergence(student: float, teacher: float) -> float:
    """Eq. 2 of MDKD for one label: KL(Bernoulli(σ(teacher)) ‖ Bernoulli(σ(student))) with 60 digits."""
    s, t = (_log_probabilities(Decimal(x)) for x in (student, teacher))
    return float(sum(log_t.exp() * (log_t - log_s) for log_t, log_s in zip(t, s, strict=True)))


def _log_probabilities(x: Decimal) -> tuple[Decimal, Decimal]:
    """log σ(x) and log σ(−x)."""

    def log_sigmoid(z: Decimal) -> Decimal:
        return min(z, Decimal(0)) - (1 + (-abs(z)).exp()).ln()

    return log_sigmoid(x), log_sigmoid(-x)


def asymmetric(p: float, y: float, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """Eqs. 4-7 of ASL for one label of probability p, soft targets mixing the two terms."""
    q = max(p - clip, 0.0)
    positive = -((1 - p) ** gamma_pos) * math.log(p) if y > 0 else 0.0
    negative = -(q**gamma_neg) * math.log(1 - q) if y < 1 else 0.0
    return y * positive + (1 - y) * negative


def asymmetric_gradient_detached(p: float, y: float, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """Gradient to the logit with the focusing factors held constant."""
    q = max(p - clip, 0.0)
    positive = -((1 - p) ** gamma_pos) * (1 - p)
    negative = q**gamma_neg * p * (1 - p) / (1 - q) if q > 0 else 0.0
    return y * positive + (1 - y) * negative


def asymmetric_gradient(p: float, y: float, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """Gradient to the logit, through the focusing factors too."""
    q = max(p - clip, 0.0)
    positive = (1 - p) ** gamma_pos * (gamma_pos * p * math.log(p) - (1 - p))
    negative = 0.0
    if q > 0:
        negative = p * (1 - p) * (-gamma_neg * q ** (gamma_neg - 1) * math.log(1 - q) + q**gamma_neg / (1 - q))
    return y * positive + (1 - y) * negative


def official_asymmetric(p: float, y: int, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """What the authors' program computes for a 0/1 target, step by step, with its eps at 0."""
    not_p = min((1 - p) + clip, 1.0) if clip > 0 else 1 - p
    cross_entropy = math.log(p) if y == 1 else math.log(not_p)
    p_of_target = p if y == 1 else not_p
    return -cross_entropy * (1 - p_of_target) ** (gamma_pos if y == 1 else gamma_neg)
