"""``python -m mlcorr.grouping``, and the pictures."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcorr.grouping import LabelGroups, SpectralLabelGrouping
from mlcorr.grouping.__main__ import main
from tests.grouping.targets import DATA, fitted_real

matplotlib = pytest.importorskip("matplotlib")

from mlcorr.grouping.figures import draw_graph, draw_groups  # noqa: E402

NAMES = ["cup", "car", "fork", "bus", "knife", "lorry"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures go where the command runs, unless told otherwise."""
    monkeypatch.chdir(tmp_path)


def write(path: Path, **changes) -> Path:
    random = np.random.default_rng(0)
    kitchen = random.random((400, 1)) < 0.5
    labels = (random.random((400, 6)) < np.where(kitchen == (np.arange(6) % 2 == 0), 0.6, 0.05)).astype(np.uint8)
    split = (np.arange(400) >= 300).astype(np.uint8)
    content = {"labels": labels, "label_names": np.array(NAMES), "split": split, **changes}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def test_it_prints_the_groups_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "data.npz")
    output, figure = tmp_path / "groups.json", tmp_path / "groups.png"
    main([str(file), "--groups", "2", "--output", str(output), "--figure", str(figure)])
    printed = capsys.readouterr().out
    assert "data.npz: 300 rows, 6 labels, 2 groups" in printed
    assert "(3): cup, fork, knife" in printed
    assert "(3): car, bus, lorry" in printed
    groups = LabelGroups.load(output, NAMES)
    assert groups.co.tolist() == [0, 1, 0, 1, 0, 1]
    assert f"co-occurrence groups, normalised cut {groups.ncut_co:.4f}" in printed
    assert f"dis-occurrence groups, normalised cut {groups.ncut_dis:.4f}" in printed
    assert figure.read_bytes()[:4] == b"\x89PNG"
    for split, rows in (("test", 100), ("all", 400)):
        main([str(file), "--groups", "auto", "--split", split, "--solver", "operator", "--seed", "3"])
        assert f"{rows} rows, 6 labels" in capsys.readouterr().out


def test_without_a_picture_none_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "data.npz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    for arguments in ([], ["--figure", "groups.png"]):
        with pytest.raises(SystemExit) as caught:
            main([str(file), "--groups", "2", *arguments])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "error: a picture needs matplotlib: pip install mlcorr[plot] (" in error
        assert error.count("\n") == 1
    main([str(file), "--groups", "2", "--no-figure"])
    assert "(3): cup, fork, knife" in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["data.npz"]


def test_names_that_the_stream_cannot_show_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = np.array(["cup", "car", "fork", "bus", "knife", "\N{DELIVERY TRUCK}"])
    arguments = [str(write(tmp_path / "data.npz", label_names=names)), "--groups", "2", "--no-figure"]
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    main(arguments)
    ascii_only.flush()
    assert "car, bus, \\U0001f69a" in ascii_only.buffer.getvalue().decode("ascii")
    anything = io.StringIO()  # as notebooks have
    monkeypatch.setattr(sys, "stdout", anything)
    main(arguments)
    assert "car, bus, \N{DELIVERY TRUCK}" in anything.getvalue()


