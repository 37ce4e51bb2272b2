"""The demo runs through, writes what it promises, and says the same for the same seed."""

import json

import numpy as np
import pytest
import torch

from examples import distill
from examples.data import digit_scenes
from examples.report import dependency_distance, mean_and_error, pair_dependencies, verdict
from examples.students import MLD, STUDENTS, Task, run_students
from examples.training import SCORES, Recipe

PICTURES = ("learning_curves.png", "dependencies_one_sample.png", "dependencies_mean.png")
NAMES = [student.name for student in STUDENTS]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(distill, "QUICK", {"num_scenes": (128, 60, 60), "seeds": 2, "epochs": 2})
    return ["--quick", "--workers", "1"]


@pytest.fixture
def data_file(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (120, 5)).astype(np.int8)
    labels[3, 2] = labels[110, 1] = -1
    np.savez(
        tmp_path / "some.npz", labels=labels, features=labels @ rng.normal(size=(5, 8)), split=np.arange(120) // 96
    )
    return str(tmp_path / "some.npz")


def read(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_demo_writes_results_and_pictures(tiny, tmp_path, capsys):
    distill.main([*tiny, "--output", str(tmp_path / "run")])
    results = read(tmp_path / "run")

    assert results["settings"]["epochs"] == 2
    assert results["settings"]["evaluate_on"] == "test"
    assert set(results["versions"]) >= {"python", "torch", "numpy", "mlcorr"}
    assert results["data"] == {"name": "digit scenes", "label_names": list("0123456789"), "train": 128, "test": 60}
    assert results["parameters"]["teacher"] > 5 * results["parameters"]["student"]
    assert len(results["teacher"]["curve"]) == 2
    assert list(results["runs"]) == list(results["summary"]) == NAMES
    for student in NAMES:
        runs, summary = results["runs"][student], results["summary"][student]
        assert list(runs) == ["0", "1"]
        for run in runs.values():
            assert run["scores"] == run["curve"][-1]
            assert len(run["curve"]) == 2
            assert all(0 <= run["scores"][name] <= 1 for name in SCORES)
        for name in SCORES:
            scores = [run["scores"][name] for run in runs.values()]
            gains = np.subtract(scores, [run["scores"][name] for run in results["runs"]["BCE"].values()])
            assert summary[name]["mean"] == pytest.approx(np.mean(scores))
            assert summary[name]["sd"] == pytest.approx(np.std(scores, ddof=1))
            assert summary["minus BCE"][name]["mean"] == pytest.approx(np.mean(gains))
            assert summary["minus BCE"][name]["se"] == pytest.approx(np.std(gains, ddof=1) / 2**0.5)
        terms = {"mld", "instance", "batch"} if student.startswith("MDKD") else set()
        assert set(summary["gradient norm / BCE"]["trained"]) == terms
    for picture in PICTURES:
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert all(name in printed for name in ["teacher", *NAMES])
    assert results["verdict"] in printed
    assert "\x1b" not in printed


def test_same_seed_gives_the_same_figures_and_another_gives_others(tiny, tmp_path, data_file):
    for folder in ("first", "again"):
        distill.main([*tiny, "--data", data_file, "--seed", "5", "--output", str(tmp_path / folder)])
    first, again = (read(tmp_path / folder) for folder in ("first", "again"))
    assert first.pop("seconds") > 0
    assert again.pop("seconds") > 0
    assert first == again
    assert first["data"]["name"] == "some"
    for runs in first["runs"].values():
        assert runs["5"]["scores"] != runs["6"]["scores"]
    for picture in PICTURES:
        assert (tmp_path / "first" / picture).is_file()


def test_number_of_workers_does_not_change_the_result():
    data = digit_scenes(num_scenes=(64, 20, 20))
    task = Task(data, torch.zeros_like(data.train.targets), Recipe(epochs=1, batch_size=64, learning_rate=5e-3))
    with distill.one_thread():
        alone, together = (list(run_students([MLD], [0, 1], task, workers=workers)) for workers in (1, 2))
    together.sort(key=lambda run: run.seed)
    for one, other in zip(alone, together, strict=True):
        assert one.curve == other.curve
        assert np.array_equal(one.logits, other.logits)


def test_one_seed_claims_nothing(tiny, tmp_path, data_file):
    distill.main([*tiny, "--data", data_file, "--seeds", "1", "--output", str(tmp_path / "run")])
    assert "cannot be said" in read(tmp_path / "run")["verdict"]


def test_verdict_names_what_is_worse_and_too_few_seeds():
    row = {"minus MLD": {"mAP": {"mean": -0.009, "se": 0.001}}, "mAP": {"seeds": 2}}
    text = verdict({"BCE": row, "MLD": row, "MDKD 2": row})
    assert "Worse than MLD by as much: MDKD 2 by -0.90 ± 0.10." in text
    assert "2 seeds are too few" in text


@pytest.mark.parametrize(
    ("gain", "error", "expected"),
    [
        (0.009, 0.002, "Better than MLD by more than two standard errors: MDKD 2 by +0.90 ± 0.20"),
        (0.003, 0.002, "No MDKD student beats MLD"),
        (-0.009, 0.002, "No MDKD student beats MLD"),
    ],
)
def test_verdict_follows_from_the_numbers(gain, error, expected):
    row = {"minus MLD": {"mAP": {"mean": gain, "se": error}}, "mAP": {"seeds": 5}}
    assert verdict({"BCE": row, "MLD": row, "MDKD 2": row}).startswith(expected)


def test_pair_dependencies_and_their_distance():
    probabilities = np.array([[0.0, 0.5, 1.0]])
    assert pair_dependencies(probabilities)[0].tolist() == [[0, 0.25, 1], [0.25, 0, 0.25], [1, 0.25, 0]]
    truth = np.array([[0.0, np.nan, 0.0]])  # only the pair of the first and the last is known
    assert dependency_distance(probabilities, truth) == 1.0
    assert dependency_distance(probabilities, probabilities) == 0.0


def test_mean_and_error():
    assert mean_and_error([1.0]) == {"mean": 1.0, "sd": None, "se": None, "seeds": 1}
    assert mean_and_error([1.0, 3.0]) == {
        "mean": 2.0,
        "sd": pytest.approx(2**0.5),
        "se": pytest.approx(1.0),
        "seeds": 2,
    }


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--workers"])
def test_counts_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        distill.parse_arguments([option, "0"])
    assert "at least 1" in capsys.readouterr().err


def test_a_file_that_does_not_fit_ends_in_one_line(tmp_path):
    np.savez(tmp_path / "labels.npz", labels=np.eye(4))
    with pytest.raises(SystemExit, match=r"error: .*labels\.npz: no array 'features' or 'images'"):
        distill.main(["--data", str(tmp_path / "labels.npz")])
    np.savez(tmp_path / "few.npz", labels=np.eye(3), features=np.eye(3))
    with pytest.raises(SystemExit, match="at least 4"):
        distill.main(["--data", str(tmp_path / "few.npz")])
