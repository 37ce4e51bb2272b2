"""Training SADCL: two stages, a memory that is copied and not averaged, exact resume, and pictures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples import train
from examples.data import Split
from examples.embedding_figures import (
    active_features,
    draw_features,
    flatten,
    nearest_is_alike,
    order_by_company,
    prototype_similarity,
)
from examples.systems import SYSTEMS, start_sadcl_epoch
from mlcorr import BinaryCrossEntropyLoss
from mlcorr.systems.sadcl import SADCL
from tests.examples.runs import assert_equal, log_of, state_of

TINY = {"num_scenes": (64, 20, 20), "canvas": 24, "epochs": 3, "batch_size": 32}
MEMORY = "contrastive_loss."

pytestmark = pytest.mark.filterwarnings("ignore:prototypes:UserWarning")  # so short a training makes nobody sure


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train, "QUICK", TINY)
    return ["--system", "sadcl", "--quick"]


def model_for(arguments):
    settings = train.make_settings(*train.parse_arguments(arguments))
    data = train.load_data(settings)
    return train.start(settings, data), data


def test_a_run_writes_both_pictures_and_a_memory_that_is_no_average(tiny, tmp_path):
    train.main([*tiny, "--output", str(tmp_path)])
    for name in ("features.png", "prototypes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    log, state = log_of(tmp_path), state_of(tmp_path)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in log)
    own, average = state["model"], {k.removeprefix("module."): v for k, v in state["average"].items()}
    memory = [name for name in own if name.startswith(MEMORY)]
    assert memory
    assert all(torch.equal(own[name], average[name]) for name in memory)
    assert own[f"{MEMORY}steps"] == 2  # of the last epoch, the only one with contrast
    assert not torch.equal(own["classifier.weight"], average["classifier.weight"])


def test_the_memory_is_copied_when_it_is_full(tiny):
    training, _ = model_for([*tiny, "--stage-one", "0"])
    training.model.contrastive_loss.bank_threshold = 0.0
    training.train_epoch()
    own, average = training.model.state_dict(), training.average.module.state_dict()
    assert own[f"{MEMORY}bank.count"].sum() > 20
    assert torch.equal(own[f"{MEMORY}bank.embeddings"], average[f"{MEMORY}bank.embeddings"])
    assert own[f"{MEMORY}bank.embeddings"].any()


def test_a_run_resumed_in_new_processes_equals_an_uninterrupted_one_bit_for_bit(tmp_path, image_file, one_thread):
    """Of four epochs two are without contrast: one process stops before the change, the next one at it."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--system", "sadcl", "--data", image_file, "--epochs", "4", "--batch-size", "16"]
    train.main([*arguments, "--output", str(whole)])
    train.main([*arguments, "--output", str(parts), "--stop-after", "1"])
    command = [sys.executable, "-m", "examples.train", *arguments, "--output", str(parts), "--resume"]
    for rest in (["--stop-after", "2"], []):
        subprocess.run(
            [*command, *rest],
            cwd=Path(train.__file__).parents[1],
            env=one_thread,
            check=True,
            capture_output=True,
        )
    assert log_of(parts) == log_of(whole)
    assert_equal(state_of(parts), state_of(whole))
    losses = [line["loss"] for line in log_of(whole)]
    assert losses[2] > losses[1]  # since the contrast is added


def test_stages_follow_the_number_of_the_epoch():
    class Recorder(nn.Module):
        contrast, made = True, 0

        def initialize_prototypes(self, batches):
            self.made += sum(len(images) for images, _ in batches)

    data = type("Data", (), {"train": Split(torch.zeros(600, 1), torch.zeros(600, 2))})
    for share, epochs, expected in ((0.5, 4, 2), (0.25, 10, 2), (1.0, 3, 3), (0.0, 3, 0)):
        model = Recorder()
        for epoch in range(epochs):
            start_sadcl_epoch({"stage_one": share}, model, data, epoch, epochs)
            assert model.contrast == (epoch >= expected)
            assert model.made == (600 if epoch >= expected > 0 else 0)
        resumed = Recorder()
        start_sadcl_epoch({"stage_one": share}, resumed, data, epochs - 1, epochs)
        assert resumed.contrast == model.contrast


def test_prototypes_come_from_the_training_images(tiny):
    training, data = model_for([*tiny, "--stage-one", "0.34"])
    first = training.model.prototypes.detach().clone()
    training.train_epoch()
    assert not training.model.contrast
    # Decay alone moves them in stage one.
    torch.testing.assert_close(training.model.prototypes, first, rtol=1e-3, atol=0)
    training.before_epoch(training.model, data, 1, 3)
    assert training.model.contrast
    found = training.model.prototypes.detach().clone()
    training.model.initialize_prototypes([(data.train.inputs, data.train.targets)])
    torch.testing.assert_close(found, training.model.prototypes.detach())
    assert not torch.allclose(found, first, atol=0.1)


