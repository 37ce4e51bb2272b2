"""The benchmarks of the layers: what is timed is the same thing, and the sizes are the paper's."""

from __future__ import annotations

import pytest
import torch

from benchmarks import layers
from mlcorr.functional import average_message, purify


@pytest.mark.parametrize(
    "contest",
    [
        layers.Contest("purification-2x3x9", 2, 3, (2, 3, 9), {"ours": purify, "literal": layers.purify_literally}),
        layers.Contest(
            "average-message-2x5x4", 2, 5, (2, 5, 4), {"ours": average_message, "dense": layers.average_densely(5)}
        ),
    ],
)
def test_contestants_agree_and_are_measured(contest: layers.Contest) -> None:
    records = layers.measure(contest, seconds=0.01)
    assert {(r["provider"], r["metric"]) for r in records} == {
        (name, metric) for name in contest.contestants for metric in ("forward", "both", "memory")
    }
    assert all(0 < r["p20"] <= r["p50"] <= r["p80"] for r in records)


def test_a_wrong_contestant_is_refused() -> None:
    contest = layers.Contest("wrong", 2, 3, (2, 3, 9), {"ours": purify, "wrong": lambda x: x.softmax(-1)})
    with pytest.raises(AssertionError):
        layers.measure(contest, seconds=0.01)


def test_sizes_with_a_resnet_101() -> None:
    pytest.importorskip("transformers")
    parameters, operations = ({row[0]: row[column] for row in layers.sizes()} for column in (1, 2))
    assert parameters["ResNet-101 trunk"] == pytest.approx(42.5, abs=0.05)
    assert round(parameters["with OPRL"]) == 86  # as the paper says
    # The paper has 69.7 million and, counting a multiply and an add as one, 35.8 GFLOPs.
    assert parameters["with latent context"] == pytest.approx(58.06, abs=0.005)
    assert operations["with latent context"] / 2 == pytest.approx(32.62, abs=0.005)
    assert parameters["with latent context, 768 wide"] == pytest.approx(70.08, abs=0.005)
    heads = (layers.linear_head(8, 3), layers.Query2Label(8, 3))
    assert [head(torch.randn(2, 8, 4, 5)).shape for head in heads] == [(2, 3), (2, 3)]
