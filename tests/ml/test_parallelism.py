"""Parts of a model in real processes, joined by gloo, against the whole of it in one process on the same lesson."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tasks.contracts import FeatherweightError, Optimizer
from tasks.ml import optimizers
from tests.ml.processes import FOR_MODEL, Recorder, lesson, train

DENSE = FOR_MODEL | {"embeddings": "dense"}
WAYS = ("sharded", "tensor")


def spread(way: str, **changes: Any) -> dict[str, Any]:
    return {"for_model": DENSE | {"parallelism": way} | changes}


def assert_same_losses(found: Recorder, expected: Recorder, tolerance: float = 1e-4) -> None:
    for step, loss in expected.losses.items():
        assert found.losses[step] == pytest.approx(loss, rel=tolerance), step


def assert_same_weights(found: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    """To 1e-3 of their change, but for the biases of keys, whose gradient is rounding (``test_elastic``)."""
    for (name, a), b, c in zip(expected.named_parameters(), found.parameters(), start.parameters(), strict=True):
        if not name.endswith("key.bias"):
            assert (a - b).norm() <= 1e-3 * (a - c).norm() + 1e-6, name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_parts_learn_what_the_whole_learns(model: nn.Module, way: str, processes: int) -> None:
    """Losses agree to 1e-4. At 3 rows a micro-batch, processes differ in how many they have."""
    what = lesson(model)
    alone, one, _ = train(model, what, 1, for_model=DENSE)
    together, several, _ = train(model, what, processes, micro_batch=3, **spread(way))
    assert several.losses.keys() == one.losses.keys() == set(range(1, 13))
    assert several.evaluations == one.evaluations == [6, 12]
    assert_same_losses(several, one)
    assert_same_weights(together, alone, model)
