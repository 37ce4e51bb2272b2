"""ML-VPT, one image, one token, one label and one expert at a time (Algorithm 1 of the supplement)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]


def prompt_tokens(embedded: Tensor, layers: Sequence[Layer], prompts: Tensor) -> Tensor:
    """Return the tokens at the prompts' places after the last layer.

    Args:
        embedded: (1 + N, d), class token and patches of one image.
        layers: each from (n, d) to (n, d).
        prompts: (layers, P, d); the first stand between class token and patches, the others overwrite what comes out.
    """
    count = prompts.shape[1]
    tokens = torch.cat([embedded[:1], prompts[0], embedded[1:]])
    for number, layer in enumerate(layers):
        if number > 0:
            rows = list(tokens)
            for prompt in range(count):
                rows[1 + prompt] = prompts[number, prompt]
            tokens = torch.stack(rows)
        tokens = layer(tokens)
    return torch.stack([tokens[1 + prompt] for prompt in range(count)])


def gelu(x: Tensor) -> Tensor:
    """x·Φ(x), exact."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def adapt(token: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """Return z + GELU(z·W1 + b1)·W2 + b2 of one token (d,)."""
    return token + gelu(token @ down + down_bias) @ up + up_bias


def label_logits(
    tokens: Tensor, adapted: Tensor, places: Sequence[int], gate: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logit, gate logit and gates (E,) of one label of one image.

    Args:
        tokens, adapted: (P, d).
        places: of the label's E prompts.
        gate: (E, d).
        weight: (d,).
        bias: ().
    """
    scores = [torch.dot(tokens[place], gate[expert]) for expert, place in enumerate(places)]
    largest = max(float(score.detach()) for score in scores)
    exponentials = [torch.exp(score - largest) for score in scores]
    gates = [each / sum(exponentials) for each in exponentials]
    feature = sum(share * adapted[place] for share, place in zip(gates, places, strict=True))
    gate_logit = sum(share * score for share, score in zip(gates, scores, strict=True))
    return torch.dot(feature, weight) + bias, gate_logit, torch.stack(gates)


def network(
    embedded: Tensor,
    layers: Sequence[Layer],
    norm: Layer | None,
    weights: dict[str, Tensor],
    co: Sequence[int],
    dis: Sequence[int],
    num_groups: int,
    experts: int,
) -> tuple[Tensor, ...]:
    """Return logits, co, dis, co gate and dis gate logits (B, L), and gates (B, 2, L, E).

    Args:
        embedded: (B, 1 + N, d).
        layers: as in `prompt_tokens`.
        norm: the last norm, None where tokens are taken before it.
        weights: "prompts" (layers, 2TE, d); "down", "down_bias", "up", "up_bias" with a row for each prompt; and of
            "co" and "dis" each "gate" (L, E, d), "weight" (L, d) and "bias" (L,), as in "co.gate".
        co: the co-occurrence group of each label.
        dis: the dis-occurrence group of each label.
        num_groups: T.
        experts: E.
    """
    rows = []
    for image in embedded:
        tokens = prompt_tokens(image, layers, weights["prompts"])
        if norm is not None:
            tokens = norm(tokens)
        parts = [weights[name] for name in ("down", "down_bias", "up", "up_bias")]
        adapted = torch.stack([adapt(token, *(part[p] for part in parts)) for p, token in enumerate(tokens)])
        branches = []
        for relation, groups, first in (("co", co, 0), ("dis", dis, num_groups * experts)):
            labels = []
            for label, group in enumerate(groups):
                places = [first + expert * num_groups + group for expert in range(experts)]
                own = [weights[f"{relation}.{name}"][label] for name in ("gate", "weight", "bias")]
                labels.append(label_logits(tokens, adapted, places, *own))
            branches.append([torch.stack(each) for each in zip(*labels, strict=True)])
        (co_logit, co_gate, co_share), (dis_logit, dis_gate, dis_share) = branches
        mean = torch.stack([(a + b) / 2 for a, b in zip(co_logit, dis_logit, strict=True)])
        rows.append((mean, co_logit, dis_logit, co_gate, dis_gate, torch.stack([co_share, dis_share])))
    return tuple(torch.stack(each) for each in zip(*rows, strict=True))


def objective(four: Sequence[Tensor], target: Tensor, gate_weight: float = 1.0) -> Tensor:
    """Return 1000/K times the four asymmetric losses of γ− = 2, γ+ = 0, K being the number of known entries.

    The focusing factor p² is a constant in the gradient.
    """
    total, known = torch.zeros((), dtype=torch.float64), 0
    for b in range(target.shape[0]):
        for label in range(target.shape[1]):
            if target[b, label] < 0:
                continue
            known += 1
            for logits, factor in zip(four, (1.0, 1.0, gate_weight, gate_weight), strict=True):
                p = torch.sigmoid(logits[b, label])
                if target[b, label] == 1:
                    total = total - factor * torch.log(p)
                else:
                    total = total - factor * float(p.detach()) ** 2 * torch.log(1 - p)
    return 1000 * total / max(known, 1)
