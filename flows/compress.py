"""compress: the whole line as one Prefect flow."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect.runtime import flow_run
from prefect.states import Failed, State

from flows import preflight
from flows.command import recipe_files
from flows.flow import flow
from flows.recipe import Recipe
from flows.servers import links, orphans
from tasks.contracts.values import Bundle, Outcome, Splits, StageResult
from tasks.deploy import deploy
from tasks.distill import distill
from tasks.engine import disk, store, tracking
from tasks.export import export
from tasks.judge import floor, judge
from tasks.prepare import prepare
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.register import register
from tasks.report import report
from tasks.train import train
from tasks.validate import validate


def _run_name() -> str:
    """Recipe and time: in both UIs the runs of many nights lie side by side."""
    recipe = flow_run.parameters["recipe"]
    name = recipe.get("name", Recipe().name) if isinstance(recipe, dict) else recipe.name
    return f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M UTC}"


# Prefect would explain wrong fields in its own words: the recipe is checked here, and explained as on the command line.
@flow(name="compress", flow_run_name=_run_name, validate_parameters=False)
def compress(recipe: Recipe = Recipe()) -> Outcome | State[Outcome]:
    """Train, shrink, prove and ship one language model."""
    recipe = recipe_files.checked(recipe)
    preflight.require(preflight.objections(recipe, preflight.inspected(recipe)))
    disk.require_free_space()
    store.sweep()
    orphans.close()
    tags = {"prefect.flow_run_id": flow_run.id or "", tracking.FLOW_RUN_URL_TAG: links.flow_run_url()}
    with tracking.pipeline_run(
        recipe.name, recipe.model_dump(mode="json"), run_name=flow_run.name or "compress", tags=tags
    ) as run_id:
        links.show_run(run_id)
        prepared = prepare(recipe.data, problem=recipe.problem, base_model=recipe.base_model, run_id=run_id)
        splits = prepared.splits
        tracking.Run(run_id).dataset(recipe.data.source, splits.digest, rows=prepared.scorecard.num_rows)
        teacher = train(recipe.base_model, splits, recipe.training, seed=recipe.seed, run_id=run_id)
        stages: tuple[StageResult, ...] = (prepared, teacher)
        verdict = floor(teacher.evidence, recipe.budget, run_id=run_id)
        if verdict is None:
            stages += _compressed(recipe, splits, teacher.bundle, run_id=run_id)
            verdict = judge(stages[-1].evidence, recipe.budget, run_id=run_id)
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


def _compressed(recipe: Recipe, splits: Splits, teacher: Bundle, *, run_id: str) -> tuple[StageResult, ...]:
    """Makes a smaller model of the teacher, and measures both on the real runtime."""
    student = distill(teacher, splits, recipe.distillation, seed=recipe.seed, run_id=run_id)
    pruned = prune(
        student.bundle,
        splits,
        recipe.pruning,
        teacher=teacher,
        seed=recipe.seed,
        rounding=recipe.rounding_to_heal(),
        run_id=run_id,
    )
    quantized = quantize(pruned.bundle, splits, recipe.quantization, teacher=teacher, seed=recipe.seed, run_id=run_id)
    exported = export(quantized.bundle, recipe.export, run_id=run_id)
    lineage = {"train": teacher, "distill": student.bundle, "prune": pruned.bundle, "quantize": quantized.bundle}
    served = validate(exported.bundle, splits, recipe.validation, lineage=lineage, run_id=run_id)
    return student, pruned, quantized, exported, served
