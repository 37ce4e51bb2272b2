"""Bad arguments that once ended in an error from inside, or were taken; each as it was found, and what it says now."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlcorr import functional, grouping, layers, losses, metrics
from mlcorr.grouping import LabelGroups
from mlcorr.ops import contrast, norder
from mlcorr.systems import backbones
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.mdkd import MDKDObjective
from mlcorr.systems.ml_vpt import MLVPT
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL, SADCLOutput
from tests.systems.ml_vpt_cases import GROUPS, TimmLike

X, Y = torch.zeros(4, 5), torch.zeros(4, 5)
MAP = torch.randn(4, 8, 2, 3)


def oprl() -> OPRL:
    return OPRL(nn.Identity(), 8, 5, encoder_heads=2, encoder_width=8)


def sadcl() -> SADCL:
    return SADCL(nn.Identity(), 8, 5, proj_dim=6, proj_width=8, width=8, heads=2)


def latent() -> LatentContext:
    return LatentContext(nn.Identity(), 8, 5, dim=8, units=3, depth=1, heads=2, width=8)


def ml_vpt() -> MLVPT:
    return MLVPT(backbones.from_timm(TimmLike(depth=1)), GROUPS, bottleneck=2)


def spectral() -> grouping.SpectralLabelGrouping:
    return grouping.SpectralLabelGrouping(5, 2)


def configured(**config: Any) -> nn.Module:
    model = nn.Linear(2, 2)
    model.config = type("Config", (), config)()
    return model


def nested(*shape: int) -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(shape), torch.zeros(shape)])


FOUND: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # numbers beyond a float, beyond 64 bits, and such that Python does not write
    (
        lambda: functional.hill_loss(X, Y, gamma=10**400),
        ValueError,
        "gamma: expected a number >= 0, got a whole number",
    ),
    (
        lambda: functional.hill_loss(X, Y, gamma=10**5000),
        ValueError,
        "gamma: expected a number >= 0, got a whole number",
    ),
    (lambda: layers.GroupWiseLinear(10**30, 8), ValueError, "num_labels: expected an integer <= 9223372036854775807"),
    (
        lambda: layers.AverageMessageGCN(8, 5, negative_slope=1e308),
        ValueError,
        "negative_slope: expected a number in [0",
    ),
    (lambda: losses.PartialBCELoss(alpha=-(10**400)), ValueError, "alpha: expected a number"),
    (lambda: functional.sample_contrastive_loss(X, Y[:, 0].long(), num_labels=2**63), ValueError, "num_labels: "),
    # tensors that cannot be computed with
    (lambda: functional.mld_loss(nested(2, 5), X), TypeError, "student: expected a dense tensor, got a nested one"),
    (lambda: functional.hill_loss(X.to_sparse(), Y), TypeError, "input: expected a dense tensor, got torch.sparse_coo"),
    (lambda: functional.hill_loss(X, Y.to_sparse_csr()), TypeError, "target: expected a dense tensor"),
    (lambda: functional.hill_loss(nn.UninitializedParameter(), Y), TypeError, "input: expected a torch.Tensor"),
    (
        lambda: functional.hill_loss(X.to(torch.float8_e4m3fn), Y),
        TypeError,
        "input: expected a floating-point tensor of",
    ),
    (lambda: functional.purify(X, valid=(X > 0).to_sparse()), TypeError, "valid: expected a dense tensor"),
    (lambda: functional.asymmetric_loss(X, Y, weight=X.to(torch.complex64)), TypeError, "weight: expected a tensor of"),
    (lambda: losses.AsymmetricLoss(pos_weight=[1.0]), TypeError, "pos_weight: expected a torch.Tensor, got list"),
    (lambda: losses.MLDLoss(weight="abc"), TypeError, "weight: expected a torch.Tensor"),
    # a dtype or a device that the weights do not have
    (
        lambda: layers.GroupWiseLinear(5, 8)(torch.zeros(5, 8).double()),
        TypeError,
        "x: expected the dtype of the weights",
    ),
    (lambda: layers.BidirectionalRefiner(5, 8)(torch.zeros(5, 8).half()), TypeError, "x: expected the dtype of the"),
    (lambda: layers.AverageMessageGCN(8, 5)(torch.zeros(5, 8, device="meta")), ValueError, "x: expected the device"),
    (lambda: layers.SpatialPurifiedAttention(8, 5)(MAP.double()), TypeError, "features: expected the dtype of the"),
    (lambda: functional.group_wise_linear(torch.zeros(5, 8), torch.zeros(5, 8).half()), TypeError, "weight: expected"),
    (lambda: sadcl()(MAP.byte()), TypeError, "backbone: expected a floating-point tensor"),
    (lambda: latent()(MAP.double(), Y), TypeError, "backbone: expected the dtype of the weights"),
    # what is chosen among names
    (lambda: norder.select_backend("rows", batch_size=4), ValueError, "level: expected one of 'instance', 'batch'"),
    (lambda: norder.select_backend("batch", batch_size="4"), TypeError, "batch_size: expected an integer"),
    (lambda: norder.select_backend("batch", batch_size=4, delta={}), TypeError, "delta: expected a number, got dict"),
    (lambda: norder.select_backend("batch", batch_size=4, orders=[1]), ValueError, "orders: expected an integer >= 2"),
    (lambda: contrast.select_backend(device="nope"), ValueError, "device: expected a device such as 'cpu'"),
    (lambda: contrast.select_backend(device=0), TypeError, "device: expected a torch.device or a string"),
    (lambda: spectral().eigenvalues(["co"]), ValueError, "relation: expected one of 'co', 'dis', got list"),
    (lambda: layers.BidirectionalRefiner(5, 8, paths={"category"}), TypeError, "paths: expected a sequence, got set"),
    (lambda: losses.MultiOrderDependencyLoss(torch.tensor(2)), TypeError, "orders: expected integers >= 2"),
    # sources of random numbers
    (
        lambda: functional.multi_order_dependency_loss(X, Y, generator=3, orders=[2]),
        TypeError,
        "generator: expected a torch.Generator or None, got 3",
    ),
    # outputs, batches, states
    (
        lambda: oprl().objective(None, Y),
        TypeError,
        "output: expected the OPRLOutput that the model returned, got NoneType",
    ),
    (lambda: latent().terms((X, X), Y), TypeError, "output: expected the LatentContextOutput"),
    (lambda: ml_vpt().objective(X, Y), TypeError, "output: expected the MLVPTOutput"),
    (
        lambda: sadcl().objective(SADCLOutput(X, MAP, MAP), Y),
        ValueError,
        "output.embeddings: expected the shape (B, L, p)",
    ),
    (lambda: sadcl().initialize_prototypes([(MAP,)]), ValueError, "batches: expected pairs (images, target)"),
    (lambda: sadcl().initialize_prototypes(np.array(1)), TypeError, "batches: expected pairs (images, target)"),
    (lambda: sadcl().initialize_prototypes([MAP]), TypeError, "batches: expected pairs (images, target)"),
    (lambda: ml_vpt().load_trainable_state_dict([]), TypeError, "state: expected what trainable_state_dict returns"),
    (lambda: ml_vpt().train("no"), TypeError, "mode: expected True or False"),
    (lambda: spectral().set_extra_state(torch.zeros(3)), ValueError, "state: expected bytes of JSON in a tensor"),
    (
        lambda: spectral().set_extra_state(torch.tensor([123, 125]).byte()),
        ValueError,
        "state: expected names, num_groups",
    ),
    # images, models, transformers in parts
    (lambda: backbones.from_timm(TimmLike(depth=1))(None), TypeError, "images: expected a torch.Tensor, got NoneType"),
    (lambda: backbones.from_timm(TimmLike(depth=1)).embed(X), ValueError, "images: expected the shape (B, 3, height"),
    (
        lambda: backbones.from_transformers(configured(hidden_sizes=[], hidden_size=[])),
        TypeError,
        "model: expected a vision",
    ),
    (lambda: backbones.from_transformers(configured(hidden_size=True)), TypeError, "model: expected a vision model"),
    # objectives that read before they checked
    (lambda: MDKDObjective().gradient_norms(None, X, Y), TypeError, "student: expected a torch.Tensor, got NoneType"),
    # labels in groups, and their counts
    (lambda: LabelGroups.load(None), TypeError, "path: expected a path, got NoneType"),
    (lambda: LabelGroups.load("a\0b"), ValueError, "path: expected a path"),
    (lambda: GROUPS.save(3), TypeError, "path: expected a path, got int"),
    (lambda: GROUPS.reorder({"a", "b"}), TypeError, "names: expected a sequence, got set"),
    (
        lambda: grouping.LabelCooccurrence(5).conditional(dtype=torch.int64),
        TypeError,
        "dtype: expected a floating-point",
    ),
    (lambda: grouping.LabelCooccurrence(5).counts(sparse=X), TypeError, "sparse: expected True or False, got Tensor"),
    (lambda: grouping.affinity(Y[:4, :4], Y[:, 0].to_sparse()), ValueError, "label_counts: expected a dense tensor of"),
    (
        lambda: grouping.affinity(Y[:4, :4].to_sparse(1), Y[:, 0]),
        ValueError,
        "counts: expected sparse dimensions alone",
    ),
    (lambda: metrics.multilabel_scores(X, Y, top_k=int), TypeError, "top_k: expected an integer, got type"),
    (
        lambda: metrics.average_precision(X.to("meta"), Y.to("meta")),
        ValueError,
        "scores: expected a tensor with numbers",
    ),
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("call", "error", "message"), FOUND, ids=[f"{n}: {each[2][:30]}" for n, each in enumerate(FOUND)]
)
def test_it_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


def test_autocast_still_mixes_what_it_can() -> None:
    layer = layers.GroupWiseLinear(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(4, 5, 8, dtype=torch.bfloat16)).shape == (4, 5)
        with pytest.raises(
            TypeError, match=r"^x: expected the dtype of the weights, torch\.float32, got torch\.float64"
        ):
            layer(torch.zeros(4, 5, 8, dtype=torch.float64))


def test_numbers_that_a_dtype_does_not_hold_are_its_largest() -> None:
    unknown = torch.full((2, 3), -1)
    logits = torch.full((2, 3), -50.0)
    found = functional.partial_asymmetric_loss(logits, unknown, alpha_unknown=1e308, likelihood_topk=2**62)
    assert found == 0  # all are ignored
    assert functional.partial_asymmetric_loss(logits, unknown, alpha_unknown=1e308, likelihood_topk=0) >= 0


def test_a_fraction_is_a_number() -> None:
    model = OPRL(nn.Identity(), 8, 5, encoder_heads=2, encoder_width=8, encoder_dropout=Fraction(1, 2))
    assert model(MAP).logits.shape == (4, 5)


def test_what_no_branch_reads_is_checked_too() -> None:
    model = latent().eval()
    with pytest.raises(ValueError, match=r"^target: "):
        model(MAP, torch.zeros(3, 5))
    with pytest.raises(TypeError, match=r"^return_partial: "):
        model(MAP, Y, return_partial=0)


def test_a_transformer_in_parts_says_how_wide_it_is() -> None:
    vit = backbones.from_timm(TimmLike(depth=1))
    vit.out_channels = "16"
    with pytest.raises(TypeError, match=r"^vit.out_channels: expected an integer >= 1, got '16' of type str"):
        MLVPT(vit, GROUPS)
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_a_file_is_named_by_the_argument_it_came_from(tmp_path: Path) -> None:
    good, bad = tmp_path / "co.json", tmp_path / "dis.json"
    good.write_text('[{"0": 0}, {"1": 0}]', encoding="utf-8")
    bad.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"^dis: .*holds no label groups of the published format"):
        LabelGroups.load(good, dis=bad)


def test_what_stands_in_for_a_part_is_left_to_cast_by_itself() -> None:
    class Casting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double()).float()

    layer = layers.SpatialPurifiedAttention(8, 5)
    layer.score, layer.transform = Casting(8, 5).double(), Casting(8, 8).double()
    with pytest.raises(TypeError, match=r"^features: "):
        layers.SpatialPurifiedAttention(8, 5)(MAP.flatten(2).mT.double())
    assert layer(MAP.flatten(2).mT).aux_logits.shape == (4, 5)


DRAWS_LATE: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "AverageMessageGCN": (partial(layers.AverageMessageGCN, 8, 5), [{"cooccurrence": torch.full((5, 5), -1.0)}]),
    "OPRL": (
        partial(OPRL, nn.Identity(), 8, 5, encoder_heads=2, encoder_width=8),
        [{"tau": 2.0}, {"schedule": ["sum"]}, {"cooccurrence": torch.eye(4)}, {"hidden_dim": 0}, {"clip": -1.0}],
    ),
    "SADCL": (
        partial(SADCL, nn.Identity(), 8, 5, proj_dim=6, proj_width=8, width=8, heads=2),
        [{"bank": "ring"}, {"bank_size": 0}, {"temperature": 0.0}],
    ),
    "MLVPT": (partial(MLVPT, backbones.from_timm(TimmLike(depth=1)), GROUPS), [{"clip": 2.0}]),
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, k) for name, (_, bad) in DRAWS_LATE.items() for k in range(len(bad))]
)
def test_a_constructor_that_refuses_draws_nothing(name: str, number: int) -> None:
    make, bad = DRAWS_LATE[name]
    before = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=next(iter(bad[number]))):
        make(**bad[number])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forward_pass_that_refuses_draws_no_labels_to_hide() -> None:
    model, target = latent(), torch.ones(4, 5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="in_channels"):
        model(torch.zeros(4, 7, 2, 3), target)
    assert torch.equal(torch.get_rng_state(), before)
