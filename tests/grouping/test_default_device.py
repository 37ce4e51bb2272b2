"""A default device, such as a GPU for all new tensors, moves neither counts nor groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.sparse
import torch

from mlcorr import LabelCooccurrence, SpectralLabelGrouping
from mlcorr.grouping import LabelGroups, affinity

TARGETS = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, -1, 1, 1]])
ELSEWHERE = torch.device("meta")  # whatever comes there has lost its numbers


@pytest.mark.parametrize("solver", ["dense", "operator"])
def test_groups_are_fitted_where_the_counts_are(solver: str) -> None:
    here, there = (SpectralLabelGrouping(4, 2, restarts=1, solver=solver) for _ in range(2))
    here.update(TARGETS)
    expected = here.fit()
    with ELSEWHERE:
        there.update(TARGETS)
        assert there.fit() == expected
        here.load_state_dict(there.state_dict())
    assert here.assignments == expected == there.assignments


def test_counts_and_affinities_stay_where_they_are() -> None:
    for storage in ("dense", "sparse"):
        here, there = (LabelCooccurrence(4, storage=storage) for _ in range(2))
        for given in (TARGETS, scipy.sparse.csr_matrix(TARGETS.numpy())):
            here.update(given)
            with ELSEWHERE:
                there.update(given)
        expected = here.counts(sparse=True)
        with ELSEWHERE:
            counts = there.counts(sparse=True)
            found = affinity(counts.together, counts.known)
        assert torch.equal(counts.together.to_dense(), expected.together.to_dense())
        assert torch.equal(found.to_dense(), affinity(expected.together, expected.known).to_dense())


def test_files_are_read_to_the_cpu(tmp_path: Path) -> None:
    groups = LabelGroups(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), ("a", "b", "c", "d"), 2)
    groups.save(tmp_path / "groups.json")
    (tmp_path / "published.json").write_text('[{"0": 0, "1": 1}, {"2": 0, "3": 1}]')
    with ELSEWHERE:
        assert LabelGroups.load(tmp_path / "groups.json") == groups
        assert LabelGroups.load(tmp_path / "groups.json", tuple("dcba")).co.tolist() == [1, 1, 0, 0]
        published = LabelGroups.load(tmp_path / "published.json", dis=tmp_path / "published.json")
    assert torch.equal(published.co, groups.co)
