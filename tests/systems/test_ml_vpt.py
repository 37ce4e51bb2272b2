"""ML-VPT: equal to plain loops, only its own parts trained, the backbone as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlcorr.functional import asymmetric_loss
from mlcorr.grouping import LabelGroups
from mlcorr.systems._gated_experts import GatedExperts
from mlcorr.systems.backbones import from_timm, from_transformers
from mlcorr.systems.ml_vpt import MLVPT, MLVPTOutput
from tests.reference import ml_vpt as reference
from tests.systems.ml_vpt_cases import (
    CO,
    DIS,
    GROUPS,
    LABELS,
    WIDTH,
    TimmLike,
    images,
    make_model,
    make_vit,
    reference_weights,
    targets,
    trained,
)
from tests.systems.test_backbones import transformers_model

KINDS = ["vit", "timm"]


def layers_of(model: MLVPT) -> list[reference.Layer]:
    """Return the backbone's layers, each from tokens (n, d) of one image to the same."""

    def call(block: nn.Module, tokens: Tensor) -> Tensor:
        output = block(tokens.unsqueeze(0))
        return (output[0] if isinstance(output, tuple) else output)[0]  # a tuple in version 4 of transformers

    return [lambda tokens, block=block: call(block, tokens) for block in model.backbone.blocks]


# ------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt_output", ["norm", "pre_norm"])
def test_values_and_gradients_equal_the_loops(kind: str, prompt_output: str) -> None:
    model = make_model(kind, prompt_output=prompt_output, experts=3).double()
    x, target = images(2, 16, 24, torch.float64), targets(2)
    output = model(x)
    assert isinstance(output, MLVPTOutput)
    assert output[0] is output.logits
    weights = {name: each.detach().requires_grad_() for name, each in reference_weights(model).items()}
    norm = model.backbone.norm if prompt_output == "norm" else None
    embedded = model.backbone.embed(x)
    expected = reference.network(embedded, layers_of(model), norm, weights, CO, DIS, num_groups=3, experts=3)
    for found, wanted in zip(output, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    loss, wanted = model.objective(output, target), reference.objective(expected[1:5], target)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    own = reference_weights(model)
    for name, gradient in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
        wanted_gradient = torch.autograd.grad(wanted, weights[name], retain_graph=True)[0]
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-9)
        assert wanted_gradient.abs().max() > 1e-3, name


