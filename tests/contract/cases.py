"""Every public name, as a case: a name without one fails (see test_table.py).

Where settings make another computation of it, what follows the comma of a key says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlcorr import functional, grouping, layers, metrics
from mlcorr.grouping import LabelGroups
from mlcorr.ops import contrast, norder
from mlcorr.systems import backbones
from mlcorr.systems.latent_context import LatentContext, recommended_beta
from mlcorr.systems.ml_vpt import MLVPT
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL
from tests.contract.case import Arguments, Case, Drawn, Sizes, Thing, seeded
from tests.contract.loss_cases import LOSSES
from tests.systems.ml_vpt_cases import TimmLike

PLACES = (2, 3)  # height and width of a map of features


# ------------------------------------------------------------------------------------------------------------ layers


def of_scores(function: Thing, *, gradient: bool = True) -> Case:
    def draw(sizes: Sizes) -> Arguments:
        drawn, shape = Drawn(sizes), (*sizes.leading, sizes.rows, sizes.labels, sizes.width)
        return {"scores": drawn.normal(*shape), "valid": drawn.mask(*shape)}

    return Case(
        kind="layer",
        make=lambda sizes: function,  # noqa: ARG005
        draw=draw,
        floating={"scores": "logits"},
        leaves=("scores",) if gradient else (),
        leading=True,
    )


def of_label_features(make: Callable[[Sizes], Thing], *, weights: bool = False, leading: bool = True) -> Case:
    def draw(sizes: Sizes) -> Arguments:
        drawn = Drawn(sizes)
        more = {"weight": drawn.normal(sizes.labels, sizes.width), "bias": drawn.normal(sizes.labels)}
        return {
            "x": drawn.normal(*sizes.leading, sizes.rows, sizes.labels, sizes.width),
            **(more if weights else {}),
        }

    names = ("x", "weight", "bias") if weights else ("x",)
    return Case(
        kind="layer", make=make, draw=draw, floating=dict.fromkeys(names, "features"), leaves=names, leading=leading
    )


def purified(sizes: Sizes) -> Arguments:
    drawn = Drawn(sizes)
    return {
        "features": drawn.normal(sizes.rows, sizes.width, *PLACES),
        "valid": drawn.mask(sizes.rows, PLACES[0] * PLACES[1]),
    }


LAYERS: dict[str, Case] = {
    "purify": of_scores(functional.purify),
    "quantile_mask": of_scores(partial(functional.quantile_mask, tau=0.4), gradient=False),
    "spatial_aware_logits": of_scores(functional.spatial_aware_logits),
    "average_message": of_label_features(lambda sizes: functional.average_message),  # noqa: ARG005
    "group_wise_linear": of_label_features(lambda sizes: functional.group_wise_linear, weights=True),  # noqa: ARG005
    "GroupWiseLinear": of_label_features(seeded(lambda sizes: layers.GroupWiseLinear(sizes.labels, sizes.width))),
    "AverageMessageGCN": of_label_features(
        seeded(lambda sizes: layers.AverageMessageGCN(sizes.width, sizes.labels, torch.eye(sizes.labels)))
    ),
    "BidirectionalRefiner": of_label_features(
        seeded(lambda sizes: layers.BidirectionalRefiner(sizes.labels, sizes.width))
    ),
    "SpatialPurifiedAttention": Case(
        kind="layer",
        make=seeded(lambda sizes: layers.SpatialPurifiedAttention(sizes.width, sizes.labels, 4)),
        draw=purified,
        floating={"features": "features"},
        leaves=("features",),
    ),
}

# ----------------------------------------------------------------------------------------------------------- systems


def system(build: Callable[[Sizes], nn.Module], images: Callable[[Sizes], Tensor], **more: Any) -> Case:
    """Return the case of a system: what its objective and its outputs are for images and target."""

    def call(model: Any, arguments: Arguments) -> Any:
        given = {name: value for name, value in arguments.items() if name != "target"}
        output = model(**given, **({"target": arguments["target"]} if "hide" in given else {}))
        return model.objective(output, arguments["target"]), output

    def draw(sizes: Sizes) -> Arguments:
        target = Drawn(sizes).targets(sizes.rows, sizes.labels)
        rest = {name: value(sizes) for name, value in more.items()}
        return {"images": images(sizes), "target": target, **rest}

    return Case(
        kind="system",
        make=seeded(build),
        draw=draw,
        floating={"images": "features"},
        leaves=("images",),
        call=call,
    )


def maps(sizes: Sizes) -> Tensor:
    return Drawn(sizes).normal(sizes.rows, sizes.width, *PLACES)


def pictures(sizes: Sizes) -> Tensor:
    return Drawn(sizes).normal(sizes.rows, 3, 16, 16)


def ml_vpt(sizes: Sizes) -> nn.Module:
    groups = torch.arange(sizes.labels) % min(2, sizes.labels)
    both = LabelGroups(groups, groups.flip(0), None, num_groups=min(2, sizes.labels))
    return MLVPT(backbones.from_timm(TimmLike()), both, bottleneck=2)


SYSTEMS: dict[str, Case] = {
    "OPRL": system(
        lambda sizes: OPRL(
            nn.Identity(), sizes.width, sizes.labels, encoder_heads=2, encoder_width=8, encoder_dropout=0
        ),
        maps,
    ),
    "SADCL": system(
        lambda sizes: SADCL(
            nn.Identity(), sizes.width, sizes.labels, proj_dim=6, proj_width=8, width=8, heads=2, dropout=0.0
        ),
        maps,
    ),
    "MLVPT": system(ml_vpt, pictures),
    "LatentContext": system(
        lambda sizes: LatentContext(
            nn.Identity(), sizes.width, sizes.labels, dim=8, units=3, depth=1, heads=2, width=8, dropout=0.0
        ),
        maps,
        hide=lambda sizes: ~Drawn(sizes).mask(sizes.rows, sizes.labels),
    ),
}


def backbone(make: Callable[[Sizes], nn.Module]) -> Case:
    return Case(
        kind="backbone",
        make=seeded(make),
        draw=lambda sizes: {"images": pictures(sizes)},
        floating={"images": "features"},
        leaves=("images",),
    )


def transformers_model(sizes: Sizes) -> nn.Module:  # noqa: ARG001
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        hidden_dropout_prob=0.0,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def timm_model(sizes: Sizes) -> nn.Module:  # noqa: ARG001
    model = TimmLike()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


BACKBONES: dict[str, Case] = {
    "from_transformers": backbone(lambda sizes: backbones.from_transformers(transformers_model(sizes))),
    "TransformersBackbone": backbone(lambda sizes: backbones.TransformersBackbone(transformers_model(sizes))),
    "from_timm": backbone(lambda sizes: backbones.from_timm(timm_model(sizes))),
    "TimmBackbone": backbone(lambda sizes: backbones.TimmBackbone(timm_model(sizes))),
}

# ------------------------------------------------------------------------------------- grouping, metrics, and choices


def counted(sizes: Sizes) -> Arguments:
    return {"targets": Drawn(sizes).targets(sizes.rows, sizes.labels)}


def count(counts: Any, arguments: Arguments) -> Any:
    counts.update(arguments["targets"])
    return counts.counts(), counts.conditional()


def group(grouped: Any, arguments: Arguments) -> Any:
    grouped.update(arguments["targets"])
    groups = grouped.fit()
    return groups.co, groups.dis, grouped(arguments["group_features"])


def to_group(sizes: Sizes) -> Arguments:
    groups = min(2, sizes.labels)
    return {**counted(sizes), "group_features": Drawn(sizes).normal(sizes.rows, groups, sizes.width)}


def pairs(sizes: Sizes) -> Arguments:
    together = Drawn(sizes).normal(sizes.labels, sizes.labels).abs().floor()
    return {"counts": together + together.T, "label_counts": (together + together.T).sum(1)}


def graph(sizes: Sizes) -> Arguments:
    return {"affinity": functional_affinity(sizes), "groups": torch.arange(sizes.labels) % 2}


def functional_affinity(sizes: Sizes) -> Tensor:
    return grouping.affinity(**pairs(sizes))


GROUPING: dict[str, Case] = {
    "LabelCooccurrence": Case(
        kind="grouping",
        make=lambda sizes: grouping.LabelCooccurrence(sizes.labels),
        draw=counted,
        call=count,
    ),
    "LabelCooccurrence, sparse": Case(
        kind="grouping",
        make=lambda sizes: grouping.LabelCooccurrence(sizes.labels, storage="sparse"),
        draw=counted,
        call=lambda counts, arguments: (count(counts, arguments)[0].present, counts.conditional()),
    ),
    "SpectralLabelGrouping": Case(
        kind="grouping",
        make=lambda sizes: grouping.SpectralLabelGrouping(sizes.labels, min(2, sizes.labels), restarts=1),
        draw=to_group,
        floating={"group_features": "features"},
        leaves=("group_features",),
        call=group,
    ),
    "LabelGroups": Case(
        kind="grouping",
        make=lambda sizes: partial(LabelGroups, names=None, num_groups=min(2, sizes.labels)),
        draw=lambda sizes: dict.fromkeys(("co", "dis"), torch.arange(sizes.labels) % min(2, sizes.labels)),
    ),
    "affinity": Case(
        kind="grouping",
        make=lambda sizes: grouping.affinity,  # noqa: ARG005
        draw=pairs,
    ),
    "normalized_cut": Case(
        kind="grouping",
        make=lambda sizes: grouping.normalized_cut,  # noqa: ARG005
        draw=graph,
    ),
}


def scored(sizes: Sizes) -> Arguments:
    drawn, shape = Drawn(sizes), (sizes.rows, sizes.labels)
    return {"scores": drawn.normal(*shape).sigmoid(), "targets": drawn.targets(*shape)}


def metric(make: Callable[[Sizes], Thing]) -> Case:
    return Case(kind="metric", make=make, draw=scored, floating={"scores": "probabilities"})


def torchmetric(name: str) -> Callable[[Sizes], Thing]:
    def make(sizes: Sizes) -> Thing:
        from mlcorr import metrics_torchmetrics

        return getattr(metrics_torchmetrics, name)(sizes.labels)

    return make


METRICS: dict[str, Case] = {
    "multilabel_scores": metric(lambda sizes: metrics.multilabel_scores),  # noqa: ARG005
    "average_precision": metric(lambda sizes: metrics.average_precision),  # noqa: ARG005
    "best_thresholds": metric(lambda sizes: metrics.best_thresholds),  # noqa: ARG005
    "MultilabelScores": metric(torchmetric("MultilabelScores")),
    "MultilabelScore": metric(torchmetric("MultilabelScore")),
}


def choice(function: Thing, **arguments: Any) -> Case:
    return Case(kind="choice", make=lambda sizes: function, draw=lambda sizes: dict(arguments))  # noqa: ARG005


CHOICES: dict[str, Case] = {
    "recommended_beta": choice(recommended_beta, missing=0.3),
    "norder.select_backend": choice(norder.select_backend, level="batch", batch_size=4),
    "contrast.select_backend": choice(contrast.select_backend),
}

CASES: Mapping[str, Case] = {**LOSSES, **LAYERS, **SYSTEMS, **BACKBONES, **GROUPING, **METRICS, **CHOICES}

# Tuples of what something else computed, and a protocol: they compute nothing.
RECORDS = {
    "PurifiedFeatures",
    "LabelCounts",
    "OPRLOutput",
    "SADCLOutput",
    "MLVPTOutput",
    "LatentContextOutput",
    "VisionTransformer",
}
