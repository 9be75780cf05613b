"""A whole study at its smallest, through the real engine, of a tiny model; and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import study
from flows.recipe import Recipe
from flows.trials import choices, comparing
from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, tracking
from tasks.engine.tracking import MLFLOW_PARENT_RUN_ID
from tasks.reporting import study as sections
from tasks.reporting.study import Study
from tests.flows import tiny_recipes

CONFIG = study.StudyConfig(preset=study.PresetName.SMOKE)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A tiny base model, and rows whose label one word tells."""
    base, source = tiny_recipes.sources(tmp_path)
    return Recipe.model_validate({
        "name": "tiny", "base_model": str(base), "data": {"source": f"file:{source}", "max_length": 16},
        "training": {"learning_rate": 1e-3, "batch_size": 16}, "seed": 3,
    })  # fmt: skip


def children(outcome: Study) -> dict[str, dict[str, str]]:
    """Tags of the runs below a study's, by name."""
    found = tracking.find_runs(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{outcome.run_id}'", names=["tiny"])
    return {run.info.run_name: run.data.tags for run in found}


@pytest.mark.slow
def test_a_study_compares_and_repeats_nothing(recipe: Recipe, tmp_path: Path) -> None:
    first = study.study(recipe, CONFIG)
    assert [row.name for row in first.together] == ["+ AdamW", "+ sparse embeddings"]
    assert [row.name for row in first.optimizers] == ["adafactor"]
    trials = [trial for summary in first.summaries() for trial in summary.trials]
    assert [trial.seed for trial in trials] == [3] * 4
    for trial in trials:
        seconds = [second for second, _ in trial.curve]
        assert len(seconds) >= 2
        assert seconds == sorted(seconds)
        assert 0 < seconds[0] < seconds[-1] <= trial.training_s
        assert trial.samples_per_s == pytest.approx(first.rows / trial.training_s)
        assert 50 < trial.peak_memory_mb < 5000
        assert len(trial.scores) == first.selection_rows
        assert trial.about["cached"] is False
    assert children(first).keys() == {
        "prepare", "baseline, seed 3", "+ AdamW, seed 3", "+ sparse embeddings, seed 3", "adafactor, seed 3"
    }  # fmt: skip

    parent = tracking.client().get_run(first.run_id)
    assert parent.data.tags["featherweight.kind"] == "study"
    metrics = parent.data.metrics
    assert metrics["together/AdamW/samples_per_s"] == first.together[0].summary.samples_per_s.measured
    document = json.loads(tracking.read_text(first.run_id, "study.json") or "")
    assert document["baseline"]["summary"]["quality"]["measured"] == first.baseline.summary.quality.measured
    page = comparing.copy(sections, first, tmp_path / "study.html")
    assert page.read_text(encoding="utf-8") == tracking.read_text(first.run_id, "study.html")
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8")) == document

    again = study.study(recipe, CONFIG)
    assert again.run_id != first.run_id
    repeated = [trial for summary in again.summaries() for trial in summary.trials]
    assert all(trial.about["cached"] for trial in repeated)
    assert [trial.curve for trial in repeated] == [trial.curve for trial in trials]
    assert again.together[0].summary.faster == first.together[0].summary.faster
    assert {tags.get("featherweight.cached") for tags in children(again).values()} == {"true"}
    assert not list((disk.home() / "store" / "checkpoints").glob("*"))


def test_a_study_is_not_among_the_runs_with_a_verdict() -> None:
    from flows.command import history

    with tracking.pipeline_run("tiny", {}, run_name="study", tags={"featherweight.kind": study.KIND}):
        pass
    assert history.runs(limit=5) == []


def test_the_smaller_of_two_sizes_counts() -> None:
    data = Recipe().data
    assert study.sized(data, choices.PRESETS["small"]).max_rows == choices.PRESETS["small"].data["max_rows"]
    assert study.sized(data.model_copy(update={"max_rows": 50}), choices.PRESETS["small"]).max_rows == 50
    assert study.sized(data, choices.PRESETS["full"]) == data


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_accuracy": 1.5}, "study: target_accuracy: must be less than 1"),
        ({"seeds": -1}, "study: seeds: must be greater than or equal to 0"),
        ({"preset": "huge"}, "study: preset: must be 'smoke', 'small' or 'full'"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        comparing.checked(study.KIND, study.CONFIG, fields)


def test_without_a_baseline_there_is_nothing_to_compare_with(recipe: Recipe) -> None:
    preset = choices.PRESETS["smoke"]
    plan = choices.plan(choices.Way(recipe.training, recipe.compute), preset, choices.machine())
    with pytest.raises(FeatherweightError, match="baseline diverged"):
        study._compare(recipe, CONFIG, plan, {}, {}, seeds=(0,), run_id="none")
