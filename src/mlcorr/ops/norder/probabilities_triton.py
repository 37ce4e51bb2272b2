"""What the kernels share: entries of a matrix, and probabilities with all the digits of what is left to 1."""

from __future__ import annotations

import triton
import triton.language as tl

if tuple(int(number) for number in triton.__version__.split(".")[:2]) < (3, 2):
    # Before, a number in a kernel was a float32 even among float64.
    raise ImportError(f"Triton 3.2 or later is needed, found {triton.__version__}")


@triton.jit
def exp_of_minus(a):
    """e^(−a) for a >= 0; the hardware's own exponential in float32 loses digits as a grows."""
    if a.dtype == tl.float64:
        result = tl.exp(-a)
    else:
        a = tl.where(a > 128.0, 128.0, a)  # e^(−128) is 0 in float32
        power = tl.floor(a * 1.4426950408889634 + 0.5)
        rest = (a - power * 0.693359375) + power * 2.12194440e-4  # ln 2 in two parts
        result = tl.exp2(-power) * tl.exp(-rest)
    return result


@triton.jit
def sigmoid(x):
    """Return e^(−|x|), σ(x) and σ(−x)."""
    e = exp_of_minus(tl.abs(x))
    larger = tl.div_rn(tl.full(e.shape, 1.0, e.dtype), 1.0 + e) if e.dtype == tl.float32 else 1.0 / (1.0 + e)
    smaller = e * larger
    return e, tl.where(x >= 0, larger, smaller), tl.where(x >= 0, smaller, larger)


@triton.jit
def _expm1(d):
    """e^d − 1 for |d| <= ½, by its series."""
    terms: tl.constexpr = 16 if d.dtype == tl.float64 else 9
    series = tl.full(d.shape, 1.0, d.dtype)
    for k in tl.static_range(terms):
        series = 1.0 + series * d * (1.0 / (terms - k + 1))
    return d * series


@triton.jit
def entries(pointer, row, label, row_stride, label_stride, inside):
    """Return a tile of a matrix of any strides, 0 where it is not ``inside``."""
    return tl.load(pointer + row * row_stride + label * label_stride, mask=inside, other=0)


@triton.jit
def probabilities(x, z, LOGITS: tl.constexpr):
    """Return, of student and teacher, e^(−|logit|), p and 1 − p; and teacher's p minus the student's."""
    if LOGITS:
        x_small, s, s_other = sigmoid(x)
        z_small, t, t_other = sigmoid(z)
        # t − s = σ(x)·σ(−z)·(e^(z − x) − 1), which keeps its digits where the two are close.
        half = 0.5 * z - 0.5 * x  # does not overflow
        near = tl.abs(half) <= 0.25
        v = tl.where(near, s * t_other * _expm1(2.0 * tl.where(near, half, 0.0)), t - s)
    else:
        x_small, s, s_other = x, x, 1.0 - x
        z_small, t, t_other = z, z, 1.0 - z
        v = t - s
    return x_small, s, s_other, z_small, t, t_other, v
