"""Rows in one piece and in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlcorr.ops.norder import closed_form_triton


@pytest.fixture(params=[2048, 4], ids=["whole rows", "rows in chunks"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(closed_form_triton, "_TILE", request.param)
    return request.param
