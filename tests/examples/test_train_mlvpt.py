"""Training ML-VPT: a frozen transformer that is not saved, exact resume, a probe of the same backbone, pictures."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import ablations, train, vision_transformers
from examples.data import digit_scenes
from examples.fit import REPORT
from examples.gate_figures import mean_gates
from examples.systems import group_labels
from examples.vision_transformers import Frozen, fingerprint_of, frozen_transformer, is_frozen, single_digits
from mlcorr.metrics import multilabel_scores
from mlcorr.systems.ml_vpt import MLVPT
from tests.examples.runs import assert_equal, log_of, state_of

transformers = pytest.importorskip("transformers")
if not transformers.is_torch_available():
    pytest.skip(f"transformers {transformers.__version__} does not work with this torch", allow_module_level=True)

TINY = {"num_scenes": (64, 20, 20), "canvas": 24, "epochs": 3, "batch_size": 32}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train, "QUICK", TINY)
    vision_transformers._pretrained.cache_clear()
    yield ["--system", "mlvpt", "--quick"]
    vision_transformers._pretrained.cache_clear()


def model_for(arguments):
    settings = train.make_settings(*train.parse_arguments(arguments))
    data = train.load_data(settings)
    return train.start(settings, data), data


def test_a_run_writes_both_pictures_and_prints_all_scores(tiny, tmp_path, capsys):
    train.main([*tiny, "--pretrain-epochs", "1", "--output", str(tmp_path)])
    for name in ("gates.png", "groups.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["parameters"]["backbone"] == 0
    assert results["parameters"]["frozen"] > 100_000
    printed = capsys.readouterr().out
    for weights, rules in results["report"].items():
        assert list(rules) == ["threshold", "prevalence"]
        for scores in rules.values():
            assert list(scores) == list(REPORT)
            assert "".join(f"{100 * scores[name]:8.2f}" for name in REPORT) in printed
        for name, value in results["scores"][weights].items():
            assert rules["threshold"][name] == value
    assert f"{results['parameters']['frozen']:,} that are frozen" in printed


def test_the_report_predicts_each_label_as_often_as_it_stood_in_training(tiny):
    training, data = model_for(tiny)
    with torch.no_grad():
        logits = training.model.eval()(data.evaluation.inputs).logits
    targets = data.train.targets.numpy()
    prevalence = (targets == 1).sum(0) / (targets >= 0).sum(0)
    expected = multilabel_scores(
        logits, data.evaluation.targets, inputs="logits", rule="prevalence", prevalence=prevalence
    )
    found = training.report()["raw"]["prevalence"]
    assert found == {name: pytest.approx(expected[name]) for name in REPORT}


def test_the_checkpoint_holds_no_backbone_and_what_the_library_calls_trainable(tiny, tmp_path):
    train.main([*tiny, "--output", str(tmp_path), "--stop-after", "1"])
    state = state_of(tmp_path)
    model = model_for(tiny)[0].model
    assert state["model"].keys() == model.trainable_state_dict().keys()
    assert state["average"].keys() == {"n_averaged", *(f"module.{name}" for name in model.trainable_state_dict())}
    model.load_trainable_state_dict(state["model"])
    weights = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert (tmp_path / "checkpoint.pt").stat().st_size < 4 * 4 * weights + 60_000  # weights, average, two moments


def test_a_run_resumed_in_a_new_process_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """The pre-trained backbone is made anew, and is the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--system", "mlvpt", "--quick", "--pretrain-epochs", "1"]
    train.main([*arguments, "--output", str(whole)])
    train.main([*arguments, "--output", str(parts), "--stop-after", "1"])
    subprocess.run(
        [sys.executable, "-m", "examples.train", *arguments, "--output", str(parts), "--resume"],
        cwd=Path(train.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # which decide the order of sums
        check=True,
        capture_output=True,
    )
    assert log_of(parts) == log_of(whole)
    assert_equal(state_of(parts), state_of(whole))


def test_a_checkpoint_beside_another_backbone_is_refused(tiny, tmp_path):
    data = digit_scenes(num_scenes=(8, 4, 4), canvas=24)
    folder = str(tmp_path / "vit")
    frozen_transformer(data, weights=None, pretrain_epochs=0, seed=0).model.save_pretrained(folder)
    arguments = [*tiny, "--weights", folder, "--output", str(tmp_path / "run")]
    train.main([*arguments, "--stop-after", "1"])
    frozen_transformer(data, weights=None, pretrain_epochs=0, seed=1).model.save_pretrained(folder)
    with pytest.raises(SystemExit, match=r"error: the frozen backbone is not the one that the run began with"):
        train.main([*arguments, "--resume"])


def test_weights_come_from_a_folder_and_stay_as_they_are(tiny, tmp_path):
    data = digit_scenes(num_scenes=(8, 4, 4), canvas=24)
    saved = frozen_transformer(data, weights=None, pretrain_epochs=0, seed=5)
    saved.model.save_pretrained(tmp_path / "vit")
    training, _ = model_for([*tiny, "--weights", str(tmp_path / "vit")])
    assert fingerprint_of(training.model.backbone) == fingerprint_of(saved)
    training.train_epoch()
    assert fingerprint_of(training.model.backbone) == fingerprint_of(saved)
    assert fingerprint_of(training.average.module.backbone) == fingerprint_of(saved)


def test_it_trains_on_a_file_of_images(tmp_path, image_file):
    arguments = ["--system", "mlvpt", "--data", image_file, "--epochs", "20", "--batch-size", "16", "--erase", "0"]
    train.main([*arguments, "--amp", "--recompute", "--learning-rate", "1e-2", "--output", str(tmp_path)])
    log = log_of(tmp_path)
    assert log[-1]["raw"]["mAP"] > 0.9
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]


