"""Systems: constructors with everything behind them, forward passes, objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlcorr import losses
from mlcorr.systems import backbones
from mlcorr.systems.latent_context import LatentContext, recommended_beta
from mlcorr.systems.ml_vpt import MLVPT
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL
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
    Entry,
    Good,
    labels,
    mask,
    normal,
    own_base_loss,
)
from tests.contract.entries.grouping import groups
from tests.contract.entries.layers import graph_settings, refiner_settings
from tests.systems.ml_vpt_cases import TimmLike


class Returns(nn.Module):
    """A backbone that returns one thing for whatever comes."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Any) -> Any:  # noqa: ARG002
        return self.value


def own_network(arguments: dict[str, Any]) -> bool:
    """Return whether there is a network or a loss that was not made for this: what it does is its own business."""
    backbone = arguments.get("backbone")
    strange = isinstance(backbone, nn.Module) and not isinstance(backbone, (nn.Identity, Returns))
    return strange or own_base_loss(arguments)


def odd_backbones() -> list[Any]:
    returned = (None, "abc", (MAP[0],), MAP[0].half(), MAP[0].long(), MAP[0][:, :3], MAP[0][None], MAP[1][:, :0])
    more = (MAP[0].to("meta"), MAP[1].to_sparse(), MAP[1].double(), MAP[1] + float("nan"))
    return [nn.Identity(), *(Returns(value) for value in (*returned, *more))]


def common(**more: list[Any]) -> Good:
    return {"backbone": odd_backbones(), "in_channels": [WIDTH], "num_labels": SIZE, **more}


def oprl_settings() -> Good:
    graph, refiner = graph_settings(), refiner_settings()
    return common(
        encoder_layers=[1, 0],
        encoder_heads=[2, 1],
        encoder_width=[8],
        encoder_dropout=[0, 0.5],
        positions=FLAG,
        tau=SHARE,
        top_k=[3],
        **{name: graph[name] for name in ("cooccurrence", "schedule", "diagonal", "final_activation")},
        **{name: refiner[name] for name in ("hidden_dim", "hidden_labels", "dropout", "paths")},
        dim=[None, 4],
        gamma_neg=FACTOR,
        gamma_pos=FACTOR,
        clip=SHARE,
        aux_weight=FACTOR,
    )


def sadcl_settings() -> Good:
    return common(
        dim=[None, 4],
        proj_dim=[6],
        encoder_layers=[1, 0],
        decoder_layers=[1, 2],
        heads=[2, 1],
        width=[8],
        dropout=SHARE,
        positions=FLAG,
        proj_width=[8],
        base_loss=[None, losses.AsymmetricLoss()],
        classification_weight=FACTOR,
        sample_weight=FACTOR,
        prototype_weight=FACTOR,
        temperature=[0.2],
        prototype_temperature=[0.2],
        bank=["per_label", "global", None],
        bank_size=[3],
        bank_threshold=SHARE,
        bank_warmup_steps=[0, 1],
        max_active=[None, 3],
        group=[None],
    )


def latent_settings() -> Good:
    return common(
        dim=[8],
        units=[3],
        depth=[1, 0],
        heads=[2],
        width=[8],
        dropout=SHARE,
        mask_ratio=SHARE,
        alpha=FACTOR,
        beta=FACTOR,
        fusion=["gate", "sum", "concat", "none"],
        partial_mode=["state", "feature"],
        share_encoder=FLAG,
        base_loss=[None, losses.AsymmetricLoss(reduction="none")],
        group=[None],
    )


def vpt_settings() -> Good:
    return {
        "vit": [backbones.from_timm(TimmLike(depth=1)), TimmLike(depth=1), nn.Identity()],
        "groups": [groups()],
        "experts": [1, 3],
        "bottleneck": [2],
        "prompt_output": ["norm", "pre_norm"],
        "gate_loss_weight": FACTOR,
        "gamma_neg": FACTOR,
        "gamma_pos": FACTOR,
        "clip": SHARE,
        "checkpoint_blocks": FLAG,
        "group": [None],
    }


SMALL: dict[type, dict[str, Any]] = {
    OPRL: {"encoder_heads": 2, "encoder_width": 8, "encoder_dropout": 0},
    SADCL: {"proj_dim": 6, "proj_width": 8, "width": 8, "heads": 2},
    LatentContext: {"dim": 8, "units": 3, "depth": 1, "heads": 2, "width": 8},
    MLVPT: {},
}
PICTURES = [normal(ROWS, 3, 16, 16)]
TARGETS = [labels(ROWS, LABELS), labels(ROWS, LABELS).float()]


def small(kind: type) -> Callable[[], Any]:
    if kind is MLVPT:
        return lambda: MLVPT(backbones.from_timm(TimmLike(depth=1)), groups(), bottleneck=2)
    return lambda: kind(nn.Identity(), WIDTH, LABELS, **SMALL[kind])


def images(kind: type) -> list[Any]:
    return PICTURES if kind is MLVPT else MAP


def call(kind: type, model: Any, **given: Any) -> Any:
    return model(**given, **({"target": TARGETS[0]} if kind is LatentContext and "target" not in given else {}))


def whole(kind: type) -> Callable[..., Any]:
    """Return what makes a system and uses it once."""

    def run(_: object, **given: Any) -> Any:
        model = kind(**{**SMALL[kind], **given})
        return model.objective(call(kind, model, images=images(kind)[0]), TARGETS[0])

    return run


