"""ML-VPT in training: compiled, in half precision, with less memory, saved, and over two processes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlcorr._extra_state import decoded
from mlcorr.grouping import LabelGroups
from mlcorr.metrics import multilabel_scores
from mlcorr.systems.ml_vpt import MLVPT
from tests.ranks import run_ranks
from tests.systems.ml_vpt_cases import GROUPS, LABELS, images, make_model, make_vit, targets, trained
from tests.systems.planted import planted

KINDS = ["vit", "timm"]


def step(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return model.objective(model(x), target)


# -------------------------------------------------------------------------------- compiled, half precision, memory


@pytest.mark.parametrize(("kind", "recompute"), [("vit", False), ("vit", True), ("timm", True)])
def test_compiled_equals_eager(kind: str, recompute: bool) -> None:
    torch._dynamo.reset()  # every case is another model for the same code, of which there may be eight
    model = make_model(kind, checkpoint_blocks=recompute)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    own = list(trained(model).values())
    found, expected = (torch.autograd.grad(run(model, images(), targets()), own) for run in (compiled, step))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    x = images(2, 24, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, x, targets(2)), step(model, x, targets(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_computing_blocks_anew_changes_nothing_but_what_is_kept(kind: str) -> None:
    results, kept = [], []
    for recompute in (False, True):
        model, held = make_model(kind, checkpoint_blocks=recompute).double(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, held=held: held.append(x.numel()) or x, lambda x: x):
            loss = step(model, images(8, 40, 40, torch.float64), targets(8))
        results.append([loss, *torch.autograd.grad(loss, list(trained(model).values()))])
        kept.append(sum(held))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert kept[1] < 0.3 * kept[0]


def test_computing_blocks_anew_is_of_no_use_in_inference() -> None:
    model = make_model(checkpoint_blocks=True)
    with torch.no_grad():
        found = model(images()).logits
    assert torch.equal(found, make_model()(images()).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_agrees_with_float32(kind: str, recompute: bool) -> None:
    model = make_model(kind, checkpoint_blocks=recompute)
    for part in (model.co, model.dis):
        nn.init.normal_(part.gate, std=0.05)  # saturated gates turn one rounding step into another expert
        nn.init.normal_(part.classifier.weight, std=0.1)
    expected = model(images())
    whole = model.objective(expected, targets())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images())
        loss = model.objective(found, targets())
    assert {each.dtype for each in found} == {torch.float32}
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=5e-2)
    assert not torch.equal(found.logits, expected.logits)
    torch.testing.assert_close(loss, whole, rtol=2e-2, atol=0)
    loss.backward()
    assert all(each.grad.isfinite().all() for each in trained(model).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_finite(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    output = model(10 * images(dtype=dtype))
    assert {each.dtype for each in output} == {torch.float32}
    loss = model.objective(output, targets())
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(each.grad.isfinite().all() for each in trained(model).values())
    assert torch.equal(model.co_groups, GROUPS.co)


# ------------------------------------------------------------------------------------------------------- learning


def test_prompts_learn_what_a_random_frozen_transformer_does_not_say() -> None:
    x, target = planted(96, LABELS, cells=3, side=8)
    torch.manual_seed(0)
    model = MLVPT(make_vit(), GROUPS).train()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)

    def score() -> float:
        with torch.no_grad():
            return float(multilabel_scores(model(x).logits, target, inputs="logits")["mAP"])

    before, losses = score(), []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(step(model, x, target))
        losses[-1].backward()
        optimizer.step()
    assert before < 0.6
    assert score() > 0.97
    assert losses[-1] < 0.5 * losses[0]


# --------------------------------------------------------------------------------------------------------- saving


def saved(state: object) -> object:
    """Return what a file gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_compact_state_is_what_is_trained_and_the_groups() -> None:
    model = make_model("vit")
    state = model.trainable_state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    assert tensors.keys() == state.keys() == {*trained(model), "co_groups", "dis_groups", "_extra_state"}
    assert decoded(state["_extra_state"]) == {"names": list("abcdefg"), "num_groups": 3}
    assert not any(name.startswith("backbone") for name in state)

    torch.manual_seed(9)
    other = MLVPT(make_vit("vit"), GROUPS, bottleneck=2)
    assert not torch.equal(other(images()).logits, model(images()).logits)
    other.load_trainable_state_dict(saved(state))
    for found, wanted in zip(other(images()), model(images()), strict=True):
        assert torch.equal(found, wanted)


def test_the_whole_state_goes_there_and_back() -> None:
    model = make_model("vit")
    torch.manual_seed(9)
    other = MLVPT(make_vit("vit", initializer_range=0.1), GROUPS, bottleneck=2)
    other.load_state_dict(saved(model.state_dict()))
    assert torch.equal(other(images()).logits, model(images()).logits)