def test_options_reach_the_system(tiny):
    whole = model_for(tiny)[0].model
    assert isinstance(whole, MLVPT)
    assert (whole.num_groups, whole.experts, whole.prompt_output) == (3, 3, "norm")
    assert (whole.gate_loss_weight, whole.checkpoint_blocks) == (1.0, False)
    assert whole.label_names == tuple("0123456789")
    options = ["--groups", "2", "--experts", "4", "--prompt-output", "pre_norm", "--no-gate-loss", "--recompute"]
    other = model_for([*tiny, *options])[0].model
    assert (other.num_groups, other.experts, other.prompt_output) == (2, 4, "pre_norm")
    assert (other.gate_loss_weight, other.checkpoint_blocks) == (0.0, True)


def test_the_probe_has_the_same_frozen_backbone(tiny):
    arguments = [*tiny, "--pretrain-epochs", "1"]
    system, probe = model_for(arguments)[0], model_for([*arguments, "--linear-head"])[0]
    frozen = probe.model.backbone
    assert isinstance(frozen, Frozen)
    assert fingerprint_of(frozen.backbone) == fingerprint_of(system.model.backbone)
    before = fingerprint_of(frozen)
    probe.train_epoch()
    assert probe.model.training
    assert not any(module.training for module in frozen.backbone.modules())
    assert fingerprint_of(frozen) == before
    assert sum(each.numel() for each in probe.model.parameters() if each.requires_grad) == 10 * (64 + 1)
    assert probe.state_dict()["model"].keys() == {"classifier.weight", "classifier.bias"}
    assert not is_frozen(torch.nn.Identity())


