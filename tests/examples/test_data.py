"""The demo's data: declared structure, disjoint scans, and errors that say what a file lacks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from examples import data
from examples.data import EXCLUSIVE_PAIRS, GROUPS, digit_scenes, draw_labels, keep_known, load_npz, split_scans

TINY = (40, 30, 20)


def test_scenes_are_decided_by_the_seed():
    first, again, other = (digit_scenes(seed=seed, num_scenes=TINY) for seed in (3, 3, 4))
    for split in ("train", "evaluation"):
        assert torch.equal(getattr(first, split).inputs, getattr(again, split).inputs)
        assert torch.equal(getattr(first, split).targets, getattr(again, split).targets)
        assert not torch.equal(getattr(first, split).inputs, getattr(other, split).inputs)


def test_scenes_have_the_documented_shapes_and_ranges():
    scenes = digit_scenes(num_scenes=TINY)
    assert scenes.train.inputs.shape == (40, 1, data.CANVAS, data.CANVAS)
    assert scenes.evaluation.targets.shape == (20, 10)
    assert scenes.train.inputs.dtype == scenes.train.targets.dtype == torch.float32
    assert scenes.train.inputs.min() >= 0
    assert scenes.train.inputs.max() <= 1
    assert set(scenes.train.targets.unique().tolist()) == {0.0, 1.0}
    assert scenes.label_names == tuple("0123456789")


def test_validation_and_test_share_the_training_scenes_and_nothing_else():
    test, validation = (digit_scenes(num_scenes=(40, 30, 30), evaluate_on=split) for split in ("test", "validation"))
    assert torch.equal(test.train.inputs, validation.train.inputs)
    assert not torch.equal(test.evaluation.inputs, validation.evaluation.inputs)


def test_every_scan_is_dealt_once_and_every_split_has_every_digit():
    digits = load_digits().target
    dealt = split_scans(digits, np.random.default_rng(0))
    together = np.concatenate(list(dealt.values()))
    assert sorted(together) == list(range(len(digits)))
    for scans in dealt.values():
        assert set(digits[scans]) == set(range(10))


def test_scans_that_look_the_same_do_not_hide_in_two_splits():
    images, digits = load_digits(return_X_y=True)
    dealt = split_scans(digits, np.random.default_rng((0, 3)))
    seen = [{images[scan].tobytes() for scan in scans} for scans in dealt.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(digits)


def test_labels_show_the_declared_structure():
    rng = np.random.default_rng(0)
    labels = np.stack([draw_labels(rng) for _ in range(3000)])
    assert labels.any(axis=1).all()
    for first, second in EXCLUSIVE_PAIRS:
        assert not (labels[:, first] & labels[:, second]).any()
    correlation = np.corrcoef(labels.T)
    within = [correlation[k, l] for group in GROUPS for k in group for l in group if k < l]
    across = [correlation[k, l] for g, a in enumerate(GROUPS) for b in GROUPS[g + 1 :] for k in a for l in b]
    assert min(within) > 0.2
    assert max(across) < 0


def test_groups_cover_the_digits_once_and_exclusive_pairs_cross_them():
    assert sorted(digit for group in GROUPS for digit in group) == list(range(10))
    group_of = {digit: index for index, group in enumerate(GROUPS) for digit in group}
    assert all(group_of[first] != group_of[second] for first, second in EXCLUSIVE_PAIRS)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (30, 4)).astype(np.uint8)
    return {"labels": labels, "features": rng.normal(3.0, 5.0, (30, 6)), "split": np.arange(30) % 3 // 2}


def save(folder, arrays):
    np.savez(folder / "some.npz", **arrays)
    return folder / "some.npz"


def test_features_are_standardised_by_the_training_rows(tmp_path, arrays):
    arrays["features"][:, 5] = 7.0  # a constant column must not become NaN
    arrays["features"][arrays["split"] == 1] += 100.0
    read = load_npz(save(tmp_path, arrays))
    assert read.train.inputs.shape == (20, 6)
    assert read.evaluation.inputs.shape == (10, 6)
    torch.testing.assert_close(read.train.inputs.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(read.train.inputs[:, :5].std(0, correction=0), torch.ones(5))
    assert read.evaluation.inputs.mean() > 1
    assert read.evaluation.inputs.isfinite().all()
    assert read.name == "some"
    assert read.label_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("shape", [(30, 8, 6, 3), (30, 8, 6)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_images_become_channels_first(tmp_path, arrays, shape, dtype):
    del arrays["features"]
    pixels = np.random.default_rng(1).integers(0, 256, shape)
    arrays["images"] = pixels.astype(dtype)
    arrays["label_names"] = np.array(["a", "b", "c", "d"])
    read = load_npz(save(tmp_path, arrays))
    channels = shape[3] if len(shape) == 4 else 1
    assert read.train.inputs.shape == (20, channels, 8, 6)
    assert read.train.inputs.dtype == torch.float32
    assert read.label_names == ("a", "b", "c", "d")
    train = pixels.reshape(30, 8, 6, channels)[arrays["split"] == 0].astype(float)
    expected = ((train - train.mean((0, 1, 2))) / train.std((0, 1, 2))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(read.train.inputs.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float32])
def test_unknown_labels_are_kept(tmp_path, arrays, dtype):
    arrays["labels"] = arrays["labels"].astype(dtype)
    arrays["labels"][0, 1] = -1
    assert load_npz(save(tmp_path, arrays)).train.targets[0, 1] == -1


def test_without_a_split_one_is_drawn_from_the_seed(tmp_path, arrays):
    del arrays["split"]
    path = save(tmp_path, arrays)
    first, again, other = (load_npz(path, seed=seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.evaluation)) == (24, 6)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.targets, other.train.targets)


def test_validation_rows_come_from_the_training_rows(tmp_path, arrays):
    arrays["features"][:, 0] = np.arange(30)
    read = load_npz(save(tmp_path, arrays), evaluate_on="validation")
    assert len(read.train) + len(read.evaluation) == 20
    assert len(read.evaluation) > 0
    marks = torch.cat([read.train.inputs[:, 0], read.evaluation.inputs[:, 0]])
    assert len(marks.unique()) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "no array 'labels'"),
        ({"features": None}, "no array 'features' or 'images' to learn from"),
        ({"labels": np.zeros(30)}, r"labels: expected shape \(samples, labels\)"),
        ({"labels": np.zeros((30, 0))}, "labels: expected shape"),
        ({"labels": np.full((30, 4), 2)}, "labels: expected numbers 0, 1 or -1"),
        ({"labels": np.full((30, 4), "x")}, "labels: expected numbers"),
        ({"features": np.zeros((29, 6))}, "features: expected .* with 30 samples"),
        ({"features": np.zeros((30, 6, 2))}, "features: expected numbers of shape"),
        ({"features": np.full((30, 6), np.nan)}, "features: expected finite numbers"),
        ({"features": None, "images": np.zeros((30, 6))}, "images: expected numbers of shape"),
        ({"split": np.zeros(29)}, r"split: expected shape \(30,\)"),
        ({"split": np.zeros(30)}, "split: .* both present"),
        ({"split": np.full(30, 2)}, "split: .* 0 .train. and 1 .test."),
        ({"label_names": np.array(["a", "b"])}, r"label_names: expected shape \(4,\)"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, arrays, change, message):
    for name, value in change.items():
        arrays[name] = value
        if value is None:
            del arrays[name]
    path = save(tmp_path, arrays)
    with pytest.raises(ValueError, match=message) as raised:
        load_npz(path)
    assert "some.npz" in str(raised.value)


def test_a_missing_file_and_a_pickled_array_are_refused(tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_npz(tmp_path / "none.npz")
    arrays["labels"] = arrays["labels"].astype(object)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_npz(save(tmp_path, arrays))


# --------------------------------------------------------------------------------------------- partial labels


@pytest.fixture
def scenes():
    scenes = digit_scenes(num_scenes=(43, 5, 7))
    scenes.train.targets[::4, 3] = -1  # 11 of 430 are unknown already
    return scenes


@pytest.mark.parametrize("fraction", [0.003, 0.1, 1 / 3, 0.5, 0.999])
def test_exactly_the_fraction_of_the_known_labels_is_kept(scenes, fraction):
    before = scenes.train.targets.clone()
    part = keep_known(scenes, fraction, seed=2)
    known = part.train.targets >= 0
    assert known.sum() == round(fraction * 419)
    assert torch.equal(part.train.targets[known], before[known])
    assert (part.train.targets[~known] == -1).all()
    assert (before[known] >= 0).all()
    assert torch.equal(scenes.train.targets, before)
    assert part.train.inputs is scenes.train.inputs
    assert part.evaluation is scenes.evaluation
    assert (part.evaluation.targets >= 0).all()


def test_what_a_small_fraction_keeps_a_larger_one_keeps_too(scenes):
    known = [keep_known(scenes, fraction, seed=5).train.targets >= 0 for fraction in (0.1, 0.3, 0.7, 1.0)]
    for fewer, more in pairwise(known):
        assert (more | ~fewer).all()
        assert more.sum() > fewer.sum()


def test_the_seed_decides_which_labels_are_kept(scenes):
    one, same, other = (keep_known(scenes, 0.5, seed=seed).train.targets for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_known_label_is_kept_as_often():
    scenes = digit_scenes(num_scenes=(4, 1, 1))
    kept = sum((keep_known(scenes, 0.3, seed=seed).train.targets >= 0).double() for seed in range(400)) / 400
    assert kept.sum() == pytest.approx(12)
    assert (kept - 0.3).abs().max() < 0.1  # more than four standard errors


def test_all_known_are_the_data_as_they_are(scenes):
    assert keep_known(scenes, 1.0, seed=0) is scenes


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(scenes, fraction):
    with pytest.raises(ValueError, match=r"known: expected a fraction in \(0, 1\], got"):
        keep_known(scenes, fraction, seed=0)


def test_a_fraction_that_keeps_nothing_is_refused(scenes):
    with pytest.raises(ValueError, match=r"known: a fraction of 0\.001 keeps none of 419 known labels"):
        keep_known(scenes, 0.001, seed=0)
