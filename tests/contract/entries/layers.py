"""Layers."""

from __future__ import annotations

import torch

from mlcorr import layers
from tests.contract.entries.entry import (
    FACTOR,
    FLAG,
    LABELS,
    MAP,
    PLACES,
    ROWS,
    SHARE,
    SIZE,
    WIDTH,
    Good,
    constructor,
    forward,
    function,
    mask,
    normal,
)


def scores() -> Good:
    return {
        "scores": [normal(ROWS, LABELS, PLACES), normal(PLACES), normal(LABELS, PLACES).half()],
        "valid": [None, mask(ROWS, LABELS, PLACES), mask(1, PLACES), mask(PLACES)],
    }


OF_SCORES = {"scores": "* N", "valid": "~scores"}


def label_features() -> Good:
    return {"x": [normal(ROWS, LABELS, WIDTH), normal(LABELS, WIDTH), normal(2, ROWS, LABELS, WIDTH)]}


def graph_settings() -> Good:
    return {
        "dim": [WIDTH],
        "num_labels": SIZE,
        "cooccurrence": [None, torch.eye(LABELS), torch.eye(LABELS).to_sparse(), torch.eye(LABELS).to_sparse_csr()],
        "schedule": [("cooccurrence", "average"), [], ["average"]],
        "diagonal": ["one", "zero", "counts"],
        "final_activation": FLAG,
        "negative_slope": FACTOR,
        "residual": FLAG,
    }


def refiner_settings() -> Good:
    return {
        "num_labels": SIZE,
        "dim": [WIDTH],
        "hidden_dim": [None, 3],
        "hidden_labels": [None, 3],
        "dropout": SHARE,
        "paths": [("representation", "category"), ["category"]],
    }


def attention_settings() -> Good:
    return {"in_channels": [WIDTH], "num_labels": SIZE, "dim": [None, 4], "tau": SHARE, "top_k": [3, 1, 100]}


AFTER: Good = {"x": [normal(ROWS, LABELS, WIDTH)]}
GRAPH = lambda: layers.AverageMessageGCN(WIDTH, LABELS, torch.eye(LABELS))  # noqa: E731
LABEL_FEATURES = {"x": f"* {LABELS} {WIDTH}"}
LAYERS = [
    function(
        "purify",
        lambda: {**scores(), "tau": SHARE},
        "scores",
        shapes=OF_SCORES,
        result=lambda arguments: "* N",  # noqa: ARG005
    ),
    function(
        "quantile_mask",
        lambda: {**scores(), "tau": SHARE},
        "scores tau",
        shapes=OF_SCORES,
        result=lambda arguments: "* N",  # noqa: ARG005
    ),
    function(
        "spatial_aware_logits",
        lambda: {**scores(), "top_k": [3, 1, 100]},
        "scores",
        shapes=OF_SCORES,
        result=lambda arguments: "*",  # noqa: ARG005
    ),
    function("average_message", label_features, "x", result=lambda arguments: None),  # noqa: ARG005
    function(
        "group_wise_linear",
        lambda: {**label_features(), "weight": [normal(LABELS, WIDTH)], "bias": [normal(LABELS), None]},
        "x weight",
        shapes={"x": "* C D", "weight": "C D", "bias": "C"},
        result=lambda arguments: "* C",  # noqa: ARG005
    ),
    *(
        entry
        for kind, settings, required, make in (
            (
                layers.GroupWiseLinear,
                lambda: {"num_labels": SIZE, "dim": [WIDTH]},
                "num_labels dim",
                lambda: layers.GroupWiseLinear(LABELS, WIDTH),
            ),
            (layers.AverageMessageGCN, graph_settings, "dim num_labels", GRAPH),
            (
                layers.BidirectionalRefiner,
                refiner_settings,
                "num_labels dim",
                lambda: layers.BidirectionalRefiner(LABELS, WIDTH),
            ),
        )
        for entry in (
            constructor(kind.__name__, kind, settings, AFTER, required=tuple(required.split())),
            forward(kind.__name__, make, label_features, "x", shapes=LABEL_FEATURES),
        )
    ),
    forward(
        "AverageMessageGCN",
        GRAPH,
        lambda: {"cooccurrence": [torch.eye(LABELS), torch.eye(LABELS).to_sparse(), torch.eye(LABELS).to_sparse_csr()]},
        "cooccurrence",
        what="set_cooccurrence",
        call=lambda thing, **given: (thing.set_cooccurrence(**given), thing(AFTER["x"][0]))[1],
        shapes={"cooccurrence": "5 5"},
        share=2,
    ),
    constructor(
        "SpatialPurifiedAttention",
        layers.SpatialPurifiedAttention,
        attention_settings,
        {"features": MAP[:1]},
        required=("in_channels", "num_labels"),
    ),
    forward(
        "SpatialPurifiedAttention",
        lambda: layers.SpatialPurifiedAttention(WIDTH, LABELS, 4),
        lambda: {"features": [*MAP, MAP[0].float()], "valid": [None, mask(ROWS, PLACES)]},
        "features",
        shapes={"features": "B 8 H W|B N 8", "valid": "B 6"},
    ),
]
