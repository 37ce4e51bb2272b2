"""mAP against the share of known labels: fair runs, results that survive an interruption, a picture of several sets."""

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt

from examples import comparison, known_fractions, train
from examples.known_fractions import BASELINE, METHODS, RATES, main, settings_of, summary_of

TINY = {"num_scenes": (48, 16, 16), "canvas": 24, "epochs": 1, "batch_size": 16}
NEGATIVE = "assume negative"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(known_fractions, "QUICK", TINY)
    monkeypatch.chdir(tmp_path)  # the default folder is a relative one
    return ["--quick", "--seeds", "1", "--workers", "1", "--methods", BASELINE, NEGATIVE, "--fractions", "0.3", "1"]


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_methods_differ_in_method_and_rate_alone():
    base = train.Settings("latent_context")
    found = [settings_of((method, 0.3, 2), base, RATES["features"]) for method in METHODS]
    same = {"linear_head": False, "loss": None, "learning_rate": 0.0, "system_options": {}}
    assert len({str(replace(settings, **same)) for settings in found}) == 1
    assert {(settings.known, settings.seed) for settings in found} == {(0.3, 2)}
    assert [settings.loss for settings in found] == ["ignore", "assume_negative", "asymmetric", None]
    assert [settings.linear_head for settings in found] == [True, True, True, False]
    assert [settings.learning_rate for settings in found] == [RATES["features"][method] for method in METHODS]
    assert all(list(rates) == list(METHODS) for rates in RATES.values())
    updates = {settings.epochs * (1000 // settings.batch_size) for settings in found}
    assert len(updates) == 1


def test_a_run_writes_results_tables_and_a_picture(quick, tmp_path, capsys):
    main([*quick, "--seeds", "2"])
    folder = tmp_path / "runs" / "known_fractions"
    results = results_of(folder)
    assert [(run["known"], run["seed"]) for run in results["runs"]] == 2 * [(0.3, 0), (0.3, 1), (1.0, 0), (1.0, 1)]
    assert (folder / "known_fractions.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("*.unfinished"))
    scores = {(run["method"], run["known"], run["seed"]): run["scores"]["ema"]["mAP"] for run in results["runs"]}
    point = results["summary"][NEGATIVE]["0.3"]
    own, other = ([scores[method, 0.3, seed] for seed in (0, 1)] for method in (NEGATIVE, BASELINE))
    assert point["mAP"]["mean"] == pytest.approx(np.mean(own))
    assert point["mAP"]["sd"] == pytest.approx(np.std(own, ddof=1))
    assert point[f"mAP - {BASELINE}"]["mean"] == pytest.approx(np.mean(np.subtract(own, other)))
    assert own != other
    printed = capsys.readouterr().out
    assert "30 %" in printed
    assert f"{100 * np.mean(own):.2f}" in printed


def test_an_interrupted_run_goes_on_and_trains_nothing_twice(quick, tmp_path, monkeypatch):
    main([*quick, "--output", str(tmp_path / "whole")])
    trained, most = [], 2
    train_once = comparison.train_once

    def counted(settings):
        if len(trained) == most:
            raise KeyboardInterrupt
        trained.append(str(settings))
        return train_once(settings)

    monkeypatch.setattr(comparison, "train_once", counted)
    parts = [*quick, "--output", str(tmp_path / "parts")]
    with pytest.raises(KeyboardInterrupt):
        main(parts)
    assert len(results_of(tmp_path / "parts")["runs"]) == 2
    most = 100
    main(parts)
    main(parts)
    assert len(trained) == len(set(trained)) == 4
    whole, both = (results_of(tmp_path / name) for name in ("whole", "parts"))
    for results in (whole, both):
        for run in results["runs"]:
            del run["seconds"]
    assert both == whole
    main([*parts, "--fresh"])
    assert len(trained) == 8


def test_results_that_were_made_otherwise_are_refused(quick, tmp_path):
    main(quick)
    for changed in (["--evaluate-on", "validation"], ["--epochs", "2", "--learning-rate", "1"]):
        with pytest.raises(SystemExit, match=r"error: .*results\.json: made with other .*--fresh begins anew"):
            main([*quick, *changed])
    path = tmp_path / "runs" / "known_fractions" / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace(f'"method": "{NEGATIVE}"', '"method": "older"'), "utf-8")
    with pytest.raises(SystemExit, match=r"error: .*made with other the settings of older"):
        main(quick)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*results\.json: no JSON"):
        main(quick)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: .*no results of this program"):
        main(quick)


def test_several_results_are_drawn_side_by_side(quick, tmp_path, feature_file, monkeypatch):
    main([*quick, "--output", str(tmp_path / "a")])
    main([*quick, "--data", feature_file, "--output", str(tmp_path / "b")])
    monkeypatch.setattr(known_fractions, "train_all", None)  # nothing is trained
    files = [str(tmp_path / name / "results.json") for name in "ab"]
    main(["--draw", *files, "--figure", str(tmp_path / "new" / "both.png")])
    main(["--draw", files[0], "--figure", str(tmp_path / "one.png")])
    both, one = plt.imread(tmp_path / "new" / "both.png"), plt.imread(tmp_path / "one.png")
    assert both.shape[1] > 1.5 * one.shape[1]
    with pytest.raises(SystemExit, match=r"error: .*No such file"):
        main(["--draw", str(tmp_path / "none.json")])


def test_the_summary_is_of_the_seeds_that_both_have():
    def run(method, known, seed, value):
        scores = {"ema": dict.fromkeys(("mAP", "OF1", "CF1"), value)}
        return {"method": method, "known": known, "seed": seed, "scores": scores}

    runs = [run(BASELINE, 0.5, 0, 0.5), run(BASELINE, 0.5, 1, 0.7), run(NEGATIVE, 0.5, 1, 0.6)]
    summary = summary_of([*runs, run(NEGATIVE, 0.1, 0, 0.3)])
    gain = f"mAP - {BASELINE}"
    assert list(summary) == [BASELINE, NEGATIVE]
    assert summary[BASELINE]["0.5"]["mAP"]["mean"] == pytest.approx(0.6)
    assert summary[NEGATIVE]["0.5"][gain] == {"mean": pytest.approx(-0.1), "sd": None, "se": None, "seeds": 1}
    assert summary[NEGATIVE]["0.1"][gain] is None


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--fractions", "0"], ["--methods", "other"]])
def test_unusable_options_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert options[0] in capsys.readouterr().err
