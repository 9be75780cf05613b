"""Graphs of the pruned model, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.ml.exporting import Exported, export, planned, pruned


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The graph of a scheme, in a folder that nobody changes."""

    @cache
    def of(scheme: str) -> Exported:
        folder, spec = tmp_path_factory.mktemp(scheme), planned(scheme)
        return Exported(folder, spec, export(pruned(), folder, spec))

    return of