def test_prompts_stand_after_all_leading_tokens_and_their_place_does_not_matter() -> None:
    """Blocks know no positions, so prompts before the class token do the same."""
    model = make_model().double()
    x = images(dtype=torch.float64)
    output = model(x)
    model.prompts._prefix = 0
    for found, wanted in zip(model(x), output, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    registers = from_transformers(transformers_model("dinov2 with registers")[0])
    assert MLVPT(registers, GROUPS).prompts._prefix == 5


def test_what_a_layer_gives_out_at_prompts_does_not_reach_the_next() -> None:
    model = make_model().double()
    first, count = next(iter(model.backbone.blocks)), model.prompts.prompts.shape[1]
    output = model(images(dtype=torch.float64))

    def spoil(_module: nn.Module, _arguments: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        spoilt = tokens.clone()
        spoilt[:, 1 : 1 + count] += 100
        return spoilt

    handle = first.register_forward_hook(spoil)
    assert torch.equal(model(images(dtype=torch.float64)).logits, output.logits)
    handle.remove()
    first.register_forward_hook(lambda _module, _arguments, tokens: tokens + 1e-3)
    assert not torch.equal(model(images(dtype=torch.float64)).logits, output.logits)


def test_a_label_hears_only_the_prompts_of_its_own_groups() -> None:
    model = make_model().double()
    tokens = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    for relation, groups in (("co", CO), ("dis", DIS)):
        for label, group in enumerate(groups):
            logits, gate_logits, _ = getattr(model, relation)(tokens, tokens)
            for chosen in (logits, gate_logits):
                gradient = torch.autograd.grad(chosen[:, label].sum(), tokens, retain_graph=True)[0]
                heard = gradient.abs().sum((0, 2)).nonzero().flatten().tolist()
                assert heard == [expert * 3 + group for expert in range(3)]


def test_gates_are_shares_and_the_mean_is_exact() -> None:
    output = make_model().double()(images(dtype=torch.float64))
    assert torch.equal(output.logits, (output.co_logits + output.dis_logits) / 2)
    assert (output.gates > 0).all()
    torch.testing.assert_close(output.gates.sum(-1), torch.ones(3, 2, LABELS, dtype=torch.float64))
    assert output.gates.std() > 0.1
    model = make_model().double()
    tokens = torch.randn(4, 9, WIDTH, dtype=torch.float64)
    _, gate_logits, _ = model.co(tokens, tokens)
    places = torch.tensor(CO).unsqueeze(-1) + 3 * torch.arange(3)
    scores = torch.einsum("bled,led->ble", tokens[:, places], model.co.gate)
    assert (scores.amin(-1) <= gate_logits).all()
    assert (gate_logits <= scores.amax(-1)).all()


def test_one_expert_has_the_whole_weight_and_its_score_is_the_gate_logit() -> None:
    model = make_model(experts=1).double()
    tokens = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    _, gate_logits, gates = model.dis(tokens, tokens)
    assert (gates == 1).all()
    expected = torch.einsum("bld,ld->bl", tokens[:, list(DIS)], model.dis.gate[:, 0])
    torch.testing.assert_close(gate_logits, expected, rtol=1e-12, atol=1e-12)


def test_adapters_without_a_second_layer_change_nothing() -> None:
    model = make_model()
    tokens = torch.randn(2, 18, WIDTH)
    assert not torch.allclose(model.adapters(tokens), tokens, atol=0.1)
    nn.init.zeros_(model.adapters.up)
    nn.init.zeros_(model.adapters.up_bias)
    assert torch.equal(model.adapters(tokens), tokens)


def renumbered(permutation: list[int]) -> tuple[LabelGroups, list[int]]:
    """Return the groups under other numbers, and for each prompt the one it was."""
    new = torch.tensor(permutation)
    old = new.argsort().tolist()
    half = [expert * 3 + group for expert in range(3) for group in old]
    return LabelGroups(new[GROUPS.co], new[GROUPS.dis], GROUPS.names, 3), half + [9 + place for place in half]


def test_other_numbers_for_the_groups_change_nothing_visible() -> None:
    model, (groups, places) = make_model().double(), renumbered([2, 0, 1])
    other = make_model(groups=groups).double()
    other.load_state_dict(model.state_dict() | {name: getattr(other, name) for name in ("co_groups", "dis_groups")})
    other.prompts.prompts.data = model.prompts.prompts.data[:, places]
    for parameter, own in zip(other.adapters.parameters(), model.adapters.parameters(), strict=True):
        parameter.data = own.data[places]
    for found, wanted in zip(other(images(dtype=torch.float64)), model(images(dtype=torch.float64)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# --------------------------------------------------------------------------------------------------- objective


def test_objective_is_four_asymmetric_losses() -> None:
    model = make_model(gamma_neg=3.0, gamma_pos=0.5, clip=0.1, gate_loss_weight=0.25)
    output, target = model(images()), targets()
    means = [
        asymmetric_loss(each, target, gamma_neg=3.0, gamma_pos=0.5, clip=0.1, reduction="mean") for each in output[1:5]
    ]
    expected = 1000 * (means[0] + means[1] + 0.25 * means[2] + 0.25 * means[3])
    torch.testing.assert_close(model.objective(output, target), expected)
    terms = model.terms(output, target)
    assert list(terms) == ["co", "dis", "co_gate", "dis_gate"]
    torch.testing.assert_close(terms["dis_gate"], 250 * means[3])
    two = make_model(gate_loss_weight=0.0)
    assert list(two.terms(output, target)) == ["co", "dis"]
    assert not torch.allclose(two.objective(output, target), expected)


def test_gradient_of_an_undecided_negative_is_an_eighth_of_its_share() -> None:
    model, zero = make_model(), torch.zeros(1, 1)
    logit = torch.zeros(1, 1, requires_grad=True)
    output = MLVPTOutput(zero, logit, zero, zero, zero, zero)
    model.objective(output, torch.zeros(1, 1)).backward()
    torch.testing.assert_close(logit.grad, torch.tensor([[125.0]]))


def test_unknown_labels_count_nowhere() -> None:
    model = make_model()
    output, target = model(images()), targets()
    known = target >= 0
    assert 0 < known.sum() < known.numel()
    changed = MLVPTOutput(*(torch.where(known, each, float("nan")) for each in output[:5]), output.gates)
    torch.testing.assert_close(model.objective(changed, target), model.objective(output, target))
    nothing = model.objective(output, torch.full_like(target, -1))
    assert nothing == 0
    nothing.backward()
    assert all((each.grad == 0).all() for each in trained(model).values())


# ------------------------------------------------------------------------------------- sizes and what is trained


@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("bottleneck", [1, 5])
def test_parameters_are_counted_by_the_formula(experts: int, bottleneck: int) -> None:
    model = make_model(experts=experts, bottleneck=bottleneck)
    d, n, h = WIDTH, 3, bottleneck
    p = 2 * 3 * experts
    expected = n * p * d + p * (2 * d * h + h + d) + 2 * LABELS * experts * d + 2 * LABELS * (d + 1)
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == expected


def test_parameters_of_the_authors_setting() -> None:
    class Large(nn.Module):
        out_channels, prefix_tokens, patch_dim = 768, 1, 768

        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.norm = nn.ModuleList(nn.Identity() for _ in range(12)), nn.LayerNorm(768)

        def embed(self, x: Tensor) -> Tensor:
            return x

    groups = LabelGroups(torch.arange(80) % 5, torch.arange(80) // 16, None, num_groups=5)
    model = MLVPT(Large(), groups)
    counts = [sum(each.numel() for each in part.parameters()) for part in (model.prompts, model.adapters)]
    assert counts == [276_480, 253_590]
    assert model.co.gate.numel() + model.dis.gate.numel() == 368_640
    assert sum(each.numel() for part in (model.co, model.dis) for each in part.classifier.parameters()) == 123_040
    bound = (6 / (768 + 768)) ** 0.5
    assert 0.99 * bound < model.prompts.prompts.abs().max() <= bound
    assert 0.99 < 768**0.5 * model.co.gate.abs().max() <= 1
    assert 0.99 < 768**0.5 * model.adapters.down.abs().max() <= 1
    assert 0.99 < 5**0.5 * model.adapters.up.abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_part_of_every_prompt_and_nothing_else(kind: str) -> None:
    model = make_model(kind).train()
    target = (torch.arange(LABELS) % 2).repeat(3, 1)
    model.objective(model(images()), target).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            # Rows of prompts by block, of adapters by prompt, of gates by label and expert, of classifiers by label.
            by_two = name.endswith(("prompts.prompts", "gate"))
            rows = parameter.grad.flatten(2).abs().sum(2) if by_two else parameter.grad.reshape(len(parameter), -1)
            rows = rows if by_two else rows.abs().sum(1)
            assert (rows > 0).all(), name


def test_the_backbone_stays_in_evaluation_mode_and_is_the_same_after_training() -> None:
    model = make_model("vit")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for mode in (True, False, True):
        assert model.train(mode).training == mode
        assert model.co.training == mode
        assert not any(module.training for module in model.backbone.modules())
    assert torch.equal(model(images()).logits, model(images()).logits)  # though the backbone has dropout
    first = {name: value.clone() for name, value in trained(model).items()}
    for _ in range(3):
        optimizer.zero_grad()
        model.objective(model(images()), targets()).backward()
        optimizer.step()
    after = model.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(first[name], value) for name, value in trained(model).items())


def test_nothing_is_kept_for_a_backward_pass_before_the_first_prompt() -> None:
    model = make_model("vit")
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        tokens = model.backbone.embed(images())
    assert kept == []
    assert not tokens.requires_grad
    x = images().requires_grad_()  # but a map of what the image's places do is there for who asks
    model(x).logits.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (40, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_and_batches_of_any_number(kind: str, size: tuple[int, int]) -> None:
    model = make_model(kind).double()
    x = images(4, *size, dtype=torch.float64)
    whole = model(x).logits
    assert whole.shape == (4, LABELS)
    for row in range(4):
        torch.testing.assert_close(model(x[row : row + 1]).logits[0], whole[row], rtol=1e-10, atol=1e-12)


def test_one_group_of_one_label_with_one_expert() -> None:
    groups = LabelGroups(torch.tensor([0]), torch.tensor([0]), None, num_groups=1)
    model = make_model(groups=groups, experts=1)
    output = model(images())
    assert [tuple(each.shape) for each in output] == [(3, 1)] * 5 + [(3, 2, 1, 1)]
    model.objective(output, torch.ones(3, 1)).backward()
    assert all(each.grad.isfinite().all() for each in trained(model).values())


def test_an_empty_group_has_prompts_that_act_and_adapters_that_rest() -> None:
    """No parameter is without a gradient, so that DistributedDataParallel waits for none."""
    groups = LabelGroups(torch.tensor([0, 2, 2]), torch.tensor([1, 1, 1]), None, num_groups=3)
    model = make_model(groups=groups, experts=2)
    output = model(images())
    model.objective(output, targets(labels=3)).backward()
    assert all(each.grad is not None for each in trained(model).values())
    rests = [1, 4, 6, 8, 9, 11]  # group 1 of co, groups 0 and 2 of dis
    used = [place for place in range(12) if place not in rests]
    for parameter in model.adapters.parameters():
        assert not parameter.grad[rests].any()
        assert (parameter.grad[used].flatten(1).abs().sum(1) > 0).all()
    assert (model.prompts.prompts.grad[:-1].abs().sum(-1) > 0).all()
    assert (model.prompts.prompts.grad[-1, rests].abs().sum(-1) > 0).all()  # others attend to them


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(output) if isinstance(each, Tensor)]
        self.numel = max([self.numel, *sizes])
        return output


def test_features_of_labels_are_never_formed() -> None:
    torch.manual_seed(0)
    labels, batch, experts, dim = 300, 16, 3, 64
    branch = GatedExperts(torch.arange(labels) % 5, 5, experts, dim)
    tokens = torch.randn(batch, 15, dim, requires_grad=True)
    with Largest() as largest:
        logits, gate_logits, _ = branch(tokens, tokens)
        (logits.square().sum() + gate_logits.square().sum()).backward()
    assert largest.numel == labels * experts * dim  # a copy of the gates, whatever the batch
    assert largest.numel < batch * labels * experts * dim


# ------------------------------------------------------------------------------------------------------ errors


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^vit: expected a torch.nn.Module, got str"):
        MLVPT("vit", GROUPS)
    with pytest.raises(TypeError, match=r"^vit: .*from_transformers.* got Linear without embed, blocks, norm"):
        MLVPT(nn.Linear(2, 2), GROUPS)
    with pytest.raises(TypeError, match=r"^groups: expected mlcorr.LabelGroups, got Tensor"):
        MLVPT(make_vit(), torch.zeros(3))
    for option, value, message in (
        ("experts", 0, "expected an integer >= 1"),
        ("bottleneck", 0, "expected an integer >= 1"),
        ("gate_loss_weight", -1.0, "expected a number >= 0"),
        ("prompt_output", "both", "'norm', 'pre_norm'"),
        ("gamma_neg", -1.0, "expected a number >= 0"),
    ):
        with pytest.raises(ValueError, match=rf"^{option}: .*{message}"):
            make_model(**{option: value})
    with pytest.raises(TypeError, match=r"^group: expected a torch.distributed process group"):
        make_model(group=3)
    model = make_model()
    with pytest.raises(ValueError, match=r"^target: expected the shape of logits, \(3, 7\), got \(3, 6\)"):
        model.objective(model(images()), torch.zeros(3, 6))
    model.backbone.embed = lambda x: torch.zeros(len(x), 5, 8)
    with pytest.raises(ValueError, match=r"^vit: expected embed to return tokens \(B, N, 16\), got \(3, 5, 8\)$"):
        model(images())
    with pytest.raises(ValueError, match=r"^vit: expected at least one block"):
        MLVPT(from_timm(TimmLike(depth=0)), GROUPS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_frozen_part_may_have_another_precision(dtype: torch.dtype) -> None:
    model = make_model()
    expected = model(images()).logits
    model.backbone.to(dtype)
    output = model(images())
    assert output.logits.dtype == expected.dtype
    torch.testing.assert_close(output.logits, expected, rtol=0.05, atol=0.05)


def test_gates_are_not_rounded_in_autocast() -> None:
    model = make_model().float()
    tokens = torch.randn(2, 3 * GROUPS.num_groups, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = model.co(tokens, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model.co(tokens, tokens)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    large = model.co((100 * tokens).half(), tokens.half())
    assert all(each.isfinite().all() for each in large)


def test_an_average_of_buffers_keeps_the_places_of_labels() -> None:
    model = make_model()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    expected = model(images()).logits
    for _ in range(5):
        average.update_parameters(model)
    torch.testing.assert_close(average(images()).logits, expected)


def test_a_failed_constructor_leaves_the_transformer_as_it_was() -> None:
    vit = make_model().backbone.requires_grad_(True).train()
    with pytest.raises(ValueError, match="gamma_neg"):
        MLVPT(vit, GROUPS, gamma_neg=-1.0)
    assert vit.training
    assert all(parameter.requires_grad for parameter in vit.parameters())