def altered(**changes) -> LabelGroups:
    fields = {"co": GROUPS.co, "dis": GROUPS.dis, "names": GROUPS.names, "num_groups": 3}
    return LabelGroups(**{**fields, **changes})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (altered(co=GROUPS.co.flip(0)), r"the same co_groups of the labels, got others \(\d of them\)"),
        (altered(dis=GROUPS.dis.roll(1)), r"the same dis_groups of the labels, got others"),
        (altered(names=("b", "a", *"cdefg")), r"same labels in the same order.* 'a' there, 'b' here"),
        (altered(num_groups=4), r"expected 4 groups, got 3"),
        (
            LabelGroups(GROUPS.co[:5], GROUPS.dis[:5], tuple("abcde"), 3),
            r"same labels in the same order, got 7 names for 5",
        ),
        (
            LabelGroups(GROUPS.co[:5], GROUPS.dis[:5], None, 3),
            r"same co_groups of the labels, got others \(their number",
        ),
    ],
)
def test_a_state_of_other_groups_or_labels_is_refused_and_nothing_changed(groups: LabelGroups, message: str) -> None:
    state = make_model().state_dict()
    torch.manual_seed(9)
    other = MLVPT(make_vit(), groups, bottleneck=2)
    before = {name: copy.deepcopy(value) for name, value in other.state_dict().items()}
    compact = {name: value for name, value in state.items() if not name.startswith("backbone.")}
    for load, given in ((other.load_state_dict, state), (other.load_trainable_state_dict, compact)):
        with pytest.raises(ValueError, match=rf"^state: .*{message}"):
            load(given)
        for name, value in other.state_dict().items():
            assert torch.equal(value, before[name])


def test_groups_without_names_fit_the_same_groups_with_names() -> None:
    model, nameless = make_model(), make_model(groups=altered(names=None))
    nameless.load_trainable_state_dict(model.trainable_state_dict())
    model.load_trainable_state_dict(nameless.trainable_state_dict())


def test_a_compact_state_of_other_parts_or_sizes_is_refused_whole() -> None:
    model = make_model()
    state = model.trainable_state_dict()
    before = model.prompts.prompts.detach().clone()
    changed = {name: value + 1 if name == "prompts.prompts" else value for name, value in state.items()}
    with pytest.raises(ValueError, match=r"^state: .*lacks \['co.gate'\], has also \[\]"):
        model.load_trainable_state_dict({name: value for name, value in changed.items() if name != "co.gate"})
    with pytest.raises(ValueError, match=r"^state: .*has also \['backbone"):
        model.load_trainable_state_dict({**changed, **model.state_dict()})
    with pytest.raises(ValueError, match=r"^state: expected dis.gate of the shape \(7, 3, 16\), got \(7, 2, 16\)"):
        model.load_trainable_state_dict({**changed, "dis.gate": state["dis.gate"][:, :2]})
    with pytest.raises(ValueError, match=r"^state: expected dis.gate of the shape .*, got list"):
        model.load_trainable_state_dict({**changed, "dis.gate": []})
    assert torch.equal(model.prompts.prompts, before)


def test_a_copy_shares_nothing_and_is_as_frozen() -> None:
    model = make_model("vit").train()
    other = copy.deepcopy(model)
    model.objective(model(images()), targets()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not any(parameter.requires_grad for parameter in other.backbone.parameters())
    assert all(parameter.grad is None for parameter in other.parameters())
    assert torch.equal(other(images()).logits, make_model("vit")(images()).logits)


# ------------------------------------------------------------------------------------------------------ processes

STEPS = 3
CASES = [{}, {"gate_loss_weight": 0.0}, {"experts": 1}, {"groups": "with an empty one"}]


def build(case: dict[str, object], group: object) -> MLVPT:
    options = dict(case)
    if options.pop("groups", None):
        options["groups"] = LabelGroups(torch.tensor([0, 0, 2, 2, 2, 0, 2]), GROUPS.dis, None, 3)
    return make_model(group=group, **options).double()


def train(model: nn.Module, system: MLVPT, rows: int, own: slice) -> list[Tensor]:
    """Train for a few steps and return losses and gradients of all steps, and the weights."""
    optimizer = torch.optim.SGD(trained(system).values(), lr=1e-4)
    results = []
    for number in range(STEPS):
        x = torch.randn(rows, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        target = torch.randint(-1, 2, (rows, LABELS), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        loss = system.objective(model(x[own]), target[own])
        loss.backward()
        optimizer.step()
        results += [loss.detach(), *(each.grad.clone() for each in trained(system).values())]
    return [*results, *(each.detach().clone() for each in system.parameters())]


def work(rank: int, sizes: list[int]) -> list[object]:
    own, results = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), []
    for case in CASES:
        system = build(case, dist.group.WORLD)
        results.append(train(DistributedDataParallel(system), system, sum(sizes), own))  # no search for unused ones
    assert copy.deepcopy(system).group is dist.group.WORLD  # as for an average of weights
    return results


@pytest.mark.parametrize("sizes", [[4, 4], [5, 2], [3, 0, 2]])
def test_every_rank_trains_as_one_process_with_the_whole_batch(sizes: list[int]) -> None:
    ranks = run_ranks(work, len(sizes), sizes)
    for index, case in enumerate(CASES):
        system = build(case, None)
        expected = train(system, system, sum(sizes), slice(None))
        for results in ranks:
            for found, wanted in zip(results[index], expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
