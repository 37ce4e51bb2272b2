"""DualContrastiveLoss: what it compares, when it writes its bank, and how it goes on."""

from __future__ import annotations

import copy
import io

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mlcorr import DualContrastiveLoss
from mlcorr.functional import prototype_contrastive_loss, sample_contrastive_loss
from tests.losses.compilers import need_compiler
from tests.reference import contrast as reference

LABELS, DIM = 3, 4
BANKS = [None, "per_label", "global"]


def draw(batch: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features, targets with unknown ones, scores."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, LABELS, DIM, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 2, (batch, LABELS), generator=generator)
    scores = torch.rand(batch, LABELS, generator=generator)
    return z.to(dtype).requires_grad_(), targets, scores


def make(**options: object) -> DualContrastiveLoss:
    torch.manual_seed(0)
    return DualContrastiveLoss(LABELS, DIM, **options).double()


class ByDefinition:
    """The loss with a bank of Python lists."""

    def __init__(self, loss: DualContrastiveLoss, bank: str | None, size: int, threshold: float) -> None:
        self.prototypes, self.bank, self.size, self.threshold = loss.prototypes, bank, size, threshold
        self.held: list[tuple[Tensor, int]] = []

    def __call__(self, z: Tensor, targets: Tensor, scores: Tensor | None) -> Tensor:
        active = [(b, l) for b in range(len(z)) for l in range(LABELS) if targets[b, l] == 1]
        x = torch.stack([z[b, l] for b, l in active]) if active else z.new_zeros(0, DIM)
        labels = torch.tensor([l for _, l in active], dtype=torch.int64)
        keys = torch.stack([key for key, _ in self.held]) if self.held else None
        sample = reference.sample_contrastive(x, labels, keys, torch.tensor([l for _, l in self.held]), 0.2)
        prototype = reference.prototype_contrastive(z, self.prototypes, targets, 0.07)
        if self.bank is not None:
            self.held += [(z[b, l].detach(), l) for b, l in active if scores is None or scores[b, l] > self.threshold]
            places = {None: range(1), "global": range(1), "per_label": range(LABELS)}[self.bank]
            rings = [[item for item in self.held if self.bank == "global" or item[1] == k] for k in places]
            self.held = [item for ring in rings for item in ring[-self.size :]]
        return 100 * sample + 50 * prototype + 0 * z.sum()


@settings(max_examples=60, deadline=None)
@given(
    bank=st.sampled_from(BANKS),
    bank_size=st.integers(1, 5),
    max_active=st.sampled_from([None, 30]),
    with_scores=st.booleans(),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition_over_several_steps(
    bank: str | None, bank_size: int, max_active: int | None, with_scores: bool, sizes: list[int], seed: int
) -> None:
    loss = make(bank=bank, bank_size=bank_size, bank_threshold=0.5, max_active=max_active)
    expected = ByDefinition(loss, bank, bank_size, 0.5)
    for step, size in enumerate(sizes):
        z, targets, scores = draw(size, seed=seed + step)
        given = scores if with_scores else None
        pair = [function(z, targets, given) for function in (loss, expected)]
        gradients = [torch.autograd.grad(value, (z, loss.prototypes)) for value in pair]
        for a, e in zip((pair[0], *gradients[0]), (pair[1], *gradients[1]), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-10)  # of weights of 100 and 50


def test_weights_and_temperatures() -> None:
    z, targets, scores = draw(5)
    loss = make(temperature=0.5, prototype_temperature=0.3, sample_weight=2.0, prototype_weight=3.0)
    terms = loss.terms(z, targets, scores)
    b, l = (targets == 1).nonzero(as_tuple=True)
    torch.testing.assert_close(terms["sample"], sample_contrastive_loss(z[b, l], l, temperature=0.5))
    own = prototype_contrastive_loss(z, loss.prototypes, targets, temperature=0.3)
    torch.testing.assert_close(terms["prototype"], own)
    torch.testing.assert_close(loss(z, targets, scores), 2 * terms["sample"] + 3 * terms["prototype"])


def test_terms_are_counted_and_change_no_state() -> None:
    z = torch.randn(3, LABELS, DIM)
    targets = torch.tensor([[1, 1, 0], [1, 0, -1], [-1, 0, 0]])
    loss = make(max_active=2)
    before = copy.deepcopy(loss.state_dict())
    terms = loss.terms(z, targets)
    counts = {name: int(terms[name]) for name in ("active", "anchors", "classes", "dropped")}
    # Of the three active features the third is dropped, so that none of the first two has a positive.
    assert counts == {"active": 2, "anchors": 0, "classes": 2, "dropped": 1}
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("bank", ["per_label", "global"])
def test_writes_in_training_only_and_after_use(bank: str) -> None:
    z, targets, _ = draw(6)
    loss = make(bank=bank)
    without = make(bank=None)(z, targets)
    assert torch.equal(loss(z, targets), without)  # the first step's bank is empty
    again = loss(z, targets)
    assert again > without  # the same features as keys
    state = copy.deepcopy(loss.state_dict())
    loss.eval()
    loss(z, targets)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
    loss.reset_bank()
    assert torch.equal(loss(z, targets), without)
    assert loss.steps == 0


def test_without_a_bank_only_the_steps_are_forgotten() -> None:
    loss = make(bank=None, bank_warmup_steps=2)
    z, targets, _ = draw(4)
    before = loss(z, targets)
    assert loss.steps == 1
    loss.reset_bank()
    assert loss.steps == 0
    assert torch.equal(loss(z, targets), before)


def test_a_score_must_be_above_the_threshold() -> None:
    loss = make(bank="global", bank_size=8, bank_threshold=0.8)
    z = torch.arange(8.0).view(8, 1, 1).expand(8, LABELS, DIM)
    targets = torch.tensor([[1, 0, -1]]).expand(8, -1)
    scores = torch.tensor([0.8, 0.800001, 0.1, 0.9, 1.0, 0.0, torch.nan, 0.79]).view(-1, 1).expand(8, LABELS)
    loss(z, targets, scores)
    assert loss.bank.labels.tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    assert loss.bank.embeddings[:3, 0].tolist() == [1, 3, 4]


def test_the_bank_is_filled_but_not_used_while_it_warms_up() -> None:
    loss, without = make(bank_warmup_steps=2), make(bank=None)
    for step in range(4):
        z, targets, _ = draw(6, seed=step)
        assert torch.equal(loss(z, targets), without(z, targets)) == (step < 2)
    assert loss.bank.count.sum() > 0


@pytest.mark.parametrize("bank", ["per_label", "global"])
def test_backward_reads_what_the_bank_held_when_it_was_used(bank: str) -> None:
    z, targets, _ = draw(6)
    losses = [make(bank=bank, bank_size=2) for _ in range(2)]
    for loss in losses:
        loss(*draw(6, seed=1)[:2])
    first = losses[0](z, targets)
    losses[0](*draw(6, seed=2)[:2])  # writes over it
    losses[0].reset_bank()
    torch.testing.assert_close(torch.autograd.grad(first, z), torch.autograd.grad(losses[1](z, targets), z))


@pytest.mark.parametrize("bank", ["per_label", "global"])
def test_a_resumed_run_goes_on_bit_for_bit(bank: str) -> None:
    loss = make(bank=bank, bank_warmup_steps=1, bank_size=3)
    for step in range(3):
        loss(*draw(5, seed=step))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = DualContrastiveLoss(LABELS, DIM, bank=bank, bank_warmup_steps=1, bank_size=3).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        batch = draw(5, seed=step)
        assert torch.equal(loss(*batch), other(*batch))


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_without_a_positive_all_is_0_and_the_bank_as_it_was(batch: int, bank: str | None) -> None:
    loss = make(bank=bank)
    loss(*draw(5)[:2])
    before = {name: value.clone() for name, value in loss.state_dict().items() if name != "steps"}
    z, targets, _ = draw(batch, dtype=torch.float16)
    value = loss(z, targets.clamp(max=0))
    assert value.item() == 0.0
    value.backward()
    assert not z.grad.any()
    assert not loss.prototypes.grad.any()
    assert all(torch.equal(loss.state_dict()[name], value) for name, value in before.items())


def test_what_is_unknown_or_negative_reaches_the_terms_that_it_belongs_to() -> None:
    z, targets, _ = draw(8)
    loss = make()
    loss(*draw(5, seed=9)[:2])

    def terms(z: Tensor) -> tuple[Tensor, Tensor]:
        found = loss.terms(z, targets)
        return found["sample"], found["prototype"]

    before = terms(z)
    unknown, negative = ((torch.where((targets == k).unsqueeze(-1), torch.randn_like(z), z)) for k in (-1, 0))
    assert all(torch.equal(a, b) for a, b in zip(terms(unknown), before, strict=True))
    assert torch.equal(terms(negative)[0], before[0])
    assert not torch.equal(terms(negative)[1], before[1])
    of_sample, of_prototype = (torch.autograd.grad(term, z, retain_graph=True)[0] for term in before)
    assert not of_sample[targets != 1].any()
    assert not of_prototype[targets == -1].any()


def test_prototypes_of_the_caller() -> None:
    z, targets, _ = draw(5)
    loss, own = make(own_prototypes=False, bank=None), make(bank=None)
    assert list(loss.parameters()) == []
    assert torch.equal(loss(z, targets, prototypes=own.prototypes), own(z, targets))
    with pytest.raises(ValueError, match="prototypes: expected a tensor, since the loss has none of its own, got None"):
        loss(z, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bank", BANKS)
def test_half_precision_in_and_under_autocast(bank: str | None, dtype: torch.dtype) -> None:
    loss, exact = (DualContrastiveLoss(LABELS, DIM, bank=bank) for _ in range(2))
    exact.load_state_dict(loss.state_dict())
    exact.double()
    for step in range(3):
        z, targets, scores = draw(6, seed=step, dtype=dtype)
        with torch.autocast("cpu", dtype=dtype):
            value = loss(z, targets, scores)
        assert value.dtype == torch.float32
        truth = z.detach().double().requires_grad_()
        expected = exact(truth, targets, scores)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)
        (of,), (of_truth,) = torch.autograd.grad(value, z), torch.autograd.grad(expected, truth)
        epsilon = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(of.double(), of_truth, rtol=epsilon, atol=epsilon * of_truth.abs().max().item())


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_next_to_nothing_in_half_precision_has_finite_gradients(
    dtype: torch.dtype, size: float, temperature: float
) -> None:
    for seed in range(5):
        z, targets, scores = draw(6, seed=seed)
        z = (z.detach() * size).to(dtype).requires_grad_()
        loss = DualContrastiveLoss(LABELS, DIM, temperature=temperature)
        for _ in range(2):  # then with a bank of such
            gradients = torch.autograd.grad(loss(z, targets, scores), (z, loss.prototypes))
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_in_autocast_and_out_of_it(backend: str) -> None:
    need_compiler(backend)
    torch.compiler.reset()
    eager, loss = (DualContrastiveLoss(LABELS, DIM, max_active=8) for _ in range(2))
    loss.load_state_dict(eager.state_dict())
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for step, batch in enumerate((6, 6, 5, 7)):
        z, targets, scores = draw(batch, seed=step, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 2 == 1):
            value = compiled(z, targets, scores)
        expected = eager(z, targets, scores)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(expected, z))
    for name, own in eager.state_dict().items():
        torch.testing.assert_close(loss.state_dict()[name], own)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("max_active", [None, 8])
def test_one_compiled_graph_serves_any_number_of_positives(bank: str | None, max_active: int | None) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph

    eager, loss = (make(bank=bank, max_active=max_active, bank_warmup_steps=1) for _ in range(2))
    compiled = torch.compile(loss, fullgraph=True, backend=count)
    for step in range(5):
        z, targets, scores = draw(6, seed=step)
        targets = torch.where(torch.rand(6, LABELS) < step / 4, 1, targets)
        value, expected = compiled(z, targets, scores), eager(z, targets, scores)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
        for a, e in zip(
            torch.autograd.grad(value, (z, loss.prototypes)),
            torch.autograd.grad(expected, (z, eager.prototypes)),
            strict=True,
        ):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
        assert all(torch.equal(value, loss.state_dict()[name]) for name, value in eager.state_dict().items())
    assert len(graphs) == 1


def test_features_beyond_the_room_are_dropped_last_first() -> None:
    z, targets, _ = draw(6)
    b, l = (targets == 1).nonzero(as_tuple=True)
    loss = make(max_active=4, bank=None)
    terms = loss.terms(z, targets)
    assert terms["dropped"] == len(b) - 4
    torch.testing.assert_close(terms["sample"], sample_contrastive_loss(z[b[:4], l[:4]], l[:4]))


def test_moves_and_copies_as_modules_do() -> None:
    loss = make(bank="per_label")
    z, targets, _ = draw(5)
    loss(z, targets)
    other = copy.deepcopy(loss)
    assert torch.equal(other(z, targets), loss(z, targets))
    assert loss.float().bank.embeddings.dtype == torch.float32
    assert "bank_threshold=0.8" in repr(loss)
    assert "num_labels=3, size=32, dim=4" in repr(loss)
    assert loss.to("meta").bank.count.device.type == "meta"


def test_average_of_weights_keeps_the_bank_of_the_model() -> None:
    loss = make()
    average = torch.optim.swa_utils.AveragedModel(loss, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for step in range(3):
        loss(*draw(5, seed=step)[:2])
        average.update_parameters(loss)
    assert torch.equal(average.module.bank.embeddings, loss.bank.embeddings)
    assert torch.equal(average.module.bank.count, loss.bank.count)


Z, Y = torch.randn(2, LABELS, DIM), torch.ones(2, LABELS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"z": Z[:, :2], "targets": Y[:, :2]}, ValueError, r"z: expected the shape \(B, 3, 4\), got \(2, 2, 4\)"),
        ({"z": Z, "targets": Y[:1]}, ValueError, "targets: expected the shape of z without its last dimension"),
        ({"z": Z, "targets": Y, "scores": Y[:1]}, ValueError, "scores: expected the shape of targets"),
        ({"z": Z, "targets": Y, "scores": Y.int()}, TypeError, "scores: expected a floating-point tensor"),
        ({"z": Z, "targets": Y, "prototypes": Z}, ValueError, r"prototypes: expected the shape \(L, D\) of z"),
        ({"z": Z.to("meta"), "targets": Y.to("meta"), "prototypes": Z[0].to("meta")}, ValueError, "z: expected the de"),
    ],
)
def test_bad_input_changes_no_state(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    loss = DualContrastiveLoss(LABELS, DIM)
    loss(Z, Y)
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(error, match=message):
        loss(**arguments)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 0}, ValueError, "num_labels: expected an integer >= 1, got 0"),
        ({"dim": 1.0}, TypeError, "dim: expected an integer"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a number >= 1e-12"),
        ({"prototype_temperature": -0.1}, ValueError, "prototype_temperature: expected a number >= 1e-12"),
        ({"sample_weight": -1}, ValueError, "sample_weight: expected a number >= 0"),
        ({"prototype_weight": None}, TypeError, "prototype_weight: expected a number"),
        ({"bank": "ring"}, ValueError, "bank: expected one of 'per_label', 'global', got 'ring'"),
        ({"bank_size": 0}, ValueError, "bank_size: expected an integer >= 1"),
        ({"bank_threshold": 1.5}, ValueError, r"bank_threshold: expected a number in \[0, 1\], got 1.5"),
        ({"bank_warmup_steps": -1}, ValueError, "bank_warmup_steps: expected an integer >= 0"),
        ({"max_active": 0}, ValueError, "max_active: expected an integer >= 1"),
        ({"group": "world"}, TypeError, "group: expected a torch.distributed process group or None"),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DualContrastiveLoss(**{"num_labels": LABELS, "dim": DIM, **options})
