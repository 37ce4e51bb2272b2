"""Every integration by its `main`, in a smoke size: it learns, and what the framework reports is what we compute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.data import digit_scenes
from examples.fit import predict
from examples.integrations import bare_loop, cached_teacher, tabular
from mlcorr.metrics import multilabel_scores
from tests.examples.runs import assert_equal

ROOT = Path(__file__).parents[2]
YEAST = ROOT.parent / "shared" / "data" / "yeast.npz"

# torch's own class, which Lightning and torch.onnx still use (torch 2.13).
LEAVES = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    return one_thread


def losses_in(text):
    return [float(loss) for loss in re.findall(r"epoch \d+  loss (\S+)", text)]


def evaluation_of(scenes):
    return digit_scenes(num_scenes=(scenes, 0, 500), canvas=32).evaluation


# ----------------------------------------------------------------------------------------------------- loops


def test_bare_loop_learns(capsys):
    scores = bare_loop.main(["--epochs", "3", "--scenes", "300"])
    losses = losses_in(capsys.readouterr().out)
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert scores["mAP"] > float(evaluation_of(1).targets.mean()) + 0.05


@LEAVES
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice; the data are in memory
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")  # nothing is logged but by epoch
def test_lightning_reports_our_scores_and_resumes_bit_for_bit(capsys):
    pytest.importorskip("lightning")
    pytest.importorskip("torchmetrics")
    from examples.integrations import lightning_module

    module, logged = lightning_module.main(["--epochs", "3", "--scenes", "128"])
    assert logged["loss"] == pytest.approx(logged["aux"] + logged["full"] + logged["partial"], rel=1e-5)
    evaluation = evaluation_of(128)
    expected = multilabel_scores(predict(module.system, evaluation), evaluation.targets, inputs="logits")
    assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-6)

    _, first = lightning_module.main(["--epochs", "1", "--scenes", "128", "--checkpoint", "half.ckpt"])
    assert logged["loss"] < first["loss"]
    torch.manual_seed(12345)  # whatever the new process has drawn before
    resumed, again = lightning_module.main(["--epochs", "3", "--scenes", "128", "--resume", "half.ckpt"])
    assert_equal(resumed.system.state_dict(), module.system.state_dict())
    assert again == logged
    assert f"mAP {100 * logged['mAP']:.2f}" in capsys.readouterr().out


def run_trainer(*arguments):
    pytest.importorskip("transformers", minversion="4.48")
    pytest.importorskip("accelerate")
    from examples.integrations import hf_trainer

    return hf_trainer.main(["--scenes", "128", *arguments])


@pytest.mark.parametrize("what", ["loss", "system"])
def test_trainer_trains_and_evaluates_with_our_loss_and_scores(what):
    trainer, reported = run_trainer("--what", what, "--epochs", "3", "--scenes", "384")
    evaluation = evaluation_of(128)
    with torch.no_grad():
        if what == "loss":
            from examples.integrations.hf_trainer import asymmetric

            logits = trainer.model.eval()(evaluation.inputs).logits
            loss = asymmetric(logits, evaluation.targets) / len(evaluation)
        else:
            output = trainer.model.eval().system(evaluation.inputs)
            logits, loss = output.logits, trainer.model.system.objective(output, evaluation.targets)
    expected = multilabel_scores(logits, evaluation.targets, inputs="logits")
    assert {name: reported[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert reported["eval_mAP"] > float(evaluation.targets.mean()) + 0.03  # than by chance
    assert reported["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_trainer_accumulates_gradients_to_those_of_the_whole_batch():
    whole, _ = run_trainer("--what", "loss", "--epochs", "1")
    parts, _ = run_trainer("--what", "loss", "--epochs", "1", "--accumulate", "4")
    assert whole.state.global_step == parts.state.global_step == 4
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_accelerate_does_the_same_in_one_process_and_in_two(one_thread):
    pytest.importorskip("accelerate")
    example = ["-m", "examples.integrations.accelerate_loop", "--cpu", "--epochs", "2", "--scenes", "160"]
    launchers = {
        1: ["accelerate.commands.launch", "--cpu", "--num_processes", "1"],
        2: ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }
    found = {}
    for processes, launcher in launchers.items():
        done = subprocess.run(
            [sys.executable, "-m", *launcher, *example],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=one_thread,
            timeout=300,
        )
        assert f"{processes} processes, 501 scenes judged" in done.stdout
        found[processes] = losses_in(done.stdout), float(re.search(r"mAP (\S+)", done.stdout)[1])
    assert len(found[1][0]) == 2
    assert found[1][0] == pytest.approx(found[2][0], rel=1e-3)
    assert found[1][1] == pytest.approx(found[2][1], abs=0.5)


# ------------------------------------------------------------------------------------------------------ data


def test_text_is_tagged_better_than_by_chance(capsys):
    pytest.importorskip("transformers", minversion="4.48")
    from examples.integrations import text_tagging

    scores = text_tagging.main(["--epochs", "3", "--rows", "400"])
    losses = losses_in(capsys.readouterr().out)
    assert losses[2] < losses[0]
    assert scores["mAP"] > scores["chance"] + 0.05


def test_padding_of_text_changes_nothing():
    transformers = pytest.importorskip("transformers", minversion="4.48")
    from examples.integrations.text_tagging import PAD, TextBackbone
    from mlcorr.systems.latent_context import LatentContext

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    model = LatentContext(TextBackbone(encoder), 16, 3, dim=16, units=4, depth=1, heads=2, width=16).eval()
    ids = torch.randint(1, 20, (4, 7))
    padded = torch.nn.functional.pad(ids, (0, 5), value=PAD)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, valid=padded != PAD).logits, model(ids).logits, atol=1e-5, rtol=1e-4)
        assert (model(padded).logits - model(ids).logits).abs().max() > 1e-3  # so the mask is what does it


@pytest.mark.parametrize("data", [None, YEAST])
def test_a_forest_teaches_a_student_of_tables(data):
    if data is not None and not data.is_file():
        pytest.skip(f"{data} is not there")
    source = [] if data is None else ["--data", str(data)]
    results = tabular.main([*source, "--epochs", "20", "--trees", "60", "--seeds", "1"])
    assert list(results) == ["forest", "student of the labels", "student of both"]
    assert results["student of both"] != results["student of the labels"]
    least = 0.6 if data is None else 0.45  # by chance about 0.3
    assert all(scores["mAP"] > least for scores in results.values())


def test_the_forest_judges_rows_that_it_has_not_seen():
    train = tabular.made_up().train
    forest, unseen = tabular.forest_of(train, trees=60)
    seen = np.stack([label[:, 1] for label in forest.predict_proba(train.inputs.numpy())], axis=1)
    assert unseen.shape == train.targets.shape
    honest, flattered = (multilabel_scores(each, train.targets)["mAP"] for each in (unseen, torch.from_numpy(seen)))
    assert honest < flattered - 0.1


def test_cached_logits_teach_the_same_bit_for_bit():
    size = ["--scenes", "200", "--epochs", "2"]
    written, scores = cached_teacher.main(size)
    read, _ = cached_teacher.main(size)
    asked, _ = cached_teacher.main([*size, "--uncached"])
    assert_equal(written.state_dict(), read.state_dict())
    assert_equal(written.state_dict(), asked.state_dict())
    assert scores["mAP"] > 0.35
    with pytest.raises(ValueError, match=r"teacher_logits\.npz: logits of another teacher"):
        cached_teacher.main([*size, "--seed", "1"])


# --------------------------------------------------------------------------------------------------- serving


@LEAVES
@pytest.mark.parametrize("system", ["oprl", "latent_context"])
def test_exported_files_give_our_logits(system):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from examples.integrations import serve

    differences = serve.main(["--system", system, "--epochs", "1", "--scenes", "96"])
    assert len(differences) == 8
    assert max(differences.values()) <= 1e-4

    images = np.random.default_rng(0).random((5, 1, 32, 32), dtype=np.float32)
    logits = onnxruntime.InferenceSession("served/system.onnx").run(["logits"], {"images": images})[0]
    assert logits.shape == (5, 10)
    assert logits.std(0).max() > 1e-5  # they depend on the images
    loaded = torch.export.load("served/system.pt2").module()
    np.testing.assert_allclose(logits, loaded(torch.from_numpy(images)).detach().numpy(), atol=1e-4)
