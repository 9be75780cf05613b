"""One variation of a recipe from the teacher to a candidate, what branches share, and one that is given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.recipe import Recipe
from flows.trials import attempt, branch, prospects
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import StageResult
from tasks.engine import tracking
from tasks.reporting.trials import Limits, Minimize
from tests.flows import tiny_recipes
from tests.tasks import tiny_models


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipes.write(tmp_path)


@pytest.fixture
def run_id() -> Iterator[str]:
    with tracking.pipeline_run("tiny", {}, run_name="branches") as run_id:
        yield run_id


def test_branches_share_what_they_have_in_common(recipe: Recipe, run_id: str) -> None:
    splits, teacher = tiny_models.publish_data(), tiny_models.publish_model(tiny_models.model())
    first = branch.grow(recipe, splits, teacher, run_id=run_id)
    assert [result.stage for result in first.stages] == ["distill", "prune", "quantize", "export", "appraise"]
    assert first.given_up == ""
    assert first.last.scorecard.split == "selection"
    assert first.last.bundle == first.bundle("export")
    assert first.lineage(teacher).keys() == {"train", "distill", "prune", "quantize"}

    looked: list[str] = []

    def look(result: StageResult) -> str:
        looked.append(result.stage)
        return "enough is known" if result.stage == "quantize" else ""

    wider = branch.variation(recipe, {"quantization.embeddings": "none"})
    second = branch.grow(wider, splits, teacher, run_id=run_id, look=look)
    assert looked == ["distill", "prune", "quantize"]
    assert second.given_up == "enough is known"
    assert [result.cached for result in second.stages] == [True, True, False]


def test_a_variation_changes_these_fields_and_no_others(recipe: Recipe) -> None:
    varied = branch.variation(recipe, {"pruning.width.keep_ffn": 0.25, "distillation.layers": 2})
    assert (varied.pruning.width.keep_ffn, varied.distillation.layers) == (0.25, 2)
    assert branch.variation(varied, {"pruning.width.keep_ffn": 0.5, "distillation.layers": 1}) == recipe
    with pytest.raises(FeatherweightError, match="keep_ffn"):
        branch.variation(recipe, {"pruning.width.keep_ffn": 2})


def test_a_candidate_is_tried_where_it_would_be_validated(recipe: Recipe) -> None:
    config = branch.appraisal(recipe)
    assert (config.device, config.threads, config.max_flips) == ("cpu", 1, 0.1)


def test_a_trial_foretells_in_its_turn(recipe: Recipe, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What builds a model in one thread would change what another draws."""
    turns: list[bool] = []

    def forecast(*_: object) -> prospects.Forecast:
        turns.append(branch.turn.locked())
        return prospects.Forecast(size_mb=9.0, latency_ms=None)

    monkeypatch.setattr(prospects, "forecast", forecast)
    limits = Limits(max_drop=0.1, max_mb=1.0, max_ms=1.0, teacher_quality=0.9, rows=100)
    course = attempt.Course(
        recipe=recipe, run_id=run_id, splits=tiny_models.publish_data(), limits=limits, minimize=Minimize.SIZE,
        teacher=tiny_models.publish_model(tiny_models.model()), workers=1,
    )  # fmt: skip
    own = tracking.start_below(run_id, "trial 1").run_id
    trial = attempt.attempt(1, {}, course, [], run_id=own)
    assert "9.00 MB" in trial.reason
    assert turns == [True]
    assert not branch.turn.locked()
