"""Real label matrices, where they are at hand."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mlcorr.grouping import SpectralLabelGrouping

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def real_targets(name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return the training targets and the labels' names of "coco14" or "voc2007", or skip the test."""
    path = DATA / f"{name}_labels.npz"
    if not path.exists():
        pytest.skip(f"the real label matrix {path.name} is not at hand")
    with np.load(path, allow_pickle=False) as file:
        packed = "labels_packed" in file
        labels = np.unpackbits(file["labels_packed"], axis=1, count=int(file["shape"][1])) if packed else file["labels"]
        return torch.from_numpy(labels[file["split"] == 0]), tuple(file["label_names"].tolist())


@functools.cache
def fitted_real(name: str, num_groups: int = 5, **kwargs) -> SpectralLabelGrouping:
    """Return a grouping of a real label matrix, which several tests share and none changes."""
    targets, names = real_targets(name)
    grouping = SpectralLabelGrouping(len(names), num_groups, names=names, **kwargs)
    grouping.update(targets)
    grouping.fit()
    return grouping


def csr(table: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls CSR a beta feature
        return table.to_sparse_csr()


def fitted(targets: Tensor, num_groups: int = 5, **kwargs) -> SpectralLabelGrouping:
    grouping = SpectralLabelGrouping(targets.shape[1], num_groups, **kwargs)
    grouping.update(targets)
    grouping.fit()
    return grouping


def same_partition(first: Tensor, second: Tensor) -> bool:
    """Whether two groupings differ in nothing but the numbers of the groups: an adjusted Rand index of 1."""
    pairs = len(torch.stack([first, second]).unique(dim=1).T)
    return pairs == len(first.unique()) == len(second.unique())
