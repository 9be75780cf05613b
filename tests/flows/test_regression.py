"""Scores instead of classes through the whole line: learned, compressed, proven, reported, registered and served."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import mlflow
import numpy as np
import pytest

from flows.compress import compress
from flows.recipe import Recipe
from tasks.contracts.values import CheckStatus, Outcome
from tasks.engine import store, tracking
from tasks.serving.predictor import Predictor
from tests.flows import tiny_recipes
from tests.tasks import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHOWN = {"great": 45.0, "dull": 15.0}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Texts of which one word tells a score from 10 to 50, give or take 3."""
    recipe = tiny_recipes.write(tmp_path)
    source = Path(recipe.data.source.removeprefix("file:"))
    noise = random.Random(0)
    lines = [
        f"{one} {other} {telling},{mean + noise.gauss(0, 3):.2f}"
        for one, other in product(tiny_models.WORDS, repeat=2)
        for telling, mean in SHOWN.items()
    ]
    source.write_text("\n".join(["text,stars", *lines]) + "\n", encoding="utf-8")
    document = recipe.model_dump(mode="json")
    document["data"]["label"] = "stars"
    document["training"]["epochs"] = 6
    document["distillation"]["steps"] = 120
    return Recipe.model_validate({**document, "problem": "text-regression"})


def test_the_whole_line(recipe: Recipe) -> None:
    outcome: Outcome = compress(recipe)
    assert [check.name for check in outcome.verdict.checks] == ["quality_drop", "floor", "shrink", "speedup"]
    assert {check.status for check in outcome.verdict.checks} == {CheckStatus.PASSED}
    cards = {stage.stage: stage.scorecard for stage in outcome.stages}
    for name in ("train", "distill", "prune", "quantize", "validate"):
        assert cards[name].metric == "r2"
        assert 0.7 < (cards[name].quality or 0) < 1
    assert tracking.client().get_run(outcome.run_id).data.metrics["teacher_r2"] > 0.7

    assert outcome.release is not None
    bundle = store.path(outcome.release.digest)
    command = [sys.executable, "-I", str(bundle / "predictor.py"), "--self-test"]
    assert json.loads(subprocess.check_output(command))["golden_rows"] == 18
    texts = ["the plot great", "the plot dull"]
    answers = Predictor(bundle).predict(texts)
    assert [answer.keys() for answer in answers] == [{"score"}] * 2
    assert [answer["score"] for answer in answers] == pytest.approx(list(SHOWN.values()), abs=6)
    assert "Gives each text a number: `stars`." in (bundle / "README.md").read_text(encoding="utf-8")
    served = mlflow.pyfunc.load_model(f"models:/{outcome.release.name}/{outcome.release.version}")
    assert served.predict([{"text": text} for text in texts])["score"].tolist() == [one["score"] for one in answers]
    assert [column["name"] for column in json.loads(served.metadata.signature.to_dict()["outputs"])] == ["score"]

    validated = store.path({stage.stage: stage for stage in outcome.stages}["validate"].evidence)
    lost = json.loads((validated / "regressions.json").read_text(encoding="utf-8"))
    assert lost["rows"]
    scores = [float(row[side]["label"]) for row in lost["rows"] for side in ("teacher", "shipped")]
    assert 5 < np.min(scores) < np.max(scores) < 55
    page = tracking.read_text(outcome.run_id, "report.html") or ""
    assert "Worst regressions" in page
    assert "points above always answering the mean of the training rows" in page
