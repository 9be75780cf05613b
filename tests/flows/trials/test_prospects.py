"""What is given up before and while it is made, and what is not."""

from __future__ import annotations

import pytest

from flows.recipe import Recipe
from flows.trials import branch, prospects
from flows.trials.prospects import Forecast, Prospects, Rival
from tasks.contracts.values import Scorecard, StageResult
from tasks.reporting.trials import Limits, Minimize
from tests.tasks import tiny_models

LIMITS = Limits(max_drop=0.01, max_mb=10, max_ms=2, teacher_quality=0.85, rows=900)
UNKNOWN = Forecast(None, None)


def measured(stage: str, accuracy: float, error: float | None = None) -> StageResult:
    return StageResult(stage=stage, run_id="none", scorecard=Scorecard(quality=accuracy, drop_error=error))


def test_what_its_shapes_rule_out_is_not_begun() -> None:
    assert Prospects(LIMITS, Forecast(9.9, 1.9), [], Minimize.SIZE).before() == ""
    assert Prospects(LIMITS, UNKNOWN, [], Minimize.SIZE).before() == ""
    assert "would take 10.50 MB" in Prospects(LIMITS, Forecast(10.5, None), [], Minimize.SIZE).before()
    assert "would take 2.50 ms" in Prospects(LIMITS, Forecast(1, 2.5), [], Minimize.SIZE).before()


def test_a_loss_counts_as_far_as_chance_does_not_explain_it() -> None:
    look = Prospects(LIMITS, UNKNOWN, [], Minimize.LATENCY)
    assert look.after(measured("distill", 0.82, error=0.0105)) == "", "3 points, of which chance explains 2.1"
    assert "after prune it loses 4.0 points" in look.after(measured("prune", 0.81, error=0.0074))
    assert look.after(StageResult(stage="export", run_id="none")) == ""
    # a stage that does not compare with the teacher: what was known before it stays
    assert "chance explains 1.5" in look.after(measured("quantize", 0.81))


def test_few_rows_rule_out_little() -> None:
    few = LIMITS.model_copy(update={"rows": 30})
    assert Prospects(few, UNKNOWN, [], Minimize.SIZE).after(measured("distill", 0.7, error=0.08)) == ""


def test_what_is_surely_dominated_is_given_up() -> None:
    lenient = LIMITS.model_copy(update={"max_drop": 0.5})
    result = measured("distill", 0.75, error=0.0105)

    def after(rival: Rival, minimize: Minimize) -> str:
        return Prospects(lenient, Forecast(8.0, None), [rival], minimize).after(result)

    assert "trial 7 loses less and costs less" in after(Rival(7, 0.01, 7.5), Minimize.SIZE)
    assert after(Rival(7, 0.01, 8.5), Minimize.SIZE) == "", "it is heavier"
    assert after(Rival(7, 0.09, 7.5), Minimize.SIZE) == "", "chance may explain the difference"
    assert after(Rival(7, 0.01, 7.5), Minimize.LATENCY) == "", "its latency is not known"


@pytest.mark.parametrize("scheme", ["none", "int8-dynamic"])
def test_the_size_is_foretold_from_the_teacher(scheme: str) -> None:
    teacher = tiny_models.publish_model(tiny_models.model())
    whole = {
        "distillation.layers": 2, "pruning.width.keep_ffn": 1, "pruning.width.keep_heads": 1,
        "quantization.scheme": scheme, "quantization.embeddings": "none",
    }  # fmt: skip
    recipe = branch.variation(Recipe(), whole)
    everything = sum(parameter.numel() for parameter in tiny_models.model().parameters()) * 4 / 1e6
    found = prospects.forecast(recipe, teacher).size_mb
    assert found is not None
    assert found == pytest.approx(everything) if scheme == "none" else found < everything
    half = prospects.forecast(branch.variation(recipe, {"distillation.layers": 1}), teacher).size_mb
    assert half is not None
    assert half < found