def test_stages_need_no_history(tiny):
    """Ablations train epochs without scores after them."""
    training, _ = model_for([*tiny, "--stage-one", "0.34"])
    stages = []
    for _ in range(3):
        training.train_epoch()
        stages.append(training.model.contrast)
    assert stages == [False, True, True]


def test_options_reach_the_system(tiny):
    whole = model_for(tiny)[0].model
    assert (whole.sample_weight, whole.prototype_weight, len(whole.label_queries.encoder)) == (100.0, 50.0, 1)
    assert whole.contrastive_loss.bank.embeddings.shape == (10, 32, 64)
    assert model_for([*tiny, "--no-s2s"])[0].model.sample_weight == 0
    assert model_for([*tiny, "--no-p2s"])[0].model.prototype_weight == 0
    assert len(model_for([*tiny, "--no-encoder"])[0].model.label_queries.encoder) == 0
    assert model_for([*tiny, "--bank", "none"])[0].model.contrastive_loss.bank is None
    assert model_for([*tiny, "--bank", "global"])[0].model.contrastive_loss.bank.embeddings.shape == (320, 64)
    linear = model_for([*tiny, "--linear-head"])[0]
    assert isinstance(linear.model.loss, BinaryCrossEntropyLoss)
    assert linear.before_epoch is None
    assert sum(p.numel() for p in linear.model.backbone.parameters()) == sum(
        p.numel() for p in whole.backbone.parameters()
    )


@pytest.mark.parametrize("text", ["1.5", "-0.1", "half", "nan"])
def test_a_share_outside_its_range_is_refused(tiny, text, capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments([*tiny, "--stage-one", text])
    assert "--stage-one" in capsys.readouterr().err


def test_it_learns_a_file_of_images_with_mixed_precision(tmp_path, image_file):
    arguments = ["--system", "sadcl", "--data", image_file, "--epochs", "16", "--batch-size", "16", "--erase", "0"]
    train.main([*arguments, "--amp", "--output", str(tmp_path)])
    log = log_of(tmp_path)
    assert log[-1]["raw"]["mAP"] > 0.95
    assert log[7]["loss"] < 0.1 * log[0]["loss"]  # of stage one
    assert log[-1]["loss"] < 400  # S2S cannot fall below 100 times the log of the number of positives, here about 40


# --------------------------------------------------------------------------------------------------- pictures


def test_active_features_are_those_of_labels_that_are_there(tiny):
    training, data = model_for(tiny)
    features, labels = active_features(training.model, data.evaluation)
    active = data.evaluation.targets == 1
    assert len(features) == len(labels) == int(active.sum())
    with torch.no_grad():
        expected = training.model(data.evaluation.inputs).label_features
    image, label = active.nonzero()[3].tolist()
    np.testing.assert_allclose(features[3], expected[image, label], rtol=1e-5)
    assert labels[3] == label
    assert len(active_features(training.model, data.evaluation, most=7)[0]) == 7


def test_nearest_neighbours_are_counted():
    features = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 2], [-1, 0]])
    assert nearest_is_alike(features, np.array([0, 0, 1, 1, 1])) == 1.0
    assert nearest_is_alike(features, np.array([0, 1, 1, 1, 1])) == pytest.approx(3 / 5)


def test_places_in_the_plane_are_the_same_each_time():
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    for method in ("pca", "tsne"):
        places = flatten(features, method)
        assert places.shape == (40, 2)
        assert np.array_equal(places, flatten(features, method))
    assert flatten(features[:3], "tsne").shape == (3, 2)


def test_labels_that_come_together_stand_together():
    groups = np.array([0, 1, 0, 1, 2, 0, 2, 1])
    conditional = np.where(groups[:, None] == groups, 0.7, 0.05)
    ordered = groups[order_by_company(conditional)]
    assert (np.diff(ordered) != 0).sum() == 2
    assert sorted(order_by_company(np.eye(1))) == [0]


def test_prototype_similarity_is_a_matrix_of_cosines(tiny):
    model = model_for(tiny)[0].model
    similarity = prototype_similarity(model)
    projected = model.projector(model.prototypes).detach()
    expected = nn.functional.cosine_similarity(projected[2], projected[5], dim=0)
    assert similarity[2, 5] == pytest.approx(float(expected), abs=1e-6)
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)


def test_first_weights_can_be_built_again(tiny, tmp_path):
    settings = train.make_settings(*train.parse_arguments(tiny))
    data = train.load_data(settings)
    first = {name: value.clone() for name, value in train.start(settings, data).model.state_dict().items()}
    torch.manual_seed(99)
    again = train.build(settings, data)
    assert isinstance(again, SADCL)
    assert_equal(dict(again.state_dict()), first)
    draw_features(again, again, data, tmp_path / "pca.png", method="pca")
    assert (tmp_path / "pca.png").read_bytes().startswith(b"\x89PNG")
    assert SYSTEMS["oprl"].before_epoch is None
