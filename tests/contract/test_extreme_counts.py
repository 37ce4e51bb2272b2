"""What counts and compares instead of adding up: at the ends of numbers it is what a loop says, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.contract.case import Case, Sizes, cast, each_case, tensors
from tests.contract.cases import CASES
from tests.contract.extremes import DTYPES, ends, extremes
from tests.reference import grouping as loops_of_groups
from tests.reference import metrics as loops


def chooses(case: Case) -> str | None:
    """For ``needs``: functions that only compare numbers."""
    if case.leaves:
        return "computes with numbers; see extreme numbers, and large and small features"
    return None if case.kind in ("loss", "layer") else "takes no logits or scores of places"


def evaluates(case: Case) -> str | None:
    """For ``needs``: metrics."""
    return None if case.kind == "metric" else "is no metric"


@each_case("extreme numbers, compared", needs=chooses)
def test_comparing_extreme_numbers(name: str) -> None:
    """What is chosen in a narrow dtype is what float64 chooses of the same numbers."""
    case = CASES[name]
    for dtype in DTYPES:
        for where, arguments in extremes(case, dtype):
            found = case(arguments)
            assert torch.equal(found, case(cast(arguments, torch.float64))), f"{dtype}, {where}"
            assert found.dtype == (torch.bool if name == "quantile_mask" else arguments["target"].dtype)


def _scores(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return scores of ten rows and targets: among the columns sure ones, a constant, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    values = ends("probabilities", dtype)
    beyond = torch.tensor([math.inf, -math.inf, math.nan, 0.5, torch.finfo(dtype).max], dtype=dtype)
    columns = [
        values[torch.randint(len(values), (10,), generator=generator)],
        torch.zeros(10, dtype=dtype),
        torch.ones(10, dtype=dtype),
        beyond[torch.arange(10) % 5],
        values[torch.arange(10) % 2],
        torch.full((10,), math.nan, dtype=dtype),
    ]
    targets = torch.randint(-1, 2, (10, len(columns)), generator=generator)
    return torch.stack(columns, dim=1), targets


@each_case("extreme scores", needs=evaluates)
def test_extreme_scores(name: str) -> None:
    for dtype in DTYPES:
        scores, drawn = _scores(dtype)
        for targets in (drawn, torch.ones_like(drawn), torch.zeros_like(drawn), torch.full_like(drawn, -1)):
            labels = scores.shape[1]
            found = CASES[name]({"scores": scores, "targets": targets}, Sizes(rows=len(scores), labels=labels))
            rows = torch.where(scores.isnan(), -math.inf, scores.double()).tolist()
            columns = [loops.column(rows, targets.tolist(), j) for j in range(labels)]
            if name == "average_precision":
                expected = [loops.average_precision(entries) for entries in columns]
                assert found.tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
            elif name == "best_thresholds":
                assert found.isfinite().all()
                for entries, threshold in zip(columns, found.tolist(), strict=True):
                    candidates = [-math.inf, *(score for score, _ in entries)]
                    best = max(loops.f1_above(entries, candidate) for candidate in candidates)
                    assert loops.f1_above(entries, threshold) == best
            else:
                expected = loops.multilabel_scores(rows, targets.tolist(), labels)
                result = found if isinstance(found, dict) else {"mAP": found}
                for key, value in result.items():
                    assert float(value) == pytest.approx(expected[key], rel=1e-12), (dtype, key)


_RELATIONS = {
    "no rows": torch.zeros(0, 5),
    "nothing present": torch.zeros(6, 5),
    "everything present": torch.ones(6, 5),
    "nothing known": -torch.ones(6, 5),
    "one never, one always, one never known": torch.tensor(
        [[0, 1, -1, 1, 0], [0, 1, -1, 0, 1], [0, 1, -1, 1, 1], [0, 1, -1, 0, 0]]
    ),
}


def groups_labels(case: Case) -> str | None:
    """For ``needs``: what is of relations between labels."""
    return None if case.kind == "grouping" else "counts no labels"


@each_case(
    "counts of nothing and of everything",
    needs=groups_labels,
    but={"LabelGroups": "takes groups that somebody else has found, and counts nothing"},
)
def test_extreme_counts(name: str) -> None:
    for targets in _RELATIONS.values():
        rows = targets.int().tolist()
        of_loops = _conditional(rows)
        plus = torch.tensor(loops_of_groups.affinity(rows) if rows else [[0.0] * 5] * 5, dtype=torch.float64)
        for dtype in (torch.int64, torch.int8, *DTYPES):
            given = targets.to(dtype)
            if name.startswith("LabelCooccurrence"):
                found = tensors(CASES[name]({"targets": given}))[-1]
                assert torch.allclose(found.to_dense(), of_loops, rtol=1e-6, atol=0)
                continue
            if name == "SpectralLabelGrouping":
                features = torch.tensor([[0.0], [1.0]])
                co, dis, found = CASES[name]({"targets": given, "group_features": features})
                assert set(co.tolist()) == set(dis.tolist()) == {0, 1}
                assert torch.equal(found.squeeze(1), co.float())
                continue
            known = (given >= 0).double()
            present = (given == 1).double()
            together, by_known = (present.T @ present).to(dtype), (present.T @ known).to(dtype)
            if name == "affinity":
                found = CASES[name]({"counts": together, "label_counts": by_known})
                assert torch.allclose(found, plus, rtol=1e-12, atol=0)
            else:
                groups = torch.tensor([0, 0, 1, 1, 0])
                expected = loops_of_groups.normalized_cut(plus.tolist(), groups.tolist())
                assert CASES[name]({"affinity": plus, "groups": groups}) == pytest.approx(expected, abs=1e-12)


def _conditional(rows: list[list[int]]) -> Tensor:
    """Return P(label j | label i), over the rows in which j is known; 0 where there is none."""
    result = torch.zeros(5, 5)
    for i in range(5):
        for j in range(5):
            among = [row[j] for row in rows if row[i] == 1 and row[j] >= 0]
            result[i, j] = among.count(1) / len(among) if among else 0.0
    return result
