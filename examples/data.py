"""Data of the examples: scenes of handwritten digits with declared label dependencies, any ``.npz`` file, part of both.

`digit_scenes` and `load_npz` return the data; `keep_known` makes most of the labels to learn from unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

CANVAS = 24  # pixels a side
SCAN = 8  # pixels a side of one handwritten digit

# How the labels of a scene depend on each other. Digits of a group come together; the members of an
# exclusive pair look alike, stand in different groups and never meet: so the company that a blurred stroke
# keeps says what it is.
GROUPS = ((0, 3, 6), (1, 4, 8), (2, 5, 7, 9))
EXCLUSIVE_PAIRS = ((3, 8), (1, 7), (4, 9))
SECOND_GROUP = 0.35  # probability that a scene draws on a second group
MEMBER = 0.75  # probability that a digit of a drawn group appears
STRAY = 0.08  # probability that a digit of no drawn group appears

# What makes the scenes hard: strokes of uneven strength, scraps of other scans, and grain.
CONTRAST = (0.45, 1.0)
SCRAPS, SCRAP = 6, 4
GRAIN = 0.12

SPLITS = ("train", "validation", "test")
SCAN_SHARES = (0.5, 0.15, 0.35)  # of every digit's scans
NUM_SCENES = (12000, 1500, 1500)

HIDING = 11  # beside a seed, of the draws that make labels unknown


@dataclass(frozen=True)
class Split:
    """Inputs (N, features) or (N, channels, height, width), and targets (N, labels) of 0, 1 or −1 (unknown)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """What a student is trained on, what it is judged by, and what the labels are called."""

    name: str
    train: Split
    evaluation: Split
    label_names: tuple[str, ...]

    def to(self, device: torch.device) -> Dataset:
        """Return the data on ``device``."""
        return replace(self, train=self.train.to(device), evaluation=self.evaluation.to(device))


# -------------------------------------------------------------------------------------------- partial labels


def keep_known(data: Dataset, fraction: float, *, seed: int) -> Dataset:
    """Return the data with a part of the known training labels, drawn uniformly; the others are −1 (unknown).

    Exactly ``round(fraction * number)`` of them are kept. With one seed, what a small fraction keeps a larger one keeps
    too. The evaluation split stays whole.

    Args:
        data: of any kind; entries that are unknown already stay so, and do not count.
        fraction: in (0, 1]; 1 returns the data as they are.
        seed: decides which labels are kept, apart from everything else that it decides.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"known: expected a fraction in (0, 1], got {fraction}")
    if fraction == 1:
        return data
    targets = data.train.targets.clone()
    known = (targets >= 0).flatten().nonzero().flatten().cpu().numpy()
    kept = round(fraction * len(known))
    if kept == 0:
        raise ValueError(f"known: a fraction of {fraction} keeps none of {len(known)} known labels")
    # One order for every fraction: what is kept is its beginning.
    hidden = np.random.default_rng((seed, HIDING)).permutation(known)[kept:]
    targets.view(-1)[torch.from_numpy(hidden).to(targets.device)] = -1
    return replace(data, train=Split(data.train.inputs, targets))


# ---------------------------------------------------------------------------------------------------- digits


def draw_labels(rng: np.random.Generator) -> np.ndarray:
    """Draw the digits of one scene, (10,) of bool, from the declared structure; never none."""
    while True:
        count = 2 if rng.random() < SECOND_GROUP else 1
        probability = np.full(10, STRAY)
        for group in rng.choice(len(GROUPS), size=count, replace=False):
            probability[list(GROUPS[group])] = MEMBER
        labels = rng.random(10) < probability
        for pair in EXCLUSIVE_PAIRS:
            if labels[list(pair)].all():
                labels[rng.choice(pair)] = False
        if labels.any():
            return labels


def split_scans(digits: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Deal the scans' indices to train, validation and test, digit by digit, each scan to one of them."""
    dealt: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(digits == digit))
        bounds = np.round(np.cumsum(SCAN_SHARES[:-1]) * len(scans)).astype(int)
        for split, part in zip(SPLITS, np.split(scans, bounds), strict=True):
            dealt[split].append(part)
    return {split: np.concatenate(parts) for split, parts in dealt.items()}


def paint_scene(
    labels: np.ndarray, scans: np.ndarray, digits: np.ndarray, rng: np.random.Generator, side: int = CANVAS
) -> np.ndarray:
    """Paint one scan of every digit in ``labels`` at a random place: (side, side), values in [0, 1]."""
    canvas = np.zeros((side, side), dtype=np.float32)

    def stamp(patch: np.ndarray) -> None:
        row, column = rng.integers(0, side - len(patch) + 1, size=2)
        place = canvas[row : row + len(patch), column : column + len(patch)]
        np.maximum(place, patch * rng.uniform(*CONTRAST), out=place, casting="same_kind")

    for scan in rng.integers(len(scans), size=SCRAPS):
        row, column = rng.integers(0, SCAN - SCRAP + 1, size=2)
        stamp(scans[scan, row : row + SCRAP, column : column + SCRAP])
    for digit in np.flatnonzero(labels):
        stamp(scans[rng.choice(np.flatnonzero(digits == digit))])
    return np.clip(canvas + rng.normal(0.0, GRAIN, canvas.shape), 0.0, 1.0).astype(np.float32)


