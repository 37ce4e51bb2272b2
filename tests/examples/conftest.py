"""Data that the examples learn from in tests."""

import numpy as np
import pytest


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