def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.eye(8, dtype=np.uint8)[[0, 1, 2, 3] * 9] | np.eye(8, dtype=np.uint8)[[1, 0, 3, 2] * 9]
    packed = {"labels_packed": np.packbits(labels, axis=1), "shape": np.array(labels.shape)}
    file = write(tmp_path / "data.npz", labels=None, label_names=None, split=None, **packed)
    main([str(file), "--groups", "2"])
    assert "36 rows, 8 labels" in capsys.readouterr().out
    unknown = np.where(np.eye(4) > 0, -1.0, 1.0)
    main([str(write(tmp_path / "data.npz", labels=unknown, label_names=None, split=None)), "--groups", "2"])
    # Wherever both labels are known, both are there: no affinity is left for the other relation.
    assert "dis-occurrence groups, normalised cut 2.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"labels": None}, [], "neither `labels` nor `labels_packed`"),
        ({"labels": np.ones(3)}, [], "expected numbers of the shape (N, C)"),
        ({"labels": np.array([["a", "b"]])}, [], "expected numbers"),
        ({"labels": np.full((400, 6), 2)}, [], "expected 1, 0, and -1"),
        ({"label_names": np.array(["cup"])}, [], "names: expected 6 names"),
        ({"split": np.zeros(3)}, [], "split: expected one number for each of 400 rows"),
        ({"split": np.array(["train"] * 400)}, [], "split: expected one number for each of 400 rows"),
        ({"split": np.ones(400)}, [], "has no row of the split 'train'"),
        ({"split": None}, ["--split", "test"], "has no `split`"),
        ({"labels": np.zeros((0, 6)), "split": None}, [], "has no row of the split 'train'"),
        ({"label_names": np.array([NAMES, NAMES])}, [], "label_names: expected 6 names"),
        ({"labels": None, "labels_packed": np.zeros((3, 1), np.uint8), "shape": np.array([3, 20])}, [], "shape: "),
        ({"labels": None, "labels_packed": np.zeros((3, 1), np.uint8), "shape": np.array([3])}, [], "shape: "),
        ({"labels": np.array([[object()]], dtype=object)}, [], "no .npz file of plain arrays"),
        ({}, ["--groups", "many"], 'expected a whole number or "auto"'),
        ({}, ["--groups", "0"], "num_groups: "),
        ({}, ["--tau", "0"], "tau: "),
    ],
)
def test_errors_are_one_line(tmp_path: Path, capsys, changes, arguments, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(write(tmp_path / "data.npz", **changes)), *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_files_that_are_none(tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "one.npy", np.ones((3, 2)))
    (tmp_path / "text.npz").write_text("labels")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("one.npy", "text.npz", "empty.npz", "missing.npz"):
        with pytest.raises(SystemExit):
            main([str(tmp_path / name)])
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1


def test_it_runs_as_a_module() -> None:
    path = DATA / "voc2007_labels.npz"
    if not path.exists():
        pytest.skip("the real label matrix is not at hand")
    run = subprocess.run([sys.executable, "-m", "mlcorr.grouping", str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "bicycle, bus, car, motorbike" in run.stdout


# --- pictures ---


def overlaps(boxes) -> int:
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_eighty_names_can_be_read() -> None:
    figure = draw_groups(fitted_real("coco14"))
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    assert len(figure.axes) == 6
    for axes in (figure.axes[0], figure.axes[3]):
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert len(ticks) == 80
            assert overlaps([tick.get_window_extent(renderer) for tick in ticks]) == 0
    groups = fitted_real("coco14").assignments
    for axes, cut in ((figure.axes[0], groups.ncut_co), (figure.axes[3], groups.ncut_dis)):
        assert axes.get_title(loc="left").endswith(f" {cut:.4f}")
    drawn = [text.get_text() for text in figure.axes[1].texts]
    assert sorted(drawn) == sorted(fitted_real("coco14").names)
    for text in figure.axes[1].texts:
        x, y = text.get_position()
        along = np.array([x, y]) / np.hypot(x, y)  # of the way out, on which the name is read from left to right
        turned = np.radians(text.get_rotation())
        assert np.array([np.cos(turned), np.sin(turned)]) @ along == pytest.approx(1 if x >= 0 else -1)


def test_groups_stand_together() -> None:
    grouping = fitted_real("coco14")
    figure = draw_groups(grouping)
    groups = grouping.assignments
    place = {name: label for label, name in enumerate(groups.names)}
    for axes, assigned in ((figure.axes[0], groups.co), (figure.axes[3], groups.dis)):
        order = [int(assigned[place[tick.get_text()]]) for tick in axes.get_yticklabels()]
        assert order == sorted(order)
        assert len(axes.get_lines()) == 5  # a square around each
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (80, 80)
    assert image.max() <= 1


def test_many_labels_are_cut_down() -> None:
    generator = torch.Generator().manual_seed(0)
    for solver in ("dense", "operator"):
        grouping = SpectralLabelGrouping(150, 3, solver=solver, restarts=1)
        grouping.update(torch.rand(400, 150, generator=generator) < 0.02)
        grouping.fit()
        figure = draw_groups(grouping, most=30)
        assert len(figure.axes[0].get_yticklabels()) == 30
        figure.draw_without_rendering()
    assert len(draw_groups(grouping, most=130).axes[1].texts) == 0  # too many to be read
    nothing = SpectralLabelGrouping(6, 2)
    nothing.fit()
    draw_groups(nothing).draw_without_rendering()
    with pytest.raises(RuntimeError, match="no groups yet"):
        draw_groups(SpectralLabelGrouping(6, 2))


def test_strongest_pairs_are_drawn() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    m = torch.zeros(5, 5, dtype=torch.float64)
    m[0, 1] = m[1, 0] = 1.0
    m[2, 3] = m[3, 2] = 0.5
    groups = LabelGroups(torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64), tuple("abcde"), 2)
    draw_graph(axes, m, groups)
    assert len(axes.get_lines()) == 2
    assert {line.get_color() for line in axes.get_lines()} == {"#0072B2", "#B0B0B0"}
    axes = Figure().add_subplot()
    draw_graph(axes, m, groups, edges=1)
    assert len(axes.get_lines()) == 1


def test_truncated_files_and_odd_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "data.npz", label_names=np.array([b"a", b"b$x^$", b"$\\frac$", b"d", b"e", b"f"]))
    main([str(file), "--groups", "2"])
    assert "b$x^$" in capsys.readouterr().out
    assert (tmp_path / "data_groups.png").read_bytes()[:4] == b"\x89PNG"  # where nothing else was asked for
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit):
        main([str(file)])
    error = capsys.readouterr().err
    assert "no .npz file" in error
    assert error.count("\n") == 1
