"""study: what each way to train is worth, alone and together, and the optimizers side by side."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from enum import StrEnum

from prefect import tags
from pydantic import Field

from flows import preflight
from flows.command import console, recipe_layers
from flows.flow import parent_run
from flows.recipe import Recipe
from flows.trials import choices, comparing
from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.values import StageResult
from tasks.engine import store, tracking
from tasks.ml.statistics.comparison import Trial, summarize
from tasks.prepare import DataConfig, prepare
from tasks.reporting import study as sections
from tasks.reporting.study import Row, Study
from tasks.train import trial

logger = logging.getLogger("featherweight")

KIND = "study"


class PresetName(StrEnum):
    SMOKE = "smoke"
    SMALL = "small"
    FULL = "full"


class StudyConfig(Contract):
    """How large a study is."""

    preset: PresetName = Field(
        PresetName.SMALL,
        title="Preset",
        description="; ".join(f"{name}: {one.note}" for name, one in choices.PRESETS.items()) + ".",
    )
    target_accuracy: float = Field(0, ge=0, lt=1, title="Target accuracy")
    """Accuracy on the selection split to which time is measured. 0: the preset's."""
    seeds: int = Field(0, ge=0, le=100, title="Seeds")
    """Trials of each choice. 0: the preset's."""


CONFIG = StudyConfig


@comparing.flow_of(KIND)
def study(recipe: Recipe = Recipe(), config: StudyConfig = StudyConfig()) -> Study:
    """Train the same model in many ways, one at a time, and compare them."""
    recipe, config = recipe_layers.checked(recipe), comparing.checked(KIND, CONFIG, config)
    preflight.require(preflight.of_training(recipe, preflight.inspected(recipe.base_model)))
    preset = choices.PRESETS[config.preset]
    seeds = tuple(recipe.seed + number for number in range(config.seeds or preset.seeds))
    plan = choices.plan(choices.Way(recipe.training, recipe.compute), preset, choices.machine())
    data = sized(recipe.data, preset)
    about = {"preset": config.preset.value, "seeds": list(seeds), "target_accuracy": _target(config)}
    with parent_run(KIND, recipe.model_copy(update={"data": data}), about) as run_id:
        prepared = prepare(data, problem=recipe.problem, base_model=recipe.base_model, run_id=run_id)
        tracking.Run(run_id).dataset(data.source, prepared.splits.digest, rows=prepared.scorecard.num_rows)
        found: dict[choices.Way, list[Trial]] = {}
        failed: dict[str, str] = {}
        names, trials = plan.ways(), plan.trials(seeds)
        for number, (way, seed) in enumerate(trials, 1):
            name = f"{names[way]}, seed {seed}"
            logger.info("study: trial %d of %d: %s", number, len(trials), name)
            try:
                with tags(name):
                    result = trial(
                        recipe.base_model, prepared.splits, way.training, compute=way.compute, seed=seed, run_id=run_id
                    )
            except FloatingPointError as error:  # it diverged, which is a finding
                failed[name] = str(error)
                continue
            tracking.Run(result.run_id).rename(name)
            found.setdefault(way, []).append(_read(result, seed))
        outcome = _compare(recipe, config, plan, found, {**plan.left_out, **failed}, seeds=seeds, run_id=run_id)
        comparing.publish(sections, outcome, kind=KIND)
    return outcome


def _target(config: StudyConfig) -> float:
    return config.target_accuracy or choices.PRESETS[config.preset].target_accuracy


def sized(data: DataConfig, preset: choices.Preset) -> DataConfig:
    """The recipe's data in the preset's size; a recipe that has fewer rows keeps them."""
    changes = dict(preset.data)
    if data.max_rows and "max_rows" in changes:
        changes["max_rows"] = min(data.max_rows, changes["max_rows"])
    return DataConfig.model_validate({**data.model_dump(), **changes})


def _read(result: StageResult, seed: int) -> Trial:
    """Reads what a trial left."""
    directory = store.path(result.evidence)
    history, measured = (
        json.loads((directory / name).read_text(encoding="utf-8")) for name in ("history.json", "trial.json")
    )
    card = result.scorecard
    assert card.samples_per_s is not None
    assert card.train_time_s is not None
    return Trial(
        seed=seed,
        samples_per_s=card.samples_per_s,
        training_s=card.train_time_s,
        peak_memory_mb=max(point["peak_memory_mb"] for point in history["points"]),
        curve=tuple((point["training_s"], point["quality"]) for point in history["evaluations"]),
        scores=tuple(measured["scores"]),
        about={
            **{name: measured[name] for name in ("machine", "device", "others_share", "finished")},
            "precision": history["notes"]["precision"],
            "cached": result.cached,
            "run_id": result.run_id,
            "rows": card.num_rows,
        },
    )


def _compare(
    recipe: Recipe,
    config: StudyConfig,
    plan: choices.Plan,
    found: dict[choices.Way, list[Trial]],
    left_out: dict[str, str],
    *,
    seeds: tuple[int, ...],
    run_id: str,
) -> Study:
    """Puts the trials into the tables of the plan.

    Raises:
        FeatherweightError: the baseline diverged with every seed, so that there is nothing to compare with.
    """
    if plan.baseline.way not in found:
        raise FeatherweightError(
            "training.learning_rate: the baseline diverged with every seed; a study needs a smaller learning rate"
        )
    target, start = _target(config), found[plan.baseline.way]
    in_order = {key: sorted(trials, key=lambda one: one.seed) for key, trials in found.items()}
    summaries = {key: summarize(trials, in_order[plan.baseline.way], target=target) for key, trials in in_order.items()}

    def rows(entries: Sequence[choices.Entry]) -> tuple[Row, ...]:
        return tuple(Row(one.name, one.note, summaries[one.way]) for one in entries if one.way in found)

    return Study(
        run_id=run_id,
        recipe=recipe.name,
        base_model=recipe.base_model,
        preset=config.preset.value,
        seeds=seeds,
        target=target,
        epochs=plan.baseline.way.training.epochs,
        rows=start[0].about["rows"],
        selection_rows=len(start[0].scores),
        baseline=rows([plan.baseline])[0],
        alone=rows(plan.alone),
        together=rows(plan.together),
        optimizers=rows(plan.optimizers),
        left_out=left_out,
    )


def print_tables(outcome: Study) -> None:
    """Prints the tables, and what was left out."""
    for name, rows in outcome.tables().items():
        print(f"\n{sections.TABLES[name][0]}")
        shown = [
            [row.name, *(f"{value} ({more})" if more else value for value, more in sections.cells(row, outcome))]
            for row in rows
        ]
        console.print_table(sections.HEADER, shown, numbers_from=1)
    for name, reason in outcome.left_out.items():
        print(f"left out: {name}: {reason}")