@pytest.mark.usefixtures("tiny")
def test_a_backbone_is_decided_by_the_seed_and_leaves_the_random_state_alone():
    data = digit_scenes(num_scenes=(8, 4, 4), canvas=24)

    def make(epochs, seed):
        torch.manual_seed(7)
        backbone = frozen_transformer(data, weights=None, pretrain_epochs=epochs, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        return fingerprint_of(backbone)

    torch.manual_seed(7)
    expected = torch.rand(3)
    found = [make(*each) for each in ((0, 0), (1, 0), (2, 0), (1, 1), (0, 1))]
    assert len(set(found)) == 5
    vision_transformers._pretrained.cache_clear()
    torch.manual_seed(99)
    assert [make(*each) for each in ((1, 0), (0, 0))] == [found[1], found[0]]


def test_single_digits_are_decided_by_the_seed():
    images, digits = single_digits(0, 80, 24)
    again, same = single_digits(0, 80, 24)
    assert torch.equal(images, again)
    assert torch.equal(digits, same)
    assert not torch.equal(images, single_digits(1, 80, 24)[0])
    assert images.shape == (80, 1, 24, 24)
    assert set(digits.tolist()) == set(range(10))


def test_pretraining_sees_the_scans_of_the_training_scenes_and_none_that_is_tested_on(monkeypatch):
    painted = []

    def paint(labels, scans, parts, _rng, canvas):
        assert labels.sum() == len(set(parts)) or len(parts) > 100  # as many parts as are asked for, of one digit
        painted.append({scan.tobytes() for scan in scans})
        return np.zeros((canvas, canvas), dtype=np.float32)

    monkeypatch.setattr(vision_transformers, "paint_scene", paint)
    monkeypatch.setattr("examples.data.paint_scene", paint)
    _, shown = single_digits(3, 80, 24)
    digit_scenes(seed=3, num_scenes=(1, 1, 1), canvas=24)
    *alone, train_scans, test_scans = painted
    assert set.union(*alone) == train_scans
    assert not train_scans & test_scans
    for digit, scans in zip(shown.tolist(), alone, strict=True):  # one digit in each scene
        assert all((scans == other) == (digit == again) for again, other in zip(shown.tolist(), alone, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nowhere"], r"nowhere: no such folder"),
        (["--weights", "nowhere", "--pretrain-epochs", "1"], r"expected one of the two"),
        (["--pretrain-epochs", "-1"], r"pretrain-epochs: expected at least 0"),
        (["--groups", "0"], r"num_groups"),
        (["--experts", "0"], r"experts: expected an integer >= 1"),
    ],
)
def test_unusable_options_end_in_one_line(tiny, options, message):
    with pytest.raises(SystemExit, match=rf"error: .*{message}"):
        train.main([*tiny, *options])


def test_weights_for_other_images_and_digits_for_photographs_are_refused(tmp_path, image_file):
    data = digit_scenes(num_scenes=(8, 4, 4), canvas=24)
    frozen_transformer(data, weights=None, pretrain_epochs=0, seed=0).model.save_pretrained(tmp_path / "vit")
    arguments = ["--system", "mlvpt", "--data", image_file, "--epochs", "1"]
    with pytest.raises(SystemExit, match=r"error: .*takes images of 1 channels, the data have 3"):
        train.main([*arguments, "--weights", str(tmp_path / "vit")])
    with pytest.raises(SystemExit, match=r"error: --pretrain-epochs: expected 0"):
        train.main([*arguments, "--pretrain-epochs", "1"])


# --------------------------------------------------------------------------------------------------- pictures


def test_mean_gates_are_those_of_images_that_show_the_label(tiny):
    training, data = model_for(tiny)
    targets = copy.deepcopy(data.evaluation.targets)
    targets[:, 4] = 0
    data = type(data)(data.name, data.train, type(data.train)(data.evaluation.inputs, targets), data.label_names)
    with torch.no_grad():
        gates = training.model.eval()(data.evaluation.inputs).gates.double()
    found = mean_gates(training.model, data)
    torch.testing.assert_close(found[1, 2], gates[targets[:, 2] == 1, 1, 2].mean(0))
    torch.testing.assert_close(found[0, 4], gates[:, 0, 4].mean(0))  # nobody shows it
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 10, dtype=torch.float64))


def test_groups_of_digits_are_the_declared_ones():
    data = digit_scenes(num_scenes=(1000, 4, 4), canvas=24)
    groups = group_labels(data, None).assignments
    found = {frozenset(members) for members in groups.members("co")}
    assert found == {frozenset("036"), frozenset("148"), frozenset("2579")}
    assert group_labels(data, 20).assignments.num_groups == 10


# -------------------------------------------------------------------------------------------------- comparison


def test_rows_of_the_comparison_differ_in_backbone_head_and_rate_alone():
    base = train.Settings("mlvpt")
    whole = ablations.settings_of("ML-VPT", 3, base)
    seen = set()
    for row in ablations.ROWS["mlvpt"]:
        settings = ablations.settings_of(row, 3, base)
        changed = {key for key, value in settings.system_options.items() if whole.system_options[key] != value}
        assert changed == ({"pretrain_epochs"} if "random" in row else set())
        assert settings.linear_head == ("probe" in row)
        assert (settings.learning_rate == base.learning_rate) == ("rate" not in row)
        same = {"system_options": {}, "linear_head": False, "learning_rate": 0.0}
        assert replace(settings, **same) == replace(whole, **same)
        seen.add((settings.linear_head, settings.learning_rate, *changed))
    assert len(seen) == len(ablations.ROWS["mlvpt"])
