"""SADCL's label features and prototypes in plain words, one image and one label at a time.

The attention, the norms and the perceptrons are loops over numbers; nothing is shared with the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One vector through W x + b."""
    return torch.stack([(row * x).sum() + b for row, b in zip(weight, bias, strict=True)])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], weights: Weights, heads: int) -> Tensor:
    """What one query gets from all places: softmax of q·k/√(d/heads) in each head, then W_o."""
    dim = len(query)
    size = dim // heads
    (to_q, to_k, to_v), (b_q, b_k, b_v) = (
        weights[f"attention.in_proj_{kind}"].split(dim) for kind in ("weight", "bias")
    )
    q = affine(query, to_q, b_q)
    projected = [(affine(k, to_k, b_k), affine(v, to_v, b_v)) for k, v in zip(keys, values, strict=True)]
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        exponentials = [torch.exp((q[own] * k[own]).sum() / math.sqrt(size)) for k, _ in projected]
        whole = sum(exponentials, q.new_zeros(()))
        parts.append(
            sum((e / whole * v[own] for e, (_, v) in zip(exponentials, projected, strict=True)), q.new_zeros(size))
        )
    return affine(torch.cat(parts), weights["attention.out_proj.weight"], weights["attention.out_proj.bias"])


def layer(
    x: Tensor, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], weights: Weights, heads: int
) -> Tensor:
    """Post-norm: LN(x + attention), then LN(x + W₂ max(W₁ x, 0))."""
    x = x + attend(query, keys, values, weights, heads)
    x = layer_norm(x, weights["attention_norm.weight"], weights["attention_norm.bias"])
    hidden = affine(x, weights["feed_forward.0.weight"], weights["feed_forward.0.bias"]).clamp(min=0)
    x = x + affine(hidden, weights["feed_forward.3.weight"], weights["feed_forward.3.bias"])
    return layer_norm(x, weights["feed_forward_norm.weight"], weights["feed_forward_norm.bias"])


def part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def count(weights: Weights, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def label_features(
    tokens: Tensor, positions: Tensor, weights: Weights, heads: int, valid: Sequence[bool] | None = None
) -> Tensor:
    """Tokens (N, d) of one image to features (L, d); positions at queries and keys only."""
    places = [n for n in range(len(tokens)) if valid is None or valid[n]]
    x = {n: tokens[n] for n in places}
    for index in range(count(weights, "encoder.")):
        own = part(weights, f"encoder.{index}.")
        placed = [x[n] + positions[n] for n in places]
        values = [x[n] for n in places]
        x = {n: layer(x[n], x[n] + positions[n], placed, values, own, heads) for n in places}
    keys, values = [x[n] + positions[n] for n in places], [x[n] for n in places]
    result = []
    for query in weights["queries"]:
        feature = torch.zeros_like(query)
        for index in range(count(weights, "decoder.")):
            own = part(weights, f"decoder.{index}.")
            feature = layer(feature, feature + query, keys, values, own, heads)
        result.append(layer_norm(feature, weights["norm.weight"], weights["norm.bias"]))
    return torch.stack(result)


def prototypes(
    features: Tensor, probabilities: Tensor, targets: Tensor, threshold: float, before: Tensor
) -> tuple[Tensor, list[int], list[int]]:
    """Eq. 5 with its fallbacks: (n, L, d), (n, L), (n, L) to (L, d), and the labels of either fallback."""
    means: dict[int, Tensor] = {}
    unsure, absent = [], []
    for label in range(features.shape[1]):
        positive = [i for i in range(len(features)) if targets[i, label] == 1]
        sure = [i for i in positive if probabilities[i, label] >= threshold]
        if not positive:
            absent.append(label)
            continue
        if not sure:
            unsure.append(label)
        chosen = sure or positive
        means[label] = sum((features[i, label] for i in chosen), torch.zeros_like(before[label])) / len(chosen)
    centre = sum(means.values(), torch.zeros_like(before[0])) / len(means)
    length = math.sqrt(float((centre * centre).sum()))
    for label in absent:
        means[label] = before[label] / math.sqrt(float((before[label] ** 2).sum())) * length
    return torch.stack([means[label] for label in range(features.shape[1])]), unsure, absent
