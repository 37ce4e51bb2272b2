"""LabelGroups: what it accepts, its file and the published format."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr.grouping import LabelGroups

NAMES = ("cup", "fork", "car", "bus")
CO, DIS = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])


def groups(names=NAMES, **kwargs) -> LabelGroups:
    return LabelGroups(CO, DIS, names, 2, **kwargs)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), size=st.integers(1, 12), count=st.integers(1, 5))
def test_a_file_gives_the_same_back(data, size: int, count: int, tmp_path_factory) -> None:
    draws = st.lists(st.integers(0, count - 1), min_size=size, max_size=size)
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    names = data.draw(st.none() | st.lists(text, min_size=size, max_size=size, unique=True))
    cuts = data.draw(st.tuples(*[st.floats(0, 10) | st.just(math.nan)] * 2))
    path = tmp_path_factory.mktemp("groups") / "groups.json"
    co, dis = (torch.tensor(data.draw(draws)) for _ in range(2))
    written = LabelGroups(co, dis, names, count, 1.5, "by hand", *cuts)
    written.save(path)
    read = LabelGroups.load(path)
    assert read == written
    assert (read.tau, read.method, read.num_labels) == (1.5, "by hand", size)
    assert all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip((read.ncut_co, read.ncut_dis), cuts, strict=True)
    )
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # strict readers know no NaN


def test_a_file_can_be_read_by_people(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    LabelGroups(torch.tensor([0, 1]), torch.tensor([1, 0]), ("Kühe", "стол"), 2, 1.5, "by hand").save(path)
    text = path.read_text(encoding="utf-8")
    assert '["Kühe", "стол"]' in text
    assert text.endswith("}\n")


def test_names_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    groups().save(path)
    read = LabelGroups.load(path, names=sorted(NAMES))
    assert read.names == ("bus", "car", "cup", "fork")
    assert read.co.tolist() == [1, 1, 0, 0]
    assert read.dis.tolist() == [1, 0, 0, 1]
    assert read.reorder(NAMES) == groups()
    assert read != groups()
    for other in (("cup", "fork", "car"), ("cup", "fork", "car", "train"), (*NAMES, "train")):
        with pytest.raises(ValueError, match=r"^names: "):
            LabelGroups.load(path, names=other)
    with pytest.raises(ValueError, match=r"^names: .*'train'.*'bus'"):
        LabelGroups.load(path, names=("cup", "fork", "car", "train"))
    groups(names=None).save(path)
    assert LabelGroups.load(path).names is None
    assert LabelGroups.load(path, names=NAMES) == groups()
    with pytest.raises(ValueError, match=r"^names: .*4.*3"):
        LabelGroups.load(path, names=NAMES[:3])


def test_published_format(tmp_path: Path) -> None:
    co, dis = tmp_path / "co.json", tmp_path / "dis.json"
    co.write_text('[{"0": 0, "3": 1}, {"1": 0, "2": 1}]')
    dis.write_text('[{"1": 0}, {"0": 0, "3": 1}, {"2": 0}]')
    read = LabelGroups.load(co, dis=dis)
    assert read.co.tolist() == [0, 1, 1, 0]
    assert read.dis.tolist() == [1, 0, 2, 1]
    assert (read.num_groups, read.names, read.method) == (3, None, "published")
    assert LabelGroups.load(co, NAMES, dis=dis).names == NAMES
    # The file's labels stand in alphabetical order, the caller's do not.
    sorted_names = sorted(NAMES)
    read = LabelGroups.load(co, NAMES, dis=dis, file_names=sorted_names)
    assert read.names == NAMES
    assert {name: int(group) for name, group in zip(NAMES, read.co, strict=True)} == dict(
        zip(sorted_names, [0, 1, 1, 0], strict=True)
    )
    with pytest.raises(ValueError, match=r"^dis: "):
        LabelGroups.load(co)
    groups().save(tmp_path / "own.json")
    with pytest.raises(ValueError, match=r"^dis, file_names: "):
        LabelGroups.load(tmp_path / "own.json", dis=dis)
    for wrong in ('[{"0": 0, "2": 1}]', '[{"0": 0}, {"0": 0}]', '[{"cup": 0}]', "[1]", "[]", '{"0": 0}'):
        dis.write_text(wrong)
        with pytest.raises(ValueError, match=r"^dis: .*dis\.json"):
            LabelGroups.load(co, dis=dis)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    groups().save(path)
    content = json.loads(path.read_text())
    lacking = {key: value for key, value in content.items() if key != "tau"}
    for text in ("{", "{}", "7", json.dumps(content | {"version": 2}), json.dumps(lacking)):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"^path: .*groups\.json"):
            LabelGroups.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"^path: "):
        LabelGroups.load(path)
    path.write_text(json.dumps(content | {"co": [0, 0.5, 1, 1]}))
    with pytest.raises(ValueError, match="whole numbers"):
        LabelGroups.load(path)
    for change, message in (
        ({"dis": [0, -1, 0, 1]}, "expected numbers of groups, got -1 to 1$"),
        ({"co": [0, 0, 2**63, 1]}, f"expected numbers of groups, got 0 to {2**63}$"),
        ({"names": 7}, "names: expected a sequence"),
        ({"method": None}, "method: expected a string, got NoneType$"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=rf"^path: .*groups\.json: {message}"):
            LabelGroups.load(path)
    with pytest.raises(FileNotFoundError):
        LabelGroups.load(tmp_path / "none.json")


class OfBytes:
    def __fspath__(self) -> bytes:
        return b"groups.json"


@pytest.mark.parametrize("path", ["\ud800.json", OfBytes()])
def test_what_names_no_file_is_refused(path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (LabelGroups.load, groups().save):
        with pytest.raises(ValueError, match=r"^path: expected a path, got .*: "):
            call(path)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "groups.json"
    groups().save(path)
    monkeypatch.setattr(json, "dump", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        LabelGroups(DIS, CO, NAMES, 2).save(path)
    assert LabelGroups.load(path) == groups()
    assert [file.name for file in tmp_path.iterdir()] == ["groups.json"]


def test_values() -> None:
    made = LabelGroups(CO.to(torch.int32), DIS.to(torch.uint8), list(NAMES), 3)
    assert made.co.dtype == made.dis.dtype == torch.int64
    assert made.members("dis") == [["cup", "car"], ["fork", "bus"], []]
    assert groups(names=None).members() == [["0", "1"], ["2", "3"]]
    own = CO.clone()
    kept = LabelGroups(own, DIS, NAMES, 2)
    own[0] = 1
    assert kept == groups()
    assert hash(kept) == hash(groups(method="another"))
    assert kept == groups(method="another", ncut_co=1.0)
    assert kept != LabelGroups(DIS, DIS, NAMES, 2)
    assert kept != "groups"
    assert pickle.loads(pickle.dumps(kept)) == kept
    with pytest.raises(AttributeError):
        kept.num_groups = 3


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"^co: .*\[0, 1\).*got 1", lambda: LabelGroups(CO, DIS, None, 1)),
        (ValueError, r"^dis: .*got -1", lambda: LabelGroups(CO, DIS - 1, None, 2)),
        (ValueError, r"^dis: .*\(4,\).*\(3,\)", lambda: LabelGroups(CO, DIS[:3], None, 2)),
        (ValueError, r"^co: .*C >= 1", lambda: LabelGroups(CO[:0], DIS[:0], None, 2)),
        (TypeError, r"^co: .*float", lambda: LabelGroups(CO.float(), DIS, None, 2)),
        (TypeError, r"^dis: .*list", lambda: LabelGroups(CO, [0, 1, 0, 1], None, 2)),
        (ValueError, r"^names: .*'cup' twice", lambda: groups(("cup", "fork", "cup", "bus"))),
        (ValueError, r"^names: .*4 names.*got 2", lambda: groups(("cup", "fork"))),
        (TypeError, r"^names: .*7", lambda: groups(("cup", "fork", "car", 7))),
        (TypeError, r"^names: ", lambda: groups("abcd")),
        (ValueError, r"^num_groups: ", lambda: LabelGroups(CO, DIS, None, 0)),
        (ValueError, r"^tau: ", lambda: groups(tau=0)),
        (ValueError, r"^relation: .*'both'", lambda: groups().members("both")),
        (ValueError, r"^names: .*none", lambda: groups(None).reorder(NAMES)),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


def test_three_names_tell_which_labels_are_wrong() -> None:
    names = [f"label {number}" for number in range(5)]
    own = LabelGroups(torch.arange(5), torch.arange(5), names, 5)
    with pytest.raises(ValueError, match=r"without a group: .*'no 0', 'no 1', 'no 2'.*, not asked for: ") as caught:
        own.reorder([f"no {number}" for number in range(5)])
    assert str(caught.value).count("'no ") == str(caught.value).count("'label ") == 3


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    groups().save(tmp_path / "groups.json")
    assert done == ["sync", "rename"]
    assert LabelGroups.load(tmp_path / "groups.json") == groups()
