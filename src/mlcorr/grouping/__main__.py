"""``python -m mlcorr.grouping FILE.npz``: groups of labels by name, from a file of targets."""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mlcorr.grouping.label_groups import RELATIONS, LabelGroups
from mlcorr.grouping.spectral import Solver, SpectralLabelGrouping

_SPLITS = {"train": 0, "test": 1, "all": None}
_ROWS = 65_536  # that are counted at a time


def main(arguments: list[str] | None = None) -> None:
    """Print the groups of both relations, and save what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m mlcorr.grouping",
        description="Group the labels of a data set: those that stand together, and those that do not.",
        epilog="FILE.npz holds `labels` (N, C) with 1, 0 and -1 for unknown, or `labels_packed` (bits along the "
        "labels) with `shape`; and, if it has them, `label_names` (C,) and `split` (N,), 0 for training, 1 for test.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.npz")
    parser.add_argument(
        "--groups", default="5", help='number of groups, or "auto" for the widest eigengap (default: 5)'
    )
    parser.add_argument("--tau", type=float, default=2.0, help="divisor of the exponent of the affinity (default: 2)")
    parser.add_argument("--split", choices=list(_SPLITS), default="train", help="rows to count (default: train)")
    parser.add_argument("--solver", choices=get_args(Solver), default="auto", help="default: auto")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", type=Path, metavar="GROUPS.json", help="save the groups")
    text = "the picture; needs matplotlib (default: FILE_groups.png, here)"
    parser.add_argument("--figure", type=Path, metavar="GROUPS.png", help=text)
    parser.add_argument("--no-figure", action="store_true", help="no picture")
    asked = parser.parse_args(arguments)
    try:
        labels, names = read_labels(asked.file, asked.split)
        grouping = SpectralLabelGrouping(
            labels.shape[1],
            "auto" if asked.groups == "auto" else _whole(asked.groups),
            tau=asked.tau,
            names=names,
            seed=asked.seed,
            solver=asked.solver,
        )
        for part in torch.from_numpy(labels).split(_ROWS):
            grouping.update(part)
        groups = grouping.fit()
        if asked.output:
            groups.save(asked.output)
        if not asked.no_figure:
            save_figure(grouping, asked.figure or Path(f"{asked.file.stem}_groups.png"))
    except (OSError, TypeError, ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    print(f"{asked.file.name}: {len(labels):,} rows, {labels.shape[1]:,} labels, {groups.num_groups} groups")
    print_groups(groups)


def read_labels(path: Path, split: str) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return the targets (N, C) of a part of the rows, and the labels' names if the file has them."""
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with loaded as file:
                content = {name: file[name] for name in file.files if name in _NAMES}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error
    if "labels" in content:
        labels = content["labels"]
    elif "labels_packed" in content and "shape" in content:
        labels = _unpacked(content["labels_packed"], content["shape"])
    else:
        raise ValueError(f"{path} has neither `labels` nor `labels_packed` with `shape`")
    if labels.ndim != 2 or labels.shape[1] == 0 or labels.dtype.kind not in "biuf":
        raise ValueError(f"labels: expected numbers of the shape (N, C), got {labels.dtype} {labels.shape}")
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError("labels: expected 1, 0, and -1 for unknown, and nothing else")
    part = _SPLITS[split]
    if "split" in content and part is not None:
        if content["split"].shape != labels.shape[:1] or content["split"].dtype.kind not in "biuf":
            raise ValueError(f"split: expected one number for each of {len(labels)} rows")
        labels = labels[content["split"] == part]
    elif split == "test":
        raise ValueError(f"{path} has no `split` that says which rows are for test")
    if len(labels) == 0:
        raise ValueError(f"{path} has no row of the split {split!r}")
    return labels.astype(np.int8), _names_of(content.get("label_names"), labels.shape[1])


def _unpacked(packed: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    """Return the labels (N, C) of their bits."""
    fits = packed.ndim == 2 and packed.dtype == np.uint8 and shape.shape == (2,) and shape.dtype.kind in "iu"
    if not fits or int(shape[0]) != len(packed) or -(-int(shape[1]) // 8) != packed.shape[1]:
        raise ValueError(f"shape: expected (N, C) of the bits {packed.dtype} {packed.shape}, got {shape.tolist()}")
    return np.unpackbits(packed, axis=1, count=int(shape[1]))


def _names_of(names: NDArray[Any] | None, count: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.shape != (count,):
        raise ValueError(f"label_names: expected {count} names, one a label, got the shape {names.shape}")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)


def save_figure(grouping: SpectralLabelGrouping, path: Path) -> None:
    """Draw the grouping into a file."""
    try:
        from mlcorr.grouping.figures import draw_groups

        draw_groups(grouping).savefig(path, dpi=120)
    except ModuleNotFoundError as error:
        raise ImportError(f"a picture needs matplotlib: pip install mlcorr[plot] ({error})") from error


def print_groups(groups: LabelGroups) -> None:
    """Print the labels of each group, for both relations."""
    for relation in RELATIONS:
        cut = groups.ncut_co if relation == "co" else groups.ncut_dis
        print(f"\n{relation}-occurrence groups, normalised cut {cut:.4f}")
        for number, members in enumerate(groups.members(relation)):
            text = f"{number} ({len(members)}): {', '.join(members)}"
            print(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="      "))


_NAMES = ("labels", "labels_packed", "shape", "label_names", "split")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'--groups: expected a whole number or "auto", got {text!r}') from None


if __name__ == "__main__":
    main()
