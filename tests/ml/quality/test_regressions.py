"""The rows that the shipped model lost: which, in which order, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tasks.ml.data import datasets, held_out
from tasks.ml.data.splitting import Division, Row, key
from tasks.ml.data.targets import classes
from tasks.ml.quality import regressions

TEXTS = ["great " * 60, "dull plot", "moving film", "flat acting", "not funny"]


@pytest.fixture
def data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[Path]:
    rows = [Row(text, "good", key(text)) for text in TEXTS]
    splits = {name: rows if name == "test" else [] for name in ("train", "calibration", "selection", "test")}
    division = Division(classes({}, ["bad", "good"], missing=-100), splits=splits, dropped={})
    datasets.write(tmp_path, division, tokenizer, max_length=8)
    with held_out.asking("validate"):
        yield tmp_path


def logits(*odds: float) -> np.ndarray:
    """Logits (N, 2) by the log odds of "good"."""
    return np.array([[0.0, one] for one in odds])


def test_the_surest_regression_comes_first(data: Path) -> None:
    found = regressions.worst(
        data,
        "text-classification",
        {"train": logits(3.0, 4.0, 0.1, -2.0, 1.0), "validate": logits(-0.5, -2.0, -9.0, 2.0, 1.0)},
        characters=10,
    )
    assert (found["n"], found["apart"], found["lost"], found["gained"]) == (5, 4, 3, 1)
    assert [row["row"] for row in found["rows"]] == [1, 0, 2], "as sure as the less sure of both"
    first, second, _ = found["rows"]
    assert (first["text"], first["target"]) == ("dull plot", "good")
    assert first["teacher"] == {"label": "good", "probability": pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)}
    assert first["shipped"] == {"label": "bad", "probability": pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)}
    assert second["text"] == "great grea…"


def test_a_model_that_says_the_same_has_lost_nothing(data: Path) -> None:
    same = logits(3.0, 4.0, 0.1, -2.0, 1.0)
    found = regressions.worst(data, "text-classification", {"train": same, "validate": same})
    assert found == {
        "n": 5, "compared": 5, "apart": 0, "lost": 0, "gained": 0, "worst": "on which both are surest", "rows": [],
    }  # fmt: skip


def test_no_more_than_asked_for(data: Path) -> None:
    models = {"train": logits(*[2.0] * 5), "validate": logits(*[-2.0] * 5)}
    assert len(regressions.worst(data, "text-classification", models, count=2)["rows"]) == 2
