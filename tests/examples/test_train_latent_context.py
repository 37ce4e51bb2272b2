"""Training a latent context, partial labels and features: options, exact resume, losses by epoch, pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import ablations, train
from examples.attention_figures import class_and_context_maps
from examples.embedding_figures import active_features, draw_kinds
from examples.partial_losses import EPOCH_DEPENDENT, LOSSES
from mlcorr.systems.latent_context import LatentContext, recommended_beta
from tests.examples.runs import assert_equal, log_of, state_of

TINY = {"num_scenes": (64, 20, 20), "canvas": 24, "epochs": 3, "batch_size": 32}
YEAST = Path(train.__file__).parents[2] / "shared" / "data" / "yeast.npz"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train, "QUICK", TINY)
    return ["--system", "latent_context", "--quick"]


def model_for(arguments):
    settings = train.make_settings(*train.parse_arguments(arguments))
    data = train.load_data(settings)
    return train.start(settings, data), data


def test_a_run_with_few_labels_writes_both_pictures_and_says_how_many(tiny, tmp_path, capsys):
    train.main([*tiny, "--known", "0.3", "--output", str(tmp_path)])
    for name in ("attention.png", "features.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["settings"]["known"] == 0.3
    assert all(np.isfinite(line["loss"]) for line in log_of(tmp_path))
    printed = capsys.readouterr().out
    assert "latent context on digit scenes: 64 images to train on, 30 % of their labels known, 20 for test" in printed
    assert "not drawn" not in printed


@pytest.mark.parametrize("system", ["oprl", "sadcl", "latent_context"])
@pytest.mark.filterwarnings("ignore:prototypes:UserWarning")  # so short a training makes nobody sure
def test_every_system_trains_on_features_of_which_few_labels_are_known(tmp_path, feature_file, capsys, system):
    arguments = ["--system", system, "--data", feature_file, "--epochs", "2", "--batch-size", "16", "--known", "0.4"]
    train.main([*arguments, "--output", str(tmp_path / system)])
    printed = capsys.readouterr().out
    assert "measured: 110 samples to train on, 40 % of their labels known, 40 for test" in printed
    assert ("not drawn, since there are no images: attention.png" in printed) == (system != "sadcl")
    assert not (tmp_path / system / "attention.png").exists()
    assert (tmp_path / system / "features.png").exists() == (system != "oprl")
    train.main([*arguments, "--linear-head", "--output", str(tmp_path / "head")])
    assert log_of(tmp_path / "head") != log_of(tmp_path / system)


def test_it_learns_a_file_of_features(tmp_path, feature_file):
    arguments = ["--system", "latent_context", "--data", feature_file, "--epochs", "12", "--batch-size", "16"]
    train.main([*arguments, "--known", "0.7", "--output", str(tmp_path)])
    log = log_of(tmp_path)
    assert log[-1]["ema"]["mAP"] > 0.95
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


@pytest.mark.skipif(not YEAST.is_file(), reason=f"{YEAST} is not there")
def test_a_real_data_set_is_learned_from_a_third_of_its_labels():
    training, data = model_for(
        ["--system", "latent_context", "--linear-head", "--data", str(YEAST), "--known", "0.3", "--epochs", "4"]
    )
    assert (data.train.targets >= 0).sum() == round(0.3 * data.train.targets.numel())
    chance = float(data.evaluation.targets.mean())
    for _ in range(4):
        training.train_epoch()
    assert training.evaluate()["raw"]["mAP"] > chance + 0.1


def test_runs_resumed_in_a_new_process_equal_uninterrupted_ones_bit_for_bit(tmp_path, feature_file, one_thread):
    """What is hidden from the partial-label branch, and the epoch that a loss is told of, are those of the run."""
    common = ["--system", "latent_context", "--data", feature_file, "--known", "0.5", "--epochs", "3"]
    heads = {
        "none": [],
        "splc": ["--linear-head", "--loss", "splc"],
        "large": ["--linear-head", "--loss", "large_loss"],
    }
    rest = []
    for name, head in heads.items():
        arguments = [*common, "--batch-size", "16", *head, "--output"]
        train.main([*arguments, str(tmp_path / name / "whole")])
        train.main([*arguments, str(tmp_path / name / "parts"), "--stop-after", "1"])
        rest.append([*arguments, str(tmp_path / name / "parts"), "--resume"])
    code = f"from examples import train\nfor arguments in {rest!r}: train.main(arguments)"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(train.__file__).parents[1],
        env=one_thread,
        check=True,
        capture_output=True,
    )
    for name in heads:
        whole, parts = tmp_path / name / "whole", tmp_path / name / "parts"
        assert log_of(parts) == log_of(whole)
        assert_equal(state_of(parts), state_of(whole))


def test_a_loss_is_told_the_number_of_epochs_done(tiny):
    seen = []

    class Recorder(EPOCH_DEPENDENT[0]):
        def forward(self, input, target, epoch=None):
            seen.append(epoch)
            return super().forward(input, target, epoch)

    training, _ = model_for([*tiny, "--linear-head", "--loss", "splc", "--known", "0.5"])
    training.model.loss = Recorder(reduction="mean")
    for _ in range(3):
        training.train_epoch()
    assert seen == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_treatment_of_unknown_labels_trains_a_linear_head(tiny, loss):
    training, data = model_for([*tiny, "--linear-head", "--loss", loss, "--known", "0.3"])
    assert type(training.model.loss) is type(LOSSES[loss]())
    first = training.train_epoch()
    assert np.isfinite(first)
    assert np.isfinite(training.train_epoch())
    head = training.model
    unknown = data.train.targets < 0
    logits = torch.zeros_like(data.train.targets, requires_grad=True)
    output = type(head(data.train.inputs[:2]))(logits)
    head.objective(output, data.train.targets).backward()
    ignores = loss in ("ignore", "partial_bce", "asymmetric")
    assert logits.grad[unknown].any() != ignores


def test_other_labels_or_another_loss_are_another_run(tiny, tmp_path):
    head = [*tiny, "--linear-head", "--loss", "splc", "--output", str(tmp_path)]
    train.main([*head, "--known", "0.5", "--stop-after", "1"])
    with pytest.raises(SystemExit, match=r"error: .*known changed \(known: 0.5 then, 0.4 now\)"):
        train.main([*head, "--known", "0.4", "--resume"])
    with pytest.raises(SystemExit, match=r"error: .*loss changed \(loss: splc then, hill now\)"):
        train.main([*head, "--known", "0.5", "--loss", "hill", "--resume"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "hill"], "--loss: expected with --linear-head alone"),
        (["--linear-head", "--loss", "other"], "invalid choice"),
        (["--known", "0"], r"--known: expected a number in (0, 1], got 0"),
        (["--known", "1.5"], r"--known: expected a number in (0, 1], got 1.5"),
        (["--mask-ratio", "2"], "--mask-ratio: expected a number in [0, 1]"),
        (["--beta", "much"], "--beta: invalid"),
    ],
)
def test_unusable_options_are_refused(tiny, options, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments([*tiny, *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--known", "0.0001"], "known: a fraction of 0.0001 keeps none of 640 known labels"),
        (["--units", "0"], "units: expected an integer >= 1"),
        (["--alpha", "-1"], "alpha: expected a number >= 0"),
    ],
)
def test_unusable_input_ends_in_one_line(tiny, tmp_path, options, message):
    with pytest.raises(SystemExit, match=rf"error: {message}"):
        train.main([*tiny, *options, "--output", str(tmp_path)])


def test_options_reach_the_system(tiny):
    whole = model_for(tiny)[0].model
    assert isinstance(whole, LatentContext)
    assert (whole.dim, whole.mask_ratio, whole.alpha, whole.beta) == (128, 0.1, 1.0, 0.1)
    assert (len(whole.encoder.layers), whole.fusion.mode, whole.partial.mode) == (3, "gate", "state")
    assert whole.partial.encoder is None
    options = ["--depth", "1", "--mask-ratio", "0.4", "--alpha", "2", "--beta", "0.3", "--fusion", "concat"]
    other = model_for([*tiny, *options, "--partial-mode", "feature", "--separate-encoder"])[0].model
    assert (len(other.encoder.layers), other.mask_ratio, other.alpha, other.beta) == (1, 0.4, 2.0, 0.3)
    assert (other.fusion.mode, other.partial.mode) == ("concat", "feature")
    assert len(other.partial.encoder.layers) == 1
    numbers = [
        sum(each.numel() for each in model_for([*tiny, "--units", str(n)])[0].model.parameters()) for n in (4, 6)
    ]
    assert numbers[1] - numbers[0] == 2 * 128
    head = model_for([*tiny, "--linear-head"])[0]
    assert not head.takes_targets
    assert type(head.model.loss) is type(whole.base_loss)


def test_the_recommended_weight_goes_by_the_labels_that_are_missing(tiny):
    chosen = [*tiny, "--beta", "recommended"]
    assert model_for(chosen)[0].model.beta == recommended_beta(0.0)
    assert model_for([*chosen, "--known", "0.3"])[0].model.beta == pytest.approx(recommended_beta(0.7))


def test_the_partial_label_branch_is_shown_targets_in_training_alone(tiny):
    training, data = model_for(tiny)
    seen = []
    forward = training.model.forward
    training.model.forward = lambda *given: (seen.append((training.model.training, len(given))), forward(*given))[1]
    training.train_epoch()
    training.evaluate()
    assert set(seen) == {(True, 2), (False, 1)}
    training.model.forward = forward
    output = training.model.train()(data.train.inputs[:4], data.train.targets[:4])
    assert output.hide.sum() == 4
    assert training.model.eval()(data.train.inputs[:4]).partial_logits is None


def test_targets_reach_a_compiled_system(tiny, monkeypatch):
    """The backend is one that needs no compiler of C++, and little time."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled(self, backend="eager", **how))
    settings = train.make_settings(*train.parse_arguments([*tiny, "--known", "0.5", "--depth", "1"]))
    training = train.start(settings, train.load_data(settings), compiled=True)
    assert np.isfinite(training.train_epoch())
    assert 0 < training.evaluate()["raw"]["mAP"] < 1


