"""Data that the examples learn from in tests."""

import os

import numpy as np
import pytest
import torch


@pytest.fixture
def image_file(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3)).astype(np.int8)
    labels[2, 1] = labels[55, 0] = -1
    images = rng.integers(0, 100, (60, 20, 28, 3)).astype(np.uint8)
    for label in range(3):
        images[labels[:, label] == 1, 4:12, 8 * label : 8 * label + 8, label] += 120
    np.savez(tmp_path / "some.npz", labels=labels, images=images, split=np.arange(60) // 48)
    return str(tmp_path / "some.npz")


@pytest.fixture
def feature_file(tmp_path):
    """Four labels, of which the third comes with the first, from twelve features."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (150, 4)).astype(np.int8)
    labels[:, 2] = labels[:, 0]
    features = rng.normal(size=(150, 12)) + np.repeat(2 * labels, 3, axis=1)
    np.savez(tmp_path / "measured.npz", labels=labels, features=features, split=np.arange(150) // 110)
    return str(tmp_path / "measured.npz")


@pytest.fixture
def one_thread():
    """The number of threads decides the order of sums; here, and in the processes that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield os.environ | {"OMP_NUM_THREADS": "1"}
    torch.set_num_threads(threads)
