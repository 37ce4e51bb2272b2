"""What is exported for any number of rows is what it is in Python, also when it comes back from a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlcorr.grouping import SpectralLabelGrouping
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.oprl import OPRL
from mlcorr.systems.sadcl import SADCL
from tests.contract.case import Arguments, Case, Sizes, each_case, tensors
from tests.contract.cases import CASES

ROWS = (7, 9)  # no other size of a case, which an exporter would take for the same
COUNTS = "counts by values, which a graph cannot hold; it is done between epochs"
NUMBERS = "returns Python's numbers, which a graph does not"


class Exported(nn.Module):
    """A case's tensors to its output's, which is how a program is saved."""

    def __init__(self, case: Case, sizes: Sizes) -> None:
        super().__init__()
        arguments = case.draw(sizes)
        self.case, self.thing = case, case.module(arguments, sizes)
        self.constants = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}

    def forward(self, given: dict[str, Tensor]) -> list[Tensor]:
        return tensors(self.case.call(self.thing, {**given, **self.constants}))


def given(arguments: Arguments) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def for_any(*both: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Return which sizes the first and the second draw differ in."""
    return {
        name: {
            dim: torch.export.Dim.DYNAMIC
            for dim, (first, second) in enumerate(zip(value.shape, both[1][name].shape, strict=True))
            if first != second
        }
        for name, value in both[0].items()
    }


def saved_and_loaded(program: torch.export.ExportedProgram) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def of_tensors(case: Case) -> str | None:
    return None if given(case.draw(Sizes())) else "takes no tensor"


@each_case(
    "exports for every number of rows, to a file too",
    needs=of_tensors,
    but={
        "LabelCooccurrence": "counts in place, in no inference",
        "LabelCooccurrence, sparse": COUNTS,
        "SpectralLabelGrouping": COUNTS + "; its forward pass is exported below",
        "LabelGroups": "is a record that checks the groups it is given, by their values",
        "normalized_cut": "checks the groups it is given, by their values",
        "multilabel_scores": NUMBERS,
        "MultilabelScores": NUMBERS,
        "MultilabelScore": NUMBERS,
    },
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in torch.export.save
def test_exports(name: str) -> None:
    case = CASES[name]
    first, second = (given(case.draw(Sizes(rows=rows, seed=rows))) for rows in ROWS)
    model = Exported(case, Sizes(rows=ROWS[0], seed=ROWS[0])).eval()
    loaded = saved_and_loaded(torch.export.export(model, (first,), dynamic_shapes=(for_any(first, second),)))
    for arguments in (first, second):
        torch.testing.assert_close(loaded(arguments), model(arguments), equal_nan=True)  # a label without positives


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in torch.export.save
def test_the_features_of_fitted_groups_export() -> None:
    grouping = SpectralLabelGrouping(5, 2, restarts=1)
    grouping.update(torch.randint(0, 2, (20, 5), generator=torch.Generator().manual_seed(0)))
    grouping.fit()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    loaded = saved_and_loaded(torch.export.export(grouping, (torch.randn(7, 2, 3),), dynamic_shapes=shapes))
    features = torch.randn(9, 2, 3)
    assert torch.equal(loaded(features), grouping(features))


class Logits(nn.Module):
    """A system from features, some places of which are padding, to its logits."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        logits: Tensor = self.system(features, valid=valid).logits
        return logits


@pytest.mark.parametrize(
    "make",
    [
        lambda: OPRL(nn.Identity(), 8, 5, encoder_heads=2, encoder_width=8),
        lambda: SADCL(nn.Identity(), 8, 5, proj_dim=6, proj_width=8, width=8, heads=2),
        lambda: LatentContext(nn.Identity(), 8, 5, dim=8, units=3, depth=1, heads=2, width=8),
    ],
    ids=["OPRL", "SADCL", "LatentContext"],
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in torch.export.save
def test_a_system_exports_with_padding_for_any_number_of_images(make: Callable[[], nn.Module]) -> None:
    model = Logits(make()).eval()
    first, second = ((torch.randn(rows, 6, 8), torch.arange(6).expand(rows, 6) < 4) for rows in ROWS)
    shapes = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    loaded = saved_and_loaded(torch.export.export(model, first, dynamic_shapes=shapes))
    torch.testing.assert_close(loaded(*second), model(*second))
