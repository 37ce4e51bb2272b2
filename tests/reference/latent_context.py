"""Latent context in plain words: one image, one label, one head and one number at a time (equations 1 to 7 of C.3).

Everything is Python's own floats and lists of them; nothing is shared with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

Vector = list[float]
Matrix = list[Vector]
Weights = Mapping[str, Tensor]


class Result(NamedTuple):
    """Of one image."""

    logits: Vector
    aux_logits: Vector
    partial_logits: Vector | None
    attention: Matrix
    context_attention: Matrix
    class_features: Matrix
    context_features: Matrix | None
    fused_features: Matrix


# ------------------------------------------------------------------------------------------------------- the parts


def part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def linear(x: Vector, weights: Weights, prefix: str) -> Vector:
    result = [dot(row, x) for row in weights[f"{prefix}weight"].tolist()]
    return add(result, weights[f"{prefix}bias"].tolist()) if f"{prefix}bias" in weights else result


def layer_norm(x: Vector, weights: Weights, prefix: str) -> Vector:
    mean = sum(x) / len(x)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in x) / len(x) + 1e-5)
    scale, shift = weights[f"{prefix}weight"].tolist(), weights[f"{prefix}bias"].tolist()
    return [(value - mean) / deviation * s + t for value, s, t in zip(x, scale, shift, strict=True)]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(scores: Vector, valid: Sequence[bool]) -> Vector:
    exponentials = [math.exp(score) if ok else 0.0 for score, ok in zip(scores, valid, strict=True)]
    return [value / sum(exponentials) for value in exponentials]


def weighted(shares: Vector, values: Matrix) -> Vector:
    return [sum(share * value[i] for share, value in zip(shares, values, strict=True)) for i in range(len(values[0]))]


def attend(
    queries: Matrix, memory: Matrix, weights: Weights, heads: int, valid: Sequence[bool] | None = None
) -> tuple[Matrix, Matrix]:
    """MHA(Q, M), and the mean over heads of a."""
    valid = valid or [True] * len(memory)
    size = len(queries[0]) // heads
    keys, values = ([linear(each, weights, name) for each in memory] for name in ("key.", "value."))
    outputs, means = [], []
    for each in queries:
        query, joined, mean = linear(each, weights, "query."), [], [0.0] * len(memory)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            shares = softmax([dot(query[own], key[own]) / math.sqrt(size) for key in keys], valid)
            joined += weighted(shares, [value[own] for value in values])
            mean = add(mean, [share / heads for share in shares])
        outputs.append(linear(joined, weights, "output."))
        means.append(mean)
    return outputs, means


def encode(tokens: Matrix, weights: Weights, heads: int) -> Matrix:
    """Enc: per layer x + attention(LN(x)), then x + FFN(LN(x)); at the end LN."""
    depth = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    for index in range(depth):
        own = part(weights, f"layers.{index}.")
        width = len(tokens[0])
        renamed = {"output.weight": own["self_attn.out_proj.weight"], "output.bias": own["self_attn.out_proj.bias"]}
        for place, name in enumerate(("query", "key", "value")):
            for kind in ("weight", "bias"):
                whole = own[f"self_attn.in_proj_{kind}"]
                renamed[f"{name}.{kind}"] = whole[place * width : (place + 1) * width]
        normed = [layer_norm(token, own, "norm1.") for token in tokens]
        tokens = [add(x, y) for x, y in zip(tokens, attend(normed, normed, renamed, heads)[0], strict=True)]
        for number, token in enumerate(tokens):
            hidden = [gelu(value) for value in linear(layer_norm(token, own, "norm2."), own, "linear1.")]
            tokens[number] = add(token, linear(hidden, own, "linear2."))
    return [layer_norm(token, weights, "norm.") for token in tokens]


def classify(features: Matrix, weights: Weights, prefix: str) -> Vector:
    """One linear function per label."""
    rows, biases = weights[f"{prefix}weight"].tolist(), weights[f"{prefix}bias"].tolist()
    return [dot(feature, row) + bias for feature, row, bias in zip(features, rows, biases, strict=True)]


# ------------------------------------------------------------------------------------------------ equations 1 to 6


def context_features(
    own: Matrix, tokens: Matrix, weights: Weights, heads: int, valid: Sequence[bool] | None
) -> tuple[Matrix, Matrix]:
    """Fctx and a_ctx: the units read the map, the labels read the units."""
    start = weights["units"].tolist()
    queries = [layer_norm(unit, weights, "unit_norm.") for unit in start]
    read, spaces = attend(queries, tokens, part(weights, "read."), heads, valid)
    units = [add(unit, each) for unit, each in zip(start, read, strict=True)]
    for number, unit in enumerate(units):
        hidden = [gelu(value) for value in linear(layer_norm(unit, weights, "ffn_norm."), weights, "feed_forward.0.")]
        units[number] = add(unit, linear(hidden, weights, "feed_forward.3."))
    labels = [layer_norm(feature, weights, "label_norm.") for feature in own]
    features, shares = attend(labels, units, part(weights, "write."), heads)
    return features, [weighted(each, spaces) for each in shares]


def fuse(own: Vector, context: Vector, weights: Weights, fusion: str) -> Vector:
    """Ffus of one label."""
    if fusion == "gate":
        gate = [sigmoid(value) for value in linear(own + context, weights, "gate.")]
        return layer_norm(add(own, [g * c for g, c in zip(gate, context, strict=True)]), weights, "norm.")
    if fusion == "concat":
        return layer_norm(linear(own + context, weights, "mix."), weights, "norm.")
    return layer_norm(add(own, context), weights, "norm.")


def network(
    tokens: Matrix,
    weights: Weights,
    heads: int,
    fusion: str = "gate",
    valid: Sequence[bool] | None = None,
    target: Sequence[int] | None = None,
    hide: Sequence[bool] | None = None,
    partial_mode: str = "state",
) -> Result:
    """From the tokens (N, Din) of one image; the partial branch runs where there is a target."""
    places = [True] * len(tokens) if valid is None else list(valid)
    V = [layer_norm(linear(token, weights, "projection."), weights, "norm.") for token in tokens]
    a_cls = [softmax([dot(row, token) for token in tokens], places) for row in weights["class_map.weight"].tolist()]
    f_cls = [weighted(shares, V) for shares in a_cls]
    if fusion == "none":
        f_ctx, a_ctx = None, None
        f_fus = [layer_norm(own, weights, "fusion.norm.") for own in f_cls]
    else:
        f_ctx, a_ctx = context_features(f_cls, V, part(weights, "context."), heads, places)
        own = part(weights, "fusion.")
        f_fus = [fuse(f, c, own, fusion) for f, c in zip(f_cls, f_ctx, strict=True)]
    embeddings = weights["label_embeddings"].tolist()
    shared = part(weights, "encoder.")
    whole = encode([add(f, e) for f, e in zip(f_fus, embeddings, strict=True)], shared, heads)
    partial = None
    if target is not None:
        inner = part(weights, "partial.")
        encoder = part(inner, "encoder.") or shared
        given = shown_tokens(f_fus, embeddings, inner, target, hide, partial_mode)
        partial = classify(encode(given, encoder, heads), inner, "classifier.")
    logits, aux = classify(whole, weights, "classifier."), classify(f_cls, weights, "aux_classifier.")
    return Result(logits, aux, partial, a_cls, a_ctx, f_cls, f_ctx, f_fus)


def shown_tokens(
    fused: Matrix, embeddings: Matrix, weights: Weights, target: Sequence[int], hide: Sequence[bool], mode: str
) -> Matrix:
    """What the encoder of the partial branch gets: with U1 or U0 where a label is shown, or a mask where it is not."""
    tokens = []
    for label, (feature, embedding) in enumerate(zip(fused, embeddings, strict=True)):
        token = add(feature, embedding)
        if mode == "feature" and hide[label] and target[label] >= 0:
            token = add(weights["mask"].tolist(), embedding)
        if mode == "state" and not hide[label] and target[label] >= 0:
            token = add(token, weights["states"].tolist()[target[label]])
        tokens.append(token)
    return tokens


# ------------------------------------------------------------------------------------------- hiding, equation 7


def hidden_count(ratio: float, known: int) -> int:
    """⌈r·known⌉, with r the decimal number that is written."""
    return math.ceil(Fraction(str(ratio)) * known)


def asymmetric(logit: float, label: int) -> float:
    """γ− = 4, γ+ = 0, clip = 0.05."""
    p = sigmoid(logit)
    q = max(p - 0.05, 0.0)
    return -math.log(p) if label == 1 else -(q**4) * math.log(1 - q)


def mean_over(
    logits: Matrix,
    target: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[bool]],
    base: Callable[[float, int], float],
) -> float:
    """Σ over the chosen known entries divided by their number, of which there is at least 1."""
    total, count = 0.0, 0
    for row in range(len(target)):
        for label in range(len(target[row])):
            if chosen[row][label] and target[row][label] >= 0:
                total, count = total + base(logits[row][label], target[row][label]), count + 1
    return total / max(count, 1)


def objective(
    aux: Matrix,
    full: Matrix,
    partial: Matrix | None,
    target: Sequence[Sequence[int]],
    hide: Sequence[Sequence[bool]] | None,
    alpha: float,
    beta: float,
    base: Callable[[float, int], float] = asymmetric,
) -> tuple[float, float, float]:
    """The three weighted terms: over known, over known, over hidden."""
    everywhere = [[True] * len(row) for row in target]
    return (
        mean_over(aux, target, everywhere, base),
        alpha * mean_over(full, target, everywhere, base),
        0.0 if partial is None else beta * mean_over(partial, target, hide, base),
    )
