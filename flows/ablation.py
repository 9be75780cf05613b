"""ablation: what each technique of compression is worth in a recipe, taken out or put in alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from prefect import tags
from pydantic import Field, field_validator

from flows import preflight
from flows.command import console, recipe_layers
from flows.flow import parent_run
from flows.recipe import Recipe
from flows.trials import branch, comparing, techniques
from flows.trials.techniques import Arm, Technique
from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.values import Bundle, Splits
from tasks.engine import quiet, store, tracking
from tasks.ml.proof.ablation import Measured, compare, read, summarize
from tasks.ml.runtime import timing
from tasks.prepare import prepare
from tasks.race import FILE, race
from tasks.reporting import ablation as sections
from tasks.reporting.ablation import Ablation, Row

logger = logging.getLogger("featherweight")

KIND = "ablation"


class AblationConfig(Contract):
    """What is measured, and how often."""

    techniques: tuple[str, ...] = Field(
        (),
        title="Techniques",
        json_schema_extra={"items": {"type": "string", "enum": [one.name for one in techniques.TECHNIQUES]}},
    )
    """Names of the techniques to measure; none: all that there are."""
    seeds: int = Field(1, ge=1, le=100, title="Seeds")
    """Times that everything is made anew, the teacher as well."""

    @field_validator("techniques")
    @classmethod
    def _all_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(techniques.find(name).name for name in names))

    def chosen(self) -> list[Technique]:
        """The techniques to measure."""
        return [techniques.find(name) for name in self.techniques] or list(techniques.TECHNIQUES)


CONFIG = AblationConfig


@comparing.flow_of(KIND)
def ablation(recipe: Recipe = Recipe(), config: AblationConfig = AblationConfig()) -> Ablation:
    """Make a recipe's model with and without each technique, and compare them on the selection split."""
    recipe, config = recipe_layers.checked(recipe), comparing.checked(KIND, CONFIG, config)
    arms, left_out = _planned(recipe, config)
    variations = _variations(recipe, arms)
    seeds = tuple(recipe.seed + number for number in range(config.seeds))
    about = {"seeds": list(seeds), "techniques": [arm.technique.name for arm in arms]}
    made: dict[Recipe, dict[int, _Made]] = {variation: {} for variation in variations}
    failed: dict[Recipe, str] = {}
    pairs: dict[str, list[tuple[Measured, Measured]]] = {}
    with parent_run(KIND, recipe, about) as run_id:
        for seed in seeds:
            _, teacher = branch.taught(recipe, seed, run_id=run_id)
            assert teacher.bundle is not None
            for number, (variation, title) in enumerate(variations.items(), 1):
                name = f"{title}, seed {seed}"
                logger.info("ablation: model %d of %d: %s", number, len(variations), name)
                try:
                    with tags(name):
                        made[variation][seed] = _make(variation, seed, teacher.bundle, name, run_id=run_id)
                except Exception as error:  # a finding about the technique, unless the recipe itself cannot be made
                    if variation == recipe:
                        raise
                    logger.warning("%s: %s: %s", name, type(error).__name__, error, exc_info=True)
                    failed[variation] = f"{title}, it could not be made: {str(error) or type(error).__name__}"[:1000]
            for arm in arms:
                used, spared = made[arm.used].get(seed), made[arm.spared].get(seed)
                if used and spared:
                    with tags(f"{arm.technique.name}, seed {seed}"):
                        pairs.setdefault(arm.technique.name, []).append(_timed(recipe, used, spared, run_id=run_id))
        outcome = _compare(recipe, arms, made, pairs, failed, left_out, seeds=seeds, run_id=run_id)
        comparing.publish(sections, outcome, kind=KIND)
    return outcome


class _Made(NamedTuple):
    """The model of a variation, and the splits and numbers that it has."""

    bundle: Bundle
    splits: Splits
    measured: Measured


