"""finals: the test split judges the few variations that are left, once, and at levels that allow for their number."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.runtime import flow_run

from flows.trials import branch
from flows.trials.attempt import Course
from tasks.contracts.values import Digest, Outcome, StageResult
from tasks.engine import store
from tasks.judge import BudgetConfig, judge
from tasks.ml.statistics import multiplicity
from tasks.report import report
from tasks.reporting import evidence
from tasks.reporting.trials import Finalist, Trial
from tasks.validate import validate


def judged(trials: Sequence[Trial], course: Course, *, before: tuple[StageResult, ...]) -> tuple[Finalist, ...]:
    """Validates the trials on test and judges each at its level of Holm's procedure.

    ``judge`` lets a quality check pass if the loss measured is allowed and its interval ends below the limit's clearly
    worse neighbour. So the hypothesis to reject is a loss at that neighbour, on one side of the interval.

    Args:
        before: what came before the first stage of every trial: prepare and train.
    """
    recipe = course.recipe
    served: list[StageResult] = []
    for trial in trials:
        grown = branch.Branch(stages=trial.stages)
        served.append(
            validate(
                grown.bundle("export"), course.splits, recipe.validation,
                lineage=grown.lineage(course.teacher), run_id=trial.run_id,
            )
        )  # fmt: skip
    margin = recipe.budget.max_quality_drop + abs(recipe.budget.max_quality_drop)
    p_values = [_p_value(result.evidence, margin) for result in served]
    levels = multiplicity.holm_levels(p_values, (1 - recipe.budget.confidence) / 2)
    adjusted = multiplicity.holm(p_values)
    return tuple(
        Finalist(
            trial=trial, p_value=p_value, adjusted_p_value=corrected, confidence=1 - 2 * level,
            outcome=_outcome(trial, result, course, before, confidence=1 - 2 * level),
        )
        for trial, result, p_value, corrected, level in zip(trials, served, p_values, adjusted, levels, strict=True)
    )  # fmt: skip


def _p_value(validated: Digest, margin: float) -> float:
    scores = evidence.scores(store.path(validated) / "rows.arrow")
    return multiplicity.non_inferiority_p(scores["train"], scores["validate"], margin)


def _outcome(
    trial: Trial, served: StageResult, course: Course, before: tuple[StageResult, ...], *, confidence: float
) -> Outcome:
    """Judges one finalist and writes its report, as that of any run."""
    budget = BudgetConfig.model_validate({**course.recipe.budget.model_dump(), "confidence": confidence})
    verdict = judge(served.evidence, budget, run_id=trial.run_id)
    made = tuple(result for result in trial.stages if result.stage != "appraise")
    outcome = Outcome(
        recipe=course.recipe.name,
        run_id=trial.run_id,
        flow_run_id=flow_run.id or "",
        verdict=verdict,
        stages=(*before, *made, served),
    )
    varied = branch.variation(course.recipe, trial.changes)
    report(outcome, varied.model_dump(mode="json"), run_id=trial.run_id)
    return outcome
