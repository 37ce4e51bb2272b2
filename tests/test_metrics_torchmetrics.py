"""mlcorr.metrics_torchmetrics: equal to multilabel_scores of all rows, however they were split."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcorr.metrics import multilabel_scores

torchmetrics = pytest.importorskip("torchmetrics")

from mlcorr.metrics_torchmetrics import MultilabelScore, MultilabelScores  # noqa: E402
from tests.ranks import run_ranks  # noqa: E402

LABELS = 4
PREVALENCE = torch.tensor([0.2, 0.5, 0.7, 0.4], dtype=torch.float64)
OPTIONS = [
    {"rule": "threshold"},
    {"rule": "threshold", "threshold": torch.tensor([0.3, 0.1, 0.5, 0.7], dtype=torch.float64), "empty": "nan"},
    {"rule": "threshold", "inputs": "logits", "threshold": 0.6},
    {"rule": "topk", "top_k": 2, "empty": "zero"},
    {"rule": "topk_threshold", "top_k": 2, "threshold": 0.4},
    {"rule": "prevalence", "prevalence": PREVALENCE},
]
SCORES = ("mAP", "OP", "OR", "OF1", "CP", "CR", "CF1", "CF1_mean")
# of torchmetrics, before the first update
BEFORE = "ignore:The ``compute`` method of metric .* was called before:UserWarning"


def rows(count: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(count, LABELS, generator=generator, dtype=torch.float64)
    scores[::3] = (scores[::3] * 4).round() / 4  # ties
    return scores.to(dtype), torch.randint(-1, 2, (count, LABELS), generator=generator)


def added(metric, scores: torch.Tensor, targets: torch.Tensor, sizes: list[int]):
    for some, of in zip(scores.split(sizes), targets.split(sizes), strict=True):
        metric.update(some, of)
    return metric


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == torch.float64
        assert actual[name].shape == ()
        assert actual[name].item() == value or (math.isnan(actual[name].item()) and math.isnan(value)), name


# --- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(BEFORE)
@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_equals_the_function_of_all_rows(options, sizes, dtype):
    scores, targets = rows(sum(sizes), dtype)
    metric = added(MultilabelScores(LABELS, **options), scores, targets, sizes)
    assert_equal(metric.compute(), multilabel_scores(scores, targets, **options))
    metric.reset()
    assert_equal(metric.compute(), multilabel_scores(scores[:0], targets[:0], **options))
    added(metric, scores, targets, sizes[::-1])
    assert_equal(metric.compute(), multilabel_scores(scores, targets, **options))


@pytest.mark.parametrize("name", SCORES)
def test_one_score(name):
    scores, targets = rows(20)
    value = added(MultilabelScore(LABELS, name, rule="topk"), scores, targets, [7, 13]).compute()
    assert value.shape == ()
    assert value.item() == multilabel_scores(scores, targets, rule="topk")[name]


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([[True, False, True, False]]),
        torch.tensor([[1, 0, 1, 0]], dtype=torch.uint8),
        torch.tensor([[1, -1, -100, 2]]),
        torch.tensor([[1.0, math.nan, -1.0, 0.3]]),
    ],
)
def test_targets_of_every_kind(targets):
    scores = torch.tensor([[0.7, 0.6, 0.2, 0.9]])
    metric = MultilabelScores(LABELS)
    metric.update(scores, targets)
    assert_equal(metric.compute(), multilabel_scores(scores, targets))


def test_batches_of_different_dtypes_are_compared_in_the_widest():
    pieces = [rows(5, dtype)[0] for dtype in (torch.float16, torch.bfloat16, torch.float32)]
    targets = rows(15)[1]
    metric = MultilabelScores(LABELS, threshold=0.3)
    for some, of in zip(pieces, targets.split(5), strict=True):
        metric.update(some, of)
    metric.update(torch.zeros(0, LABELS, dtype=torch.float64), torch.zeros(0, LABELS))  # no row, no say
    assert_equal(metric.compute(), multilabel_scores(torch.cat([x.float() for x in pieces]), targets, threshold=0.3))


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="no float8")
def test_other_floating_dtypes():
    scores, targets = rows(6)
    scores = scores.to(torch.float8_e4m3fn)
    metric = added(MultilabelScores(LABELS), scores.float(), targets, [6])
    other = MultilabelScores(LABELS)
    other.update(scores, targets)
    assert_equal(metric.compute(), {name: value.item() for name, value in other.compute().items()})


def test_nothing_added_warns_and_is_the_function_of_no_rows():
    for empty in ("skip", "nan"):
        metric = MultilabelScores(LABELS, empty=empty)
        for elsewhere in (torch.device("cpu"), torch.device("meta")):  # a default device is for others
            with elsewhere, pytest.warns(UserWarning, match="before the ``update``"):
                actual = metric.compute()
            assert_equal(actual, multilabel_scores(torch.zeros(0, LABELS), torch.zeros(0, LABELS), empty=empty))
            metric.reset()


def test_what_was_added_may_be_overwritten():
    scores, targets = rows(6)
    targets = targets.to(torch.int8)
    expected = multilabel_scores(scores, targets)
    metric = MultilabelScores(LABELS)
    metric.update(scores, targets)
    scores.zero_()
    targets.fill_(1)
    assert_equal(metric.compute(), expected)


def test_no_graph_is_kept():
    scores, targets = rows(6)
    scores.requires_grad_()
    metric = MultilabelScores(LABELS)
    values = metric(scores * 1.0, targets)
    assert not any(value.requires_grad for value in values.values())
    assert not metric.scores[0].requires_grad


def test_forward_returns_the_batch_and_adds_it():
    scores, targets = rows(10)
    metric = MultilabelScores(LABELS)
    for some, of in zip(scores.split(4), targets.split(4), strict=True):
        assert_equal(metric(some, of), multilabel_scores(some, of))
    assert_equal(metric.compute(), multilabel_scores(scores, targets))


def test_merge_state():
    scores, targets = rows(10)
    one, other = (
        added(MultilabelScores(LABELS), scores[part], targets[part], [5]) for part in (slice(5), slice(5, 10))
    )
    if not hasattr(one, "merge_state"):
        pytest.skip("this torchmetrics has no merge_state")
    one.merge_state(other)
    assert_equal(one.compute(), multilabel_scores(scores, targets))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_apart(copied):
    scores, targets = rows(10)
    options = {"rule": "prevalence", "prevalence": PREVALENCE, "threshold": np.full(LABELS, 0.3)}
    metric = added(MultilabelScores(LABELS, **options), scores[:6], targets[:6], [4, 2])
    other = copied(metric)
    other.update(scores[6:], targets[6:])
    assert_equal(other.compute(), multilabel_scores(scores, targets, **options))
    assert_equal(metric.compute(), multilabel_scores(scores[:6], targets[:6], **options))


def test_state_dict_is_empty_unless_asked_for():
    scores, targets = rows(10)
    metric = added(MultilabelScores(LABELS, threshold=torch.full((LABELS,), 0.3)), scores, targets, [4, 6])
    assert metric.state_dict() == {}
    metric.persistent(True)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    resumed = MultilabelScores(LABELS, threshold=torch.full((LABELS,), 0.3))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    more = rows(3)
    metric.update(*more)
    resumed.update(*more)
    assert_equal(resumed.compute(), {name: value.item() for name, value in metric.compute().items()})


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
def test_a_model_in_half_precision_rounds_no_threshold(cast):
    scores, targets = rows(30)
    thresholds = torch.linspace(0.31, 0.67, LABELS, dtype=torch.float64)
    model = torch.nn.ModuleDict({"metric": MultilabelScores(LABELS, threshold=thresholds), "l": torch.nn.Linear(2, 2)})
    cast(model)
    assert_equal(
        added(model["metric"], scores, targets, [30]).compute(),
        multilabel_scores(scores, targets, threshold=thresholds),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("compute_on_cpu", [False, True])
def test_moves_between_devices(options, compute_on_cpu):
    scores, targets = rows(30)
    metric = added(MultilabelScores(LABELS, compute_on_cpu=compute_on_cpu, **options), scores[:20], targets[:20], [20])
    metric = metric.to("cuda")
    with pytest.raises(ValueError, match="scores: expected the device of the metric, cuda:0, got cpu"):
        metric.update(scores, targets)
    metric.update(scores[20:].cuda(), targets[20:].cuda())
    values = metric.compute()
    assert all(value.is_cuda for value in values.values())
    assert_equal(values, multilabel_scores(scores, targets, **options))


def test_a_collection_keeps_the_rows_once():
    scores, targets = rows(20)
    collection = torchmetrics.MetricCollection(
        {
            "mAP": MultilabelScore(LABELS),
            "top2": MultilabelScores(LABELS, rule="topk", top_k=2),
            "logits": MultilabelScores(LABELS, inputs="logits"),
        }
    )
    for _ in range(2):
        added(collection, scores, targets, [0, 7, 13])
        values = collection.compute()
        assert values["mAP"].item() == multilabel_scores(scores, targets)["mAP"]
        for name, options in (("top2", {"rule": "topk", "top_k": 2}), ("logits", {"inputs": "logits"})):
            for score, value in multilabel_scores(scores, targets, **options).items():
                assert values[f"{name}_{score}"].item() == value
        assert len(collection.compute_groups) == 1
        assert len({id(metric.scores) for metric in collection.values(copy_state=False)}) == 1
        collection.reset()


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 0}, ValueError, "num_labels: expected an integer >= 1, got 0"),
        ({"num_labels": 2.0}, TypeError, "num_labels: expected an integer"),
        ({"rule": "top"}, ValueError, "rule: expected one of 'threshold'"),
        ({"inputs": "logit"}, ValueError, "inputs: expected one of 'probabilities', 'logits'"),
        ({"empty": "drop"}, ValueError, "empty: expected one of"),
        ({"threshold": 2.0}, ValueError, "threshold: expected a number"),
        ({"threshold": torch.ones(3)}, ValueError, r"threshold: expected shape \(4,\), one per class, got \(3,\)"),
        ({"top_k": 0}, ValueError, "top_k: expected an integer >= 1"),
        ({"rule": "prevalence"}, ValueError, "prevalence: expected a"),
        ({"prevalence": 0.5}, TypeError, "prevalence: expected"),
        ({"thresold": 0.5}, ValueError, "thresold"),  # torchmetrics' own error
    ],
)
def test_wrong_options_are_refused_at_once(options, error, message):
    for kind in (MultilabelScores, MultilabelScore):
        with pytest.raises(error, match=message):
            kind(**({"num_labels": LABELS} | options))


def test_a_score_that_there_is_not():
    with pytest.raises(ValueError, match=r"score: expected one of 'mAP', .* got 'map'"):
        MultilabelScore(LABELS, "map")


GOOD = torch.full((2, LABELS), 0.5), torch.ones(2, LABELS)


@pytest.mark.parametrize(
    ("scores", "targets", "error", "message"),
    [
        (GOOD[0].tolist(), GOOD[1], TypeError, "scores: expected a torch.Tensor, got list"),
        (GOOD[1].long(), GOOD[1], TypeError, "scores: expected a floating-point tensor, got torch.int64"),
        (GOOD[0][0], GOOD[1][0], ValueError, r"scores: expected shape \(N, 4\), got \(4,\)"),
        (GOOD[0][:, :3], GOOD[1][:, :3], ValueError, r"scores: expected shape \(N, 4\), got \(2, 3\)"),
        (GOOD[0], GOOD[1][:1], ValueError, "targets: expected the shape of scores"),
        (GOOD[0], GOOD[1] + 0j, TypeError, "targets: expected a bool, integer or floating-point tensor"),
        (GOOD[0], GOOD[1].to("meta"), ValueError, "targets: expected the device of scores"),
        (GOOD[0].to("meta"), GOOD[1].to("meta"), ValueError, r"scores: .* device of the metric, cpu, .*\.to\('meta'\)"),
    ],
)
def test_a_wrong_batch_is_refused_and_changes_nothing(scores, targets, error, message):
    metric = added(MultilabelScores(LABELS), *rows(6), [6])
    for call in (metric.update, metric):
        with pytest.raises(error, match=message):
            call(scores, targets)
        assert_equal(metric.compute(), multilabel_scores(*rows(6)))


def test_without_torchmetrics():
    program = (
        "import sys, mlcorr, mlcorr.metrics; assert 'torchmetrics' not in sys.modules\n"
        "sys.modules['torchmetrics'] = None\n"
        "try: import mlcorr.metrics_torchmetrics\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "needs torchmetrics" in run.stdout
    assert "pip install 'mlcorr[metrics]'" in run.stdout


# --- many processes ------------------------------------------------------------------------------------------------


SPLITS = {
    1: [([5], torch.float64), ([0], torch.float32)],
    2: [([4, 4], torch.float64), ([7, 0], torch.bfloat16), ([0, 0], torch.float32)],
    3: [([0, 5, 1], torch.float64), ([3, 0, 8], torch.float16), ([0, 0, 9], torch.float32)],
}


def numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def evaluate(scores: torch.Tensor, targets: torch.Tensor) -> list[dict[str, float]]:
    """What one process returns that adds these rows; with no row it adds nothing at all."""
    found = []
    for options in OPTIONS:
        metric = MultilabelScores(LABELS, **options)
        for _ in range(2):  # epochs
            for first in range(0, len(scores), 2):
                metric.update(scores[first : first + 2], targets[first : first + 2])
            found.append(numbers(metric.compute()))
            assert sum(len(batch) for batch in metric.scores) == len(scores)  # its own rows alone, again
            metric.reset()
    found.append(numbers(MultilabelScores(LABELS, dist_sync_on_step=True)(scores, targets)))
    collection = torchmetrics.MetricCollection({"a": MultilabelScore(LABELS), "b": MultilabelScore(LABELS, "OF1")})
    for _ in range(2):
        collection.update(scores, targets)
        found.append(numbers(collection.compute()))
        collection.reset()
    return found


def work(rank: int, ranks: int) -> list[object]:
    found = []
    for sizes, dtype in SPLITS[ranks]:
        first = sum(sizes[:rank])
        found.append(evaluate(*(x[first : first + sizes[rank]] for x in rows(sum(sizes), dtype))))
    return found


@pytest.mark.parametrize("ranks", SPLITS)
def test_every_process_returns_the_scores_of_all(ranks):
    for results in run_ranks(work, ranks, ranks):
        for (sizes, dtype), found in zip(SPLITS[ranks], results, strict=True):
            scores, targets = rows(sum(sizes), dtype)
            expected = [multilabel_scores(scores, targets, **options) for options in OPTIONS for _ in range(2)]
            whole = multilabel_scores(scores, targets)
            expected += [whole, *[{"a": whole["mAP"], "b": whole["OF1"]}] * 2]
            for mine, theirs in zip(found, expected, strict=True):
                assert mine == pytest.approx(theirs, rel=0, abs=0, nan_ok=True)


# --- Lightning -----------------------------------------------------------------------------------------------------


# Lightning uses what torch has deprecated, and advises on loaders.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_lightning_logs_it(tmp_path: Path):
    lightning = pytest.importorskip("lightning")
    scores, targets = rows(11, torch.float32)
    seen: list[dict[str, float]] = []

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(LABELS))
            self.all_scores = MultilabelScores(LABELS, inputs="logits")
            self.one = MultilabelScore(LABELS, "CF1", inputs="logits")

        def training_step(self, batch, index):  # noqa: ARG002
            logits = batch[0] + self.shift
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch[1].clamp(min=0).float())

        def validation_step(self, batch, index):  # noqa: ARG002
            logits = batch[0] - 0.5 + self.shift
            self.all_scores.update(logits, batch[1])
            self.one.update(logits, batch[1])
            self.log("CF1_object", self.one)

        def on_validation_epoch_end(self):
            self.log_dict({f"val_{name}": value for name, value in self.all_scores.compute().items()})
            self.all_scores.reset()
            if not self.trainer.sanity_checking:
                expected = multilabel_scores(scores - 0.5 + self.shift.detach(), targets, inputs="logits")
                seen.append({f"val_{name}": value for name, value in expected.items()})

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.3)

    class Logged(lightning.Callback):
        def __init__(self):
            self.values = []

        def on_train_epoch_end(self, trainer, model):  # noqa: ARG002
            self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    logged = Logged()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(scores, targets), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[logged],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Model(), loader, loader)
    assert len(logged.values) == len(seen) == 2
    assert logged.values[0] != logged.values[1]
    for values, expected in zip(logged.values, seen, strict=True):
        for name, value in expected.items():
            assert values[name] == pytest.approx(value, rel=1e-6), name
        assert values["CF1_object"] == expected["val_CF1"]