def inputs(kind: type) -> Good:
    return {
        "images": images(kind),
        **({"valid": [None, mask(ROWS, PLACES)]} if kind is not MLVPT else {}),
        **({"embed": FLAG} if kind is SADCL else {}),
        **(
            {
                "target": [*TARGETS, None],
                "hide": [None, mask(ROWS, LABELS)],
                "return_partial": [None, True, False],
            }
            if kind is LatentContext
            else {}
        ),
    }


FOREIGN = ("ml_vpt_cases", "transformers", "torch/nn/modules/conv")
WITH_MAPS = {"images": "B 8 H W|B N 8", "valid": "B 6", "target": "B 5", "hide": "B 5"}


def of_system(kind: type, settings: Callable[[], Good]) -> list[Entry]:
    outputs: list[Any] = [call(kind, small(kind)(), images=images(kind)[0])]
    required = ("vit", "groups") if kind is MLVPT else ("backbone", "in_channels", "num_labels")
    return [
        Entry(
            name=kind.__name__,
            what="constructor",
            call=whole(kind),
            good=settings,
            required=required,
            also=("images", "target", "output", "valid"),
            skip=own_network,
            foreign=FOREIGN,
        ),
        Entry(
            name=kind.__name__,
            what="forward",
            make=small(kind),
            call=lambda model, **given: model(**given),
            good=lambda: inputs(kind),
            required=("images", "target") if kind is LatentContext else ("images",),
            also=("backbone", "in_channels", "num_labels"),
            shapes=WITH_MAPS if kind is not MLVPT else {"images": "B 3 H W"},
            foreign=FOREIGN,
        ),
        *(
            Entry(
                name=kind.__name__,
                what=method,
                make=small(kind),
                call=lambda model, method=method, **given: getattr(model, method)(**given),
                good=lambda: {"output": outputs, "target": [*TARGETS]},
                required=("output", "target"),
                shapes={"target": "B L"},
                share=2,
            )
            for method in ("objective", "terms")
        ),
    ]


def batches() -> list[Any]:
    good = (MAP[0], labels(ROWS, LABELS).abs())
    bad = [
        (None, None),
        (MAP[0],),
        MAP[0],
        3,
        (*good, None),
        (*good, "x"),
        (*good, mask(ROWS, PLACES)),
        (*good, None, 1),
    ]
    return [[good, good], [good], [], good, *([good, each] for each in bad)]


SYSTEMS = [
    *of_system(OPRL, oprl_settings),
    *of_system(SADCL, sadcl_settings),
    *of_system(LatentContext, latent_settings),
    *of_system(MLVPT, vpt_settings),
    Entry(
        name="OPRL",
        what="set_cooccurrence",
        make=small(OPRL),
        call=lambda model, **given: model.set_cooccurrence(**given),
        good=lambda: {"cooccurrence": [torch.eye(LABELS), torch.eye(LABELS).to_sparse()]},
        required=("cooccurrence",),
        shapes={"cooccurrence": "5 5"},
        share=1,
    ),
    Entry(
        name="SADCL",
        what="initialize_prototypes",
        make=small(SADCL),
        call=lambda model, **given: model.initialize_prototypes(**given),
        good=lambda: {"batches": batches(), "threshold": SHARE},
        required=("batches",),
        also=("prototypes", "target", "valid", "backbone", "in_channels"),
        share=2,
    ),
    Entry(
        name="LatentContext",
        what="logits_given",
        make=small(LatentContext),
        call=lambda model, **given: model.logits_given(**given),
        good=lambda: {"images": MAP, "known_labels": TARGETS, "valid": [None, mask(ROWS, PLACES)]},
        required=("images", "known_labels"),
        shapes={"images": "B 8 H W|B N 8", "known_labels": "B 5", "valid": "B 6"},
        also=("backbone", "in_channels", "target"),
        share=2,
    ),
    Entry(
        name="MLVPT",
        what="load_trainable_state_dict",
        make=small(MLVPT),
        call=lambda model, **given: model.load_trainable_state_dict(**given),
        good=lambda: {"state": states()},
        required=("state",),
        share=1,
    ),
    Entry(
        name="MLVPT",
        what="train",
        make=small(MLVPT),
        call=lambda model, **given: model.train(**given),
        good=lambda: {"mode": FLAG},
        share=1,
    ),
    Entry(
        name="recommended_beta",
        call=lambda _, **given: recommended_beta(**given),
        good=lambda: {"missing": SHARE},
        required=("missing",),
        share=3,
    ),
]


def states() -> list[Any]:
    good = small(MLVPT)().trainable_state_dict()
    names = [name for name in good if name != "_extra_state"]
    bad: list[dict[str, Any]] = [{**good, names[0]: value} for value in (None, 1, normal(2), torch.eye(3).to_sparse())]
    bad += [{**good, "_extra_state": value} for value in (None, 1, {}, {"names": 3}, {"names": ["a"], "num_groups": 2})]
    bad += [{**good, "co_groups": value} for value in (None, torch.zeros(5), torch.zeros(2), "a")]
    bad += [dict(list(good.items())[1:]), {**good, "more": 1}, {**good, 3: 1}, {}]
    return [good, *bad]