def digit_scenes(
    *, seed: int = 0, evaluate_on: str = "test", num_scenes: Sequence[int] = NUM_SCENES, canvas: int = CANVAS
) -> Dataset:
    """Return scenes of scikit-learn's bundled handwritten digits; no split shares a scan with another.

    Args:
        seed: decides everything; the same seed gives the same scenes.
        evaluate_on: ``"test"``, or ``"validation"`` for whoever chooses something by the scores.
        num_scenes: number of scenes to train on, to validate on and to test on.
        canvas: pixels a side; the larger, the more of a scene is background.
    """
    if canvas < SCAN:
        raise ValueError(f"canvas: expected at least {SCAN} pixels, a digit's side, got {canvas}")
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, SCAN, SCAN).astype(np.float32)
    dealt = split_scans(digits, np.random.default_rng((seed, len(SPLITS))))

    def make(split: str) -> Split:
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        labels = np.stack([draw_labels(rng) for _ in range(num_scenes[SPLITS.index(split)])])
        own = dealt[split]
        scenes = np.stack([paint_scene(row, images[own], digits[own], rng, canvas) for row in labels])
        return Split(torch.from_numpy(scenes).unsqueeze(1), torch.from_numpy(labels.astype(np.float32)))

    names = tuple(str(digit) for digit in range(10))
    return Dataset("digit scenes", make("train"), make(evaluate_on), names)


# ---------------------------------------------------------------------------------------------------- .npz files


def load_npz(path: str | Path, *, seed: int = 0, evaluate_on: str = "test") -> Dataset:
    """Read a data set from an ``.npz`` file.

    Arrays: ``labels`` (N, C) of 0, 1 and −1 (unknown); ``features`` (N, D) or ``images`` (N, H, W[, channels]);
    optionally ``split`` (N,) of 0 (train) and 1 (test), else a fifth is drawn for testing, and ``label_names`` (C,).

    Args:
        path: the file; read without pickle.
        seed: decides the splits that are drawn here.
        evaluate_on: ``"test"``, or ``"validation"``: a fifth of the training rows, the test rows unseen.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}

    targets = _read_labels(arrays, path)
    inputs = _read_inputs(arrays, path, len(targets))
    names = arrays.get("label_names", np.arange(targets.shape[1])).astype(str)
    if names.shape != (targets.shape[1],):
        raise ValueError(f"{path}: label_names: expected shape ({targets.shape[1]},), got {names.shape}")

    rng = np.random.default_rng(seed)
    is_test = _read_split(arrays, path, len(targets), rng)
    train, evaluation = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    if evaluate_on == "validation":
        held_out = rng.random(len(train)) < 0.2
        train, evaluation = train[~held_out], train[held_out]

    # Every column (a feature, or an image's channel) is standardised by what the training rows know.
    axes = tuple(axis for axis in range(inputs.ndim) if axis != 1)
    mean, deviation = inputs[train].mean(axes, keepdims=True), inputs[train].std(axes, keepdims=True)
    inputs = (inputs - mean) / np.where(deviation > 0, deviation, 1)

    def make(rows: np.ndarray) -> Split:
        return Split(torch.from_numpy(inputs[rows].astype(np.float32)), torch.from_numpy(targets[rows]))

    return Dataset(path.stem, make(train), make(evaluation), tuple(names.tolist()))


def _read_labels(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    if "labels" not in arrays:
        raise ValueError(f"{path}: no array 'labels' among {sorted(arrays)}")
    labels = arrays["labels"]
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"{path}: labels: expected shape (samples, labels), got {labels.shape}")
    if labels.dtype.kind not in "buif" or not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(f"{path}: labels: expected numbers 0, 1 or -1 (unknown), got {np.unique(labels)[:8]}")
    return labels.astype(np.float32)


def _read_inputs(arrays: dict[str, np.ndarray], path: Path, rows: int) -> np.ndarray:
    """Return features as (N, D) or images as (N, channels, H, W), float32."""
    if "features" in arrays:
        name, dimensions = "features", (2,)
    elif "images" in arrays:
        name, dimensions = "images", (3, 4)
    else:
        raise ValueError(f"{path}: no array 'features' or 'images' to learn from, only {sorted(arrays)}")
    inputs = arrays[name]
    if inputs.dtype.kind not in "buif" or inputs.ndim not in dimensions or len(inputs) != rows:
        shape = "(samples, features)" if name == "features" else "(samples, height, width[, channels])"
        raise ValueError(
            f"{path}: {name}: expected numbers of shape {shape} with {rows} samples as in labels, "
            f"got {inputs.dtype} of {inputs.shape}"
        )
    if not np.isfinite(inputs).all():
        raise ValueError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
    if name == "images":
        scale = 255 if inputs.dtype == np.uint8 else 1
        inputs = inputs[..., None] if inputs.ndim == 3 else inputs
        return inputs.astype(np.float32).transpose(0, 3, 1, 2) / scale
    return inputs.astype(np.float32)


def _read_split(arrays: dict[str, np.ndarray], path: Path, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return which rows are for testing."""
    if "split" not in arrays:
        is_test = np.zeros(rows, dtype=bool)
        is_test[rng.permutation(rows)[: round(0.2 * rows)]] = True
        return is_test
    split = arrays["split"]
    if split.shape != (rows,) or not np.isin(split, (0, 1)).all() or len(np.unique(split)) < 2:
        raise ValueError(f"{path}: split: expected shape ({rows},) of 0 (train) and 1 (test), both present")
    return split == 1
