"""Tables of real measurements: their form, not their numbers, for tests time nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from tasks.ml.latency import latency_table
from tasks.ml.latency.latency_table import LatencyTable, LayerTimes
from tasks.ml.models import factorization
from tasks.ml.pruning import cuts
from tasks.ml.runtime import timing

ARGUMENTS = {"batch": 1, "length": 9, "integer": True, "heads": 4, "ffn": 64}
TIMES = LayerTimes(0.1, {0: 0.0, 2: 0.2, 4: 0.6}, {0: 0.0, 32: 0.5})


def factorized(model: nn.Module) -> nn.Module:
    return factorization.factorize(model, 8, rows=[])


def test_what_is_timed_has_the_token_table_that_is_served(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[list[int]] = []

    def look(files: Sequence[Path], *_: object, **__: object) -> list[float]:
        timed.extend(list(one.dims) for one in onnx.load(files[0]).graph.initializer)
        return [1.0] * len(files)

    bare = [latency_table._Variant(last, heads=0, ffn=0) for last in (False, True)]
    monkeypatch.setattr(latency_table, "_variants", lambda **_: bare)
    monkeypatch.setattr(timing, "graphs", look)
    latency_table.measure(factorized(model), "text-classification", **ARGUMENTS)  # type: ignore[arg-type]
    assert [latency_table.TOKENS, 8] in timed
    assert [8, 32] in timed
    assert [latency_table.TOKENS, 32] not in timed


@pytest.mark.alone
@pytest.mark.parametrize("integer", [True, False])
def test_a_measured_table_has_every_part(model: nn.Module, integer: bool) -> None:
    # Of one row of so small a model a part takes less than a timing wavers.
    many = ARGUMENTS | {"integer": integer, "batch": 64}
    table = latency_table.measure(model, "text-classification", **many)  # type: ignore[arg-type]
    assert table.rest > 0
    assert list(table.inner.heads) == [0, 1, 2, 3, 4]
    assert list(table.inner.ffn) == [0, 8, 16, 24, 32, 40, 48, 56, 64]
    assert list(table.last.heads) == [0, 1, 3, 4]
    assert list(table.last.ffn) == [0, 21, 43, 64]
    for times in (table.inner, table.last):
        assert times.heads[0] == times.ffn[0] == 0.0
        assert times.heads[4] > 0
        assert times.ffn[64] > 0


def test_a_table_survives_json() -> None:
    table = LatencyTable(0.2, TIMES, LayerTimes(0.0, {0: 0.0, 4: 0.1}, {0: 0.0, 32: 0.1}))
    assert LatencyTable.from_json(table.to_json()) == table


def test_prediction_adds_up_and_interpolates() -> None:
    table = LatencyTable(0.2, TIMES, LayerTimes(0.0, {0: 0.0, 4: 0.1}, {0: 0.0, 32: 0.1}))
    assert table.predict([]) == 0.2
    assert table.predict([{"heads": 3, "ffn": 8}, {"heads": 0, "ffn": 32}]) == pytest.approx(
        0.2 + (0.1 + 0.4 + 0.125) + (0.0 + 0.0 + 0.1)
    )


def test_identity_changes_with_what_times_depend_on_only(model: nn.Module) -> None:
    before = latency_table.identity(model, "text-classification", **ARGUMENTS)
    assert latency_table.identity(model, "text-classification", **ARGUMENTS | {"length": 10}) != before
    assert latency_table.identity(factorized(model), "text-classification", **ARGUMENTS) != before
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert latency_table.identity(model, "text-classification", **ARGUMENTS) == before


def test_evenly() -> None:
    assert cuts.evenly(1536, 3) == [512, 1024, 1536]
    assert cuts.evenly(2, 8) == [1, 2]
