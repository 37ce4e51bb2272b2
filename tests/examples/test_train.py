"""Training a system: it runs, learns, writes what it promises, and goes on bit for bit after an interruption."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from examples import ablations, checkpoint, train
from examples.attention_figures import attention_maps, displayable, predicted
from examples.augment import Augmentation
from examples.checkpoint import load_checkpoint, save_checkpoint
from examples.data import CANVAS, digit_scenes
from examples.fit import average_of_weights
from examples.models import make_backbone
from examples.training import SCORES
from tests.examples.runs import assert_equal, log_of, state_of

TINY = {"num_scenes": (64, 20, 20), "canvas": 24, "epochs": 3, "batch_size": 32}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train, "QUICK", TINY)
    return ["--system", "oprl", "--quick"]


def test_quick_run_writes_log_results_checkpoint_and_picture(tmp_path, capsys):
    train.main(["--system", "oprl", "--quick", "--output", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    log = log_of(tmp_path / "run")
    assert [line["epoch"] for line in log] == [1, 2]
    assert results["scores"] == {"raw": log[-1]["raw"], "ema": log[-1]["ema"]}
    assert results["settings"]["system_options"]["messages"] == "both"
    assert results["parameters"]["all"] > 2 * results["parameters"]["backbone"]
    assert set(results["versions"]) >= {"python", "torch", "mlcorr"}
    for line in log:
        assert np.isfinite(line["loss"])
        assert all(0 <= line[weights][name] <= 1 for weights in ("raw", "ema") for name in SCORES)
    assert (tmp_path / "run" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "run").glob("*.unfinished"))
    printed = capsys.readouterr().out
    assert f"{100 * log[-1]['ema']['mAP']:.2f}" in printed
    assert "\x1b" not in printed


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*tiny, "--output", str(whole)])
    train.main([*tiny, "--output", str(parts), "--stop-after", "1"])
    assert "stopped after epoch 1" in capsys.readouterr().out
    assert len(log_of(parts)) == 1
    assert not (parts / "results.json").exists()
    torch.manual_seed(12345)  # whatever the new process has drawn before
    train.main([*tiny, "--output", str(parts), "--resume", "--stop-after", "2"])
    train.main([*tiny, "--output", str(parts), "--resume"])
    assert log_of(parts) == log_of(whole)
    assert_equal(state_of(parts), state_of(whole))
    assert state_of(whole)["schedule"]["last_epoch"] == 6

    other = tmp_path / "other"
    train.main([*tiny, "--seed", "1", "--output", str(other)])
    assert log_of(other) != log_of(whole)


def test_a_checkpoint_of_other_settings_is_refused(tiny, tmp_path):
    train.main([*tiny, "--output", str(tmp_path), "--stop-after", "1"])
    with pytest.raises(SystemExit, match=r"error: .*learning_rate changed \(learning_rate: 0.002 then, 0.1 now\)"):
        train.main([*tiny, "--output", str(tmp_path), "--resume", "--learning-rate", "0.1"])
    with pytest.raises(SystemExit, match="system_options changed"):
        train.main([*tiny, "--output", str(tmp_path), "--resume", "--no-sas"])
    with pytest.raises(SystemExit, match=r"error: .*No such file"):
        train.main([*tiny, "--output", str(tmp_path / "none"), "--resume"])


def test_ablation_options_reach_the_system(tiny):
    def model_for(*flags):
        settings = train.make_settings(*train.parse_arguments([*tiny, *flags]))
        return train.start(settings, train.load_data(settings)).model

    whole = model_for()
    assert whole.messages.schedule == ("cooccurrence", "average", "cooccurrence")
    assert (whole.purification.tau, whole.aux_weight, len(whole.encoder)) == (0.5, 1.0, 1)
    assert whole.messages.cooccurrence[0, 3] > whole.messages.cooccurrence[0, 2]  # one group, two groups
    assert model_for("--no-sas").aux_weight == 0
    assert model_for("--no-purification").purification.tau == 0
    assert len(model_for("--no-encoder").encoder) == 0
    assert model_for("--messages", "average").messages.schedule == ("average",) * 3
    assert model_for("--messages", "cooccurrence").messages.schedule == ("cooccurrence",) * 3
    assert model_for("--messages", "none").messages.schedule == ()
    assert model_for("--paths", "category").refiner.paths == ("category",)
    assert isinstance(model_for("--paths", "none").refiner, nn.Identity)
    linear = model_for("--linear-head")
    assert sum(p.numel() for p in linear.backbone.parameters()) == sum(p.numel() for p in whole.backbone.parameters())


def test_linear_head_and_mixed_precision_train_on_a_file(tiny, tmp_path, image_file):
    train.main([*tiny, "--linear-head", "--amp", "--data", image_file, "--output", str(tmp_path / "run")])
    log = log_of(tmp_path / "run")
    assert len(log) == 3
    assert not (tmp_path / "run" / "attention.png").exists()
    train.main([*tiny, "--amp", "--data", image_file, "--output", str(tmp_path / "oprl"), "--stop-after", "1"])
    assert np.isfinite(log_of(tmp_path / "oprl")[0]["loss"])


def test_it_learns_a_file_of_images(tmp_path, image_file):
    arguments = ["--system", "oprl", "--data", image_file, "--epochs", "12", "--batch-size", "16", "--erase", "0"]
    train.main([*arguments, "--output", str(tmp_path / "run")])
    log = log_of(tmp_path / "run")
    assert log[-1]["raw"]["mAP"] > 0.95
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert (tmp_path / "run" / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_unusable_input_ends_in_one_line(tmp_path, capsys):
    np.savez(tmp_path / "features.npz", labels=np.eye(9), features=np.eye(9))
    with pytest.raises(SystemExit, match=r"error: .*features\.npz: features: ML-VPT learns from an array 'images'"):
        train.main(["--system", "mlvpt", "--data", str(tmp_path / "features.npz")])
    with pytest.raises(SystemExit, match=r"error: canvas: expected at least 8 pixels"):
        train.main(["--system", "oprl", "--quick", "--canvas", "5"])
    for arguments in (["--system", "other"], ["--system", "oprl", "--epochs", "0"], ["--epochs", "2"]):
        with pytest.raises(SystemExit):
            train.main(arguments)
    printed = capsys.readouterr().err
    assert "invalid choice" in printed
    assert "--epochs: expected at least 1" in printed
    assert "required: --system" in printed


# ------------------------------------------------------------------------------------------------------ parts


def test_a_larger_canvas_has_the_same_labels_and_the_default_is_as_it_was():
    small, same, large = (digit_scenes(num_scenes=(20, 5, 5), canvas=side) for side in (CANVAS, 24, 40))
    assert torch.equal(small.train.inputs, same.train.inputs)
    assert torch.equal(small.train.inputs, digit_scenes(num_scenes=(20, 5, 5)).train.inputs)
    assert large.train.inputs.shape == (20, 1, 40, 40)
    assert torch.equal(large.train.targets, small.train.targets)
    occupied = [(split.inputs > 0.6).float().mean() for split in (small.train, large.train)]
    assert occupied[1] < 0.7 * occupied[0]


@pytest.mark.parametrize(("side", "places"), [(24, 6), (40, 10), (64, 8), (7, 7)])
def test_backbone_yields_a_small_map_of_any_image(side, places):
    backbone, channels = make_backbone(torch.zeros(1, 3, side, side))
    assert backbone(torch.zeros(2, 3, side, side)).shape == (2, channels, places, places)


def test_average_follows_the_weights_early_and_keeps_counters():
    start, current = torch.zeros(2), torch.ones(2)
    for updates, decay in ((1, 2 / 11), (90, 0.91), (10**6, 0.9997)):
        found = average_of_weights(start, current, torch.tensor(updates))
        torch.testing.assert_close(found, torch.full((2,), 1 - decay))
    same = torch.rand(5)
    assert torch.equal(average_of_weights(same, same.clone(), torch.tensor(7)), same)
    assert average_of_weights(torch.tensor(3), torch.tensor(4), torch.tensor(5)) == 4


def test_augmentation_shifts_mirrors_and_erases():
    images = 1 + torch.rand(200, 2, 20, 30)
    unchanged = Augmentation(shift=0, erase=0)(images, torch.Generator().manual_seed(0))
    assert torch.equal(unchanged, images)

    mirrored = Augmentation(shift=0, erase=0, mirror=True)(images, torch.Generator().manual_seed(0))
    turned = (mirrored == images.flip(-1)).flatten(1).all(1)
    assert ((mirrored == images).flatten(1).all(1) != turned).all()
    assert 60 < turned.sum() < 140

    erased = Augmentation(shift=0, erase=0.5)(images, torch.Generator().manual_seed(0))
    gone = erased == 0
    assert torch.equal(erased[~gone], images[~gone])
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert gone[:, 0].sum((1, 2)).max() <= 100
    assert gone.flatten(1).any(1).all()

    shifted = Augmentation(shift=0.1, erase=0)(images, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(images, shifted, strict=True):
        fits = [
            (up, left)
            for up in range(-2, 3)
            for left in range(-3, 4)
            if torch.equal(after[:, 3:17, 4:26], before[:, 3 + up : 17 + up, 4 + left : 26 + left])
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert {up for up, _ in seen} == set(range(-2, 3))
    assert {left for _, left in seen} == set(range(-3, 4))


def test_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"epoch": 1, "weights": torch.ones(3)}, path)

    def fail(_, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"epoch": 2}, path)
    assert load_checkpoint(path)["epoch"] == 1


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt: no checkpoint, or a damaged one \(UnpicklingError\)"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_told(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: no checkpoint, or a damaged one"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_attention_before_purification_is_the_plain_softmax_and_leaves_no_trace(tiny):
    settings = train.make_settings(*train.parse_arguments(tiny))
    data = train.load_data(settings)
    model = train.start(settings, data).model
    images = data.evaluation.inputs[:4]
    probabilities, before, after = attention_maps(model, images)
    assert model.purification.tau == 0.5
    assert before.shape == after.shape == (4, 10, 6, 6)
    assert (before > 0).all()
    kept = after > 0
    assert (kept.sum((-2, -1)) == 18).all()
    renormalised = torch.where(kept, before, 0.0)
    torch.testing.assert_close(after, renormalised / renormalised.sum((-2, -1), keepdim=True))
    torch.testing.assert_close(probabilities, model(images).logits.sigmoid())
    shown = displayable(images, data)
    assert shown.shape == (4, 24, 24, 3)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_predicted_labels_are_the_most_probable_ones():
    assert predicted(torch.tensor([0.6, 0.2, 0.9, 0.7, 0.8])) == [2, 4, 3]
    assert predicted(torch.tensor([0.1, 0.3, 0.2])) == [1]


def test_ablations_print_a_table_with_every_row(tmp_path, monkeypatch, capsys):
    rows = {name: ablations.ROWS["oprl"][name] for name in ("linear head", "OPRL", "messages: none")}
    monkeypatch.setattr(ablations, "ROWS", {"oprl": rows})
    monkeypatch.setattr(ablations, "QUICK", TINY | {"epochs": 1})
    ablations.main(["--quick", "--seeds", "2", "--workers", "1", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    whole = [run["ema"]["mAP"] for run in results["runs"]["OPRL"]]
    for row in rows:
        assert row in printed
        scores = [run["ema"]["mAP"] for run in results["runs"][row]]
        summary = results["summary"][row]
        assert summary["mAP"]["mean"] == pytest.approx(np.mean(scores))
        assert summary["mAP - OPRL"]["mean"] == pytest.approx(np.mean(np.subtract(scores, whole)))
    assert results["summary"]["linear head"]["mAP - OPRL"]["mean"] != 0


@pytest.mark.parametrize(("system", "title"), [("oprl", "OPRL"), ("sadcl", "SADCL")])
def test_every_ablation_changes_one_thing(system, title):
    base = train.Settings(system)
    whole = ablations.settings_of(title, 3, base)
    assert whole.seed == 3
    seen = []
    for row in ablations.ROWS[system]:
        settings = ablations.settings_of(row, 3, base)
        changed = {key: value for key, value in settings.system_options.items() if whole.system_options[key] != value}
        both = row == "no contrast"  # which leaves out S2S and P2S
        assert len(changed) + settings.linear_head == (row != title) + both
        seen.append((settings.linear_head, json.dumps(changed)))
    assert len(set(seen)) == len(ablations.ROWS[system])