# --------------------------------------------------------------------------------------------------- pictures


def test_maps_and_kinds_of_features_are_those_of_the_output(tiny, tmp_path):
    training, data = model_for(tiny)
    model, images = training.model, data.evaluation.inputs[:4]
    probabilities, own, context = class_and_context_maps(model, images)
    output = model(images)
    assert own.shape == context.shape == (4, 10, 6, 6)
    torch.testing.assert_close(own.flatten(2), output.attention)
    torch.testing.assert_close(context.flatten(2), output.context_attention)
    torch.testing.assert_close(probabilities, output.logits.sigmoid())
    features, labels = active_features(model, data.evaluation, embed=lambda model, x: model(x).fused_features)
    image, label = (data.evaluation.targets == 1).nonzero()[3].tolist()
    expected = model(data.evaluation.inputs).fused_features[image, label].detach().numpy()
    np.testing.assert_allclose(features[3], expected, rtol=1e-4, atol=1e-5)
    assert labels[3] == label
    draw_kinds(model, data, tmp_path / "pca.png", method="pca")
    assert (tmp_path / "pca.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_a_system_without_context(tiny, tmp_path):
    train.main([*tiny, "--fusion", "none", "--epochs", "1", "--output", str(tmp_path)])
    for name in ("attention.png", "features.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# -------------------------------------------------------------------------------------------------- ablations


def test_every_ablation_changes_one_thing_and_those_with_missing_labels_two():
    base = train.Settings("latent_context")
    whole = ablations.settings_of("latent context", 3, base)
    seen = set()
    for row in ablations.ROWS["latent_context"]:
        settings = ablations.settings_of(row, 3, base)
        changed = {key: value for key, value in settings.system_options.items() if whole.system_options[key] != value}
        if "missing" in row:
            missing, beta = float(row.split()[0]), float(row.split()[-1])
            assert settings.known == pytest.approx(1 - missing / 100)
            assert changed == ({"beta": beta} if beta != 0.1 else {})
        else:
            assert len(changed) + settings.linear_head == (row != "latent context")
            assert settings.known == 1
        seen.add((settings.linear_head, settings.learning_rate, settings.known, json.dumps(changed)))
    assert len(seen) == len(ablations.ROWS["latent_context"])


def test_rows_are_compared_with_one_of_as_many_known_labels():
    base = train.Settings("latent_context")
    tables = ablations.tables_of(list(ablations.ROWS["latent_context"]), base)
    assert [(whole, len(rows)) for whole, rows in tables] == [
        ("latent context", 19),
        *((f"{missing} % missing: beta 0.1", 3) for missing in (10, 50, 90)),
    ]
    assert ablations.tables_of(["90 % missing: beta 0.4", "depth 0"], base) == [
        ("latent context", ["latent context", "depth 0"]),
        ("90 % missing: beta 0.1", ["90 % missing: beta 0.1", "90 % missing: beta 0.4"]),
    ]


def test_a_selection_of_rows_prints_two_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "QUICK", TINY | {"epochs": 1})
    rows = ["--rows", "linear head", "50 % missing: beta 0.3"]
    arguments = ["--system", "latent_context", "--quick", "--seeds", "2", "--workers", "1", "--output", str(tmp_path)]
    ablations.main([*arguments, *rows])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results["runs"]) == {"linear head", "latent context", "50 % missing: beta 0.1", "50 % missing: beta 0.3"}
    gains = [
        ours["ema"]["mAP"] - other["ema"]["mAP"]
        for ours, other in zip(*(results["runs"][f"50 % missing: beta {beta}"] for beta in ("0.3", "0.1")), strict=True)
    ]
    found = results["summary"]["50 % missing: beta 0.3"]["mAP - 50 % missing: beta 0.1"]
    assert found["mean"] == pytest.approx(np.mean(gains))
    printed = capsys.readouterr().out
    assert "digit scenes: averaged weights" in printed
    assert "digit scenes, 50 % of the labels known: averaged weights" in printed
    with pytest.raises(SystemExit):
        ablations.main([*arguments, "--rows", "depth 7"])
    assert "--rows: expected some of" in capsys.readouterr().err