def _planned(recipe: Recipe, config: AblationConfig) -> tuple[list[Arm], dict[str, str]]:
    """What to compare, and what is left out.

    Raises:
        FeatherweightError: the recipe cannot come about with its base model, or all is left out.
    """
    base = preflight.inspected(recipe.base_model)
    preflight.require(preflight.objections(recipe, base))
    planned, left_out = techniques.plan(recipe, config.chosen())
    arms = []
    for arm in planned:
        objections = [reason for one in (arm.used, arm.spared) for reason in preflight.objections(one, base)]
        if objections:
            left_out[arm.technique.name] = objections[0]
        else:
            arms.append(arm)
    if not arms:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise FeatherweightError(f"ablation: techniques: there is nothing to compare: {reasons}")
    return arms, left_out


def _variations(recipe: Recipe, arms: list[Arm]) -> dict[Recipe, str]:
    """Everything to make, the recipe first, by the name that it has first; techniques may share what they need."""
    variations = {recipe: "as the recipe is"}
    for arm in arms:
        variations.setdefault(arm.used, f"with {arm.technique.name}")
        variations.setdefault(arm.spared, f"without {arm.technique.name}")
    return variations


def _make(variation: Recipe, seed: int, teacher: Bundle, name: str, *, run_id: str) -> _Made:
    """Makes the model of a variation, below a run of its own, and measures it."""
    seeded = variation.model_copy(update={"seed": seed})
    own = tracking.start_below(run_id, name).run_id
    with tracking.trial_run(own, seeded.model_dump(mode="json"), {}) as run:
        splits = prepare(seeded.data, problem=seeded.problem, base_model=seeded.base_model, run_id=own).splits
        assert splits is not None
        grown = branch.grow(seeded, splits, teacher, run_id=own)
        measured = read(store.path(grown.last.evidence), seed)
        run.metrics(measured.metrics())
    return _Made(grown.bundle("export"), splits, measured)


def _timed(recipe: Recipe, used: _Made, spared: _Made, *, run_id: str) -> tuple[Measured, Measured]:
    """Both with times that they took in turns, on the same texts and the device that the recipe validates on."""
    where = recipe.validation.model_dump(mode="json", include={"device", "threads", "sentences"})
    config = quiet.TimingConfig.model_validate(where)
    raced = race(used.bundle, used.splits, config, rival=spared.bundle, run_id=run_id)
    first, second = timing.read_paces(store.path(raced.evidence) / FILE)
    return replace(used.measured, pace=first), replace(spared.measured, pace=second)


def _compare(
    recipe: Recipe,
    arms: list[Arm],
    made: Mapping[Recipe, Mapping[int, _Made]],
    pairs: Mapping[str, list[tuple[Measured, Measured]]],
    failed: Mapping[Recipe, str],
    left_out: Mapping[str, str],
    *,
    seeds: tuple[int, ...],
    run_id: str,
) -> Ablation:
    """Puts each technique beside its absence."""
    missing, models = dict(left_out), {}
    for arm in arms:
        name = arm.technique.name
        if gaps := [failed[one] for one in (arm.used, arm.spared) if one in failed]:
            missing[name] = gaps[0]
        else:
            models[name] = [used for used, _ in pairs[name]], [spared for _, spared in pairs[name]]
    effects, about = compare(models), {arm.technique.name: arm for arm in arms}
    rows = [
        Row(name, about[name].technique.note, about[name].is_used, summarize(used), summarize(spared), effects[name])
        for name, (used, spared) in models.items()
    ]
    whole = [one.measured for one in made[recipe].values()]
    abouts = [one.measured.about for by_seed in made.values() for one in by_seed.values()]
    machines = {f"{about['cpu_model']}, {about['kernels']}" for about in abouts}
    return Ablation(
        run_id=run_id,
        recipe=recipe.name,
        base_model=recipe.base_model,
        seeds=seeds,
        selection_rows=whole[0].scores.size,
        teacher_quality=sum(one.about["teacher_quality"] for one in whole) / len(whole),
        whole=summarize(whole),
        rows=tuple(rows),
        machines=tuple(sorted(machines)),
        left_out=missing,
    )


def print_tables(outcome: Ablation) -> None:
    """Prints the table, and what was left out."""
    print()
    console.print_table(sections.HEADER, [sections.in_words(row) for row in outcome.rows], numbers_from=2)
    for name, reason in outcome.left_out.items():
        print(f"left out: {name}: {reason}")
