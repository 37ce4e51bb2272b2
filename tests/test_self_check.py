"""``python -m mlcorr``: it tells what is here, and an implementation that is wrong makes it fail."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

import mlcorr
from mlcorr import _selfcheck
from mlcorr.__main__ import main
from mlcorr.ops import contrast, norder
from tests.reference import contrast as contrast_reference
from tests.reference import norder as norder_reference


def run(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, "-W", "error", "-m", "mlcorr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def only_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU without kernels, which other tests cover and Triton's interpreter makes slow."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_selfcheck, "devices", lambda: [torch.device("cpu")])


def test_command() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert f"mlcorr        {mlcorr.__version__}" in lines
    assert f"torch         {torch.__version__}" in lines
    assert any(line.startswith("cpu (") for line in lines)
    assert any("closed_form_triton  not here: " in line for line in lines)
    compared = [line for line in lines if "error" in line]
    assert len(compared) >= 9
    assert all("ok, error " in line for line in compared)
    assert lines[-1].startswith("all ok, ")


def test_json() -> None:
    done = run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["mlcorr"] == mlcorr.__version__
    assert report["failures"] == 0
    cpu = report["devices"][0]
    assert cpu["device"] == "cpu"
    named = {(backend["operation"], backend["name"]) for backend in cpu["backends"]}
    assert named == {("n-order", name) for name in norder.BACKENDS[1:]} | {
        ("contrast", name) for name in contrast.BACKENDS[1:]
    }
    assert all(backend["available"] or backend["reason"] for backend in cpu["backends"])
    assert all(check["error"] < _selfcheck.TOLERANCE for check in cpu["checks"])


def test_kernels_are_checked_where_they_run() -> None:
    pytest.importorskip("triton")
    done = run("--json", interpret=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = " ".join(check["name"] for check in json.loads(done.stdout)["devices"][0]["checks"])
    for name in ("closed_form_triton", "enumeration_triton", "streamed_triton"):
        assert name in checked


@pytest.mark.usefixtures("only_pytorch")
@pytest.mark.parametrize(
    ("owner", "name", "failing"),
    [
        ("mlcorr.ops.norder.closed_form", "both_losses", ["n-order closed_form, delta 1"]),
        ("mlcorr.ops.norder.tail", "mean_huber", ["n-order enumeration, delta 1", "n-order enumeration, delta 0.1"]),
        ("mlcorr.ops.norder.enumeration", "mean_huber", ["n-order enumeration, delta 0.1"]),
        ("mlcorr._selfcheck", "mld_loss", ["MLD"]),
        ("mlcorr._selfcheck", "sample_contrastive_loss", ["contrast streamed, positives compared"]),
    ],
)
def test_a_wrong_implementation_fails(owner, name, failing, monkeypatch, capsys) -> None:
    right = getattr(sys.modules[owner], name)

    def wrong(*arguments: object, **options: object) -> object:
        value = right(*arguments, **options)
        factor = 1 + 1e-3  # what TF32 would be off by
        return tuple(factor * x for x in value) if isinstance(value, tuple) else factor * value

    monkeypatch.setattr(f"{owner}.{name}", wrong)
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    for check in failing:
        assert any(line.strip().startswith(check) and "FAILS, error " in line for line in lines), lines
    assert "FAIL" in lines[-1]
    assert main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failures"] >= len(failing)


@pytest.mark.usefixtures("only_pytorch")
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda *_, **__: 1 / 0, "FAILS: ZeroDivisionError"),
        (lambda s, t: (s + t).sum() * torch.nan, "FAILS: value or gradient is not finite"),
    ],
)
def test_an_implementation_that_breaks_fails_alone(broken, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr(_selfcheck, "mld_loss", broken)
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if message in line] == ["MLD"]
    assert lines[-1].startswith("1 FAIL, ")
    assert main(["--json"]) == 1
    json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN, which is no JSON


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = {backend.name: backend for backend in _selfcheck.backends(torch.device("cpu"))}
    assert found["closed_form"].available
    assert found["closed_form"].chosen
    assert not found["enumeration_triton"].available
    assert "CUDA or ROCm" in found["enumeration_triton"].reason
    monkeypatch.setattr("mlcorr.ops.launching._triton_error", lambda: "ImportError: no triton")
    found = {backend.name: backend for backend in _selfcheck.backends(torch.device("cpu"))}
    assert "pip install 'mlcorr[triton]'" in found["streamed_triton"].reason


def test_the_definitions_are_the_loops_of_the_tests() -> None:
    student, teacher, target = (x.double() for x in _selfcheck._labels())
    s, t = student[:3, :5].sigmoid(), teacher[:3, :5].sigmoid()
    weights = {2: 1.0, 3: 1.0, 4: 1.0}
    for delta in (1.0, 0.1):
        loops = norder_reference.instance_loss(s, t, weights, delta).mean() + norder_reference.batch_loss(
            s, t, weights, delta
        )
        written = _selfcheck.dependency_by_definition(student[:3, :5], teacher[:3, :5], delta=delta)
        torch.testing.assert_close(written, loops, rtol=1e-12, atol=0)
    x, labels, keys, key_labels = _selfcheck._vectors()
    x, keys = x.double(), keys.double()
    loops = contrast_reference.sample_contrastive(x, labels, keys, key_labels, _selfcheck._TEMPERATURE)
    written = _selfcheck.contrastive_by_definition(x, keys, labels=labels, key_labels=key_labels)
    torch.testing.assert_close(written, loops, rtol=1e-12, atol=0)
    assert (target < 0).any()
    assert (key_labels < 0).any()


def test_every_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert _selfcheck.devices() == [torch.device(name) for name in ("cpu", "cuda:0", "cuda:1", "mps")]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert _selfcheck.describe(torch.device("cuda:1")) == "Card 1, compute capability 9.1"
    assert _selfcheck.describe(torch.device("mps")) == "mps"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert _selfcheck.describe(torch.device("cpu")).startswith("1 thread, ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert _selfcheck.devices() == [torch.device("cpu")]


def test_versions_of_what_is_missing_or_goes_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    find, version = importlib.util.find_spec, importlib.metadata.version

    def without(package: str) -> str:
        if package == "scikit-learn":  # as of a build that calls itself otherwise
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchmetrics" else find(name))
    monkeypatch.setattr(importlib.metadata, "version", without)
    found = _selfcheck.versions()
    assert found["torchmetrics"] is None
    assert found["scikit-learn"] == "unknown version"
    assert found["numpy"] == version("numpy")
