"""compress: the whole line as one Prefect flow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from prefect.runtime import flow_run
from prefect.states import Failed, State

from flows import preflight
from flows.command import recipe_layers
from flows.flow import flow, parent_run
from flows.recipe import Recipe
from tasks.contracts.values import Bundle, Outcome, Splits, StageResult
from tasks.deploy import deploy
from tasks.distill import distill
from tasks.engine import tracking
from tasks.export import export
from tasks.judge import floor, judge
from tasks.prepare import prepare
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.register import register
from tasks.report import report
from tasks.train import train
from tasks.validate import validate


def run_name(name: str) -> str:
    """Recipe and time: in both UIs the runs of many nights lie side by side."""
    return f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M UTC}"


def _run_name() -> str:
    recipe = flow_run.parameters["recipe"]
    return run_name(recipe.get("name", Recipe().name) if isinstance(recipe, dict) else recipe.name)


# Prefect would explain wrong fields in its own words: the recipe is checked here, and explained as on the command line.
@flow(name="compress", flow_run_name=_run_name, validate_parameters=False)
def compress(recipe: Recipe = Recipe()) -> Outcome | State[Outcome]:
    """Train, shrink, prove and ship one language model."""
    return line(recipe_layers.checked(recipe))


def line(recipe: Recipe) -> Outcome | State[Outcome]:
    """Everything from the data to the served model, in the flow run that calls it."""
    preflight.require(preflight.objections(recipe, preflight.inspected(recipe.base_model)))
    with parent_run("pipeline", recipe) as run_id:
        prepared = prepare(recipe.data, problem=recipe.problem, base_model=recipe.base_model, run_id=run_id)
        splits = prepared.splits
        tracking.Run(run_id).dataset(recipe.data.source, splits.digest, rows=prepared.scorecard.num_rows)
        teacher = train(
            recipe.base_model, splits, recipe.training, compute=recipe.compute, seed=recipe.seed, run_id=run_id
        )
        stages: tuple[StageResult, ...] = (prepared, teacher)
        verdict = floor(teacher.evidence, recipe.budget, run_id=run_id)
        if verdict is None:
            *made, exported = shrunk(recipe, splits, teacher.bundle, run_id=run_id)
            lineage = {result.stage: result.bundle for result in (teacher, *made)}
            served = validate(exported.bundle, splits, recipe.validation, lineage=lineage, run_id=run_id)
            stages += (*made, exported, served)
            verdict = judge(served.evidence, recipe.budget, run_id=run_id)
        outcome = Outcome(
            recipe=recipe.name, run_id=run_id, flow_run_id=flow_run.id or "", verdict=verdict, stages=stages
        )
        if verdict.passed:
            release = register(recipe.name, outcome, run_id=run_id)
            outcome = outcome.model_copy(update={"release": deploy(release, recipe.deployment, run_id=run_id)})
        report(outcome, recipe.model_dump(mode="json"), run_id=run_id)
    if not verdict.passed:
        return Failed(name="Rejected", message=verdict.reason, data=outcome)
    return outcome


def shrunk(recipe: Recipe, splits: Splits, teacher: Bundle, *, run_id: str) -> Iterator[StageResult]:
    """Makes a smaller model of the teacher: what each of distill, prune, quantize and export came to, when it has."""
    options = {"seed": recipe.seed, "run_id": run_id}
    lesson = {"teaching": recipe.teaching, "compute": recipe.compute}
    student = distill(teacher, splits, recipe.distillation, **lesson, **options)
    yield student
    pruned = prune(student.bundle, splits, recipe.pruning, teacher=teacher, **recipe.for_pruning(), **lesson, **options)
    yield pruned
    aware = lesson if recipe.quantization.training else {}
    quantized = quantize(pruned.bundle, splits, recipe.quantization, teacher=teacher, **aware, **options)
    yield quantized
    yield export(quantized.bundle, recipe.export, run_id=run_id)
