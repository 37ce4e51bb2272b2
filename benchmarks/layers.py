"""Time the layers of OPRL beside what they replace, each pair only after both gave the same.

    python -m benchmarks.layers --output benchmarks/results/layers-cpu.jsonl

- purification: ours beside the literal form, which takes ``torch.quantile`` of every score map.
- average message: ours beside the product with the dense C×C matrix.
- head: OPRL's beside Query2Label's decoder and a linear classifier, on the features of a ResNet-101 at 448 pixels.

The records are those of ``benchmarks.run``. At the end: parameters and operations with a ResNet-101 as the trunk.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Task, peak_memory, quantiles, time_in_turns
from benchmarks.report import console_of_run, print_case
from benchmarks.run import SCHEMA, describe
from mlcorr.functional import average_message, purify
from mlcorr.systems.backbones import from_transformers
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.oprl import OPRL

CHANNELS, LABELS = 2048, 80  # of a ResNet-101, of MS-COCO


class Contest(NamedTuple):
    """Functions of one tensor that are timed in turns; the first two must give the same, if ``same``."""

    name: str
    rows: int
    labels: int
    shape: tuple[int, ...]
    contestants: dict[str, Callable[[Tensor], Tensor]]
    same: bool = True


def purify_literally(scores: Tensor) -> Tensor:
    """Eqs. 6 and 7 of the paper, as they stand."""
    threshold = torch.quantile(scores.detach(), 0.5, dim=-1, keepdim=True)
    return torch.where(scores >= threshold, scores, -torch.inf).softmax(-1)


def average_densely(labels: int) -> Callable[[Tensor], Tensor]:
    """Eq. 9: the matrix of ones and 1/(C − 1), and the product with it."""
    exact = torch.full((labels, labels), 1 / (labels - 1), dtype=torch.float64).fill_diagonal_(1.0)
    matrices = {dtype: exact.to(dtype) for dtype in (torch.float32, torch.float64)}
    return lambda x: matrices[x.dtype] @ x


class Query2Label(nn.Module):
    """Query2Label's head: one encoder layer, two decoder layers, a query per label.

    With feed-forward parts as wide as the features, which brings a ResNet-101 to 151 million parameters; OPRL's paper
    quotes 143 million.
    """

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        sizes = {"nhead": 4, "dim_feedforward": channels, "batch_first": True}
        self.encoder = nn.TransformerEncoderLayer(channels, **sizes)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(channels, **sizes), num_layers=2)
        self.queries = nn.Parameter(torch.randn(num_labels, channels))
        self.classifier = nn.Parameter(torch.randn(num_labels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of a feature map."""
        tokens = self.encoder(features.flatten(2).mT)
        labels = self.decoder(self.queries.expand(len(tokens), -1, -1), tokens)
        return (labels * self.classifier).sum(-1)


def linear_head(channels: int, num_labels: int) -> nn.Module:
    """Return what a plain classifier does: mean over places, one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_labels))


def contests() -> Iterator[Contest]:
    """Yield them, the dearest last."""
    for places in (196, 784):
        name = f"purification-32x{LABELS}x{places}"
        functions = {"ours": purify, "torch.quantile": purify_literally}
        yield Contest(name, 32, LABELS, (32, LABELS, places), functions)
    for labels in (80, 1000, 9605):
        functions = {"ours": average_message, "dense": average_densely(labels)}
        yield Contest(f"average-message-4x{labels}x128", 4, labels, (4, labels, 128), functions)
    oprl = OPRL(nn.Identity(), CHANNELS, LABELS)
    heads = {
        "OPRL": lambda x: oprl(x).logits,
        "Query2Label": Query2Label(CHANNELS, LABELS),
        "linear": linear_head(CHANNELS, LABELS),
    }
    yield Contest("head-32x80-of-2048x14x14", 32, LABELS, (32, CHANNELS, 14, 14), heads, same=False)


def measure(contest: Contest, seconds: float) -> list[dict[str, object]]:
    """Check, then time in turns; return a record for each contestant and metric."""
    device = torch.device("cpu")
    x = torch.randn(contest.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    if contest.same:
        first, second = (value_and_gradient(f, x.detach().double()) for f in list(contest.contestants.values())[:2])
        for ours, theirs in zip(first, second, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    tasks = {
        (name, metric): task
        for name, function in contest.contestants.items()
        for metric, task in (
            ("forward", Task(lambda: x, function)),
            ("both", Task(lambda: x, lambda x, f=function: value_and_gradient(f, x))),
        )
    }
    samples = time_in_turns(tasks, device, seconds)
    for name, function in contest.contestants.items():
        samples[name, "memory"] = [peak_memory(lambda f=function: value_and_gradient(f, x), device)]
    machine = describe(device)
    return [
        {
            "schema": SCHEMA, **machine, "case": contest.name, "rows": contest.rows, "labels": contest.labels,
            "orders": [], "delta": None, "provider": name, "quantity": contest.name.split("-")[0], "metric": metric,
            "unit": "B" if metric == "memory" else "s", "p20": p20, "p50": p50, "p80": p80,
        }
        for (name, metric), values in samples.items()
        for p20, p50, p80 in [quantiles(values)]
    ]  # fmt: skip


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both, the gradient of a weighted sum."""
    x = x.detach().requires_grad_()
    value = function(x)
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return value.detach(), torch.autograd.grad(value, x, weights)[0]


def sizes() -> list[tuple[str, float, float]]:
    """Return millions of parameters and 10⁹ operations (a multiply and an add are two) for an image of 448 pixels."""
    from transformers import ResNetConfig, ResNetModel

    with torch.device("meta"):
        config = ResNetConfig(depths=[3, 4, 23, 3], hidden_sizes=[256, 512, 1024, 2048], layer_type="bottleneck")
        trunk = from_transformers(ResNetModel(config))
        networks = {
            "ResNet-101 trunk": trunk,
            "with a linear classifier": nn.Sequential(trunk, linear_head(CHANNELS, LABELS)),
            "with OPRL": OPRL(trunk, CHANNELS, LABELS),
            "with latent context": LatentContext(trunk, CHANNELS, LABELS).deploy(),
            "with latent context, 768 wide": LatentContext(trunk, CHANNELS, LABELS, dim=768).deploy(),
            "with Query2Label's head": nn.Sequential(trunk, Query2Label(CHANNELS, LABELS)),
        }
        rows = []
        for name, network in networks.items():
            with FlopCounterMode(display=False) as counter:
                network.train()(torch.empty(1, 3, 448, 448))  # in evaluation, fused attention hides its operations
            parameters = sum(parameter.numel() for parameter in network.parameters())
            rows.append((name, parameters / 1e6, counter.get_total_flops() / 1e9))
    return rows


def main() -> None:
    """Run all contests and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each metric of a contestant")
    parser.add_argument("--output", type=Path, help="append the measurements as JSON lines")
    arguments = parser.parse_args()
    console = console_of_run()
    for contest in contests():
        records = measure(contest, arguments.seconds)
        print_case(console, contest.name, records, {})
        if arguments.output:
            with arguments.output.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
    table = Table(
        "network", "parameters, M", "operations, G", title="an image of 448×448, 80 labels", title_justify="left"
    )
    for name, parameters, operations in sizes():
        table.add_row(name, f"{parameters:.1f}", f"{operations:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
