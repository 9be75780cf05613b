"""Tables of times that are kept: found again by the same code, and by no other."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.engine import latency
from tasks.ml.latency import latency_table
from tasks.ml.latency.latency_table import LatencyTable, LayerTimes
from tests.tasks import tiny_models


def test_a_table_is_measured_once_for_the_same_code_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    model, times = tiny_models.model(), LayerTimes(0.1, {0: 0.0}, {0: 0.0})
    measured: list[dict[str, Any]] = []

    def measure(*_: Any, **request: Any) -> LatencyTable:
        measured.append(request)
        return LatencyTable(0.2, times, times)

    def asked() -> int:
        latency.table(model, "text-classification", batch=1, length=9, integer=True)
        return len(measured)

    monkeypatch.setattr(latency_table, "measure", measure)
    assert (asked(), asked()) == (1, 1)
    monkeypatch.setattr(latency, "code_digest", lambda module: f"other code of {module}")
    assert (asked(), asked()) == (2, 2)
    monkeypatch.setattr(latency, "numerics_versions", lambda: {"onnxruntime": "0"})
    assert asked() == 3
