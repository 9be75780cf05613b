"""search: the fastest or smallest model within the budget, found among many variations that share what they can."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.futures import PrefectFuture, as_completed
from prefect.states import Failed, State
from pydantic import Field

from flows import preflight
from flows.command import console, recipe_layers
from flows.flow import parent_run
from flows.recipe import Recipe
from flows.trials import branch, comparing, finals, ledger, space
from flows.trials.attempt import Course, Runner, attempt, pool
from flows.trials.attempt import name as trial_name
from flows.trials.ledger import Asked, Ledger, SamplerName
from flows.trials.prospects import Rival
from tasks.appraise import appraise
from tasks.contracts.base import Contract
from tasks.contracts.values import StageResult
from tasks.deploy import deploy
from tasks.engine import disk, progress, tracking
from tasks.engine.keys import code_digest, numerics_versions, outside
from tasks.ml import digests, machine
from tasks.register import keep, register
from tasks.reporting import search as sections
from tasks.reporting.trials import Limits, Minimize, Search, Trial, best, standing
from tasks.reporting.trials import State as TrialState

logger = logging.getLogger("featherweight")

KIND = "search"
BEST = "best-so-far"
"""Alias of the best model that a search has found until now."""


class SearchConfig(Contract):
    """What is looked for, and how long."""

    minimize: Minimize = Field(Minimize.LATENCY, title="Minimize")
    """latency: p50 of one sentence; size: bytes of the weights. Within the recipe's budget."""
    target_ms: float = Field(0, ge=0, title="Target latency")
    """p50 of one sentence that is allowed, in milliseconds. 0: any."""
    target_mb: float = Field(0, ge=0, title="Target size")
    """Size that is allowed, in MB. 0: any."""
    trials: int = Field(40, ge=1, le=100_000, title="Trials")
    """Variations to look at."""
    minutes: float = Field(0, ge=0, title="Minutes")
    """Begin no further trial after so many minutes. 0: no limit of time."""
    finalists: int = Field(3, ge=1, le=100, title="Finalists")
    """How many of the best on the selection split are shown the test split, once."""
    sampler: SamplerName = Field(SamplerName.TPE, title="Sampler")
    """Optuna's tpe learns where good variations are; nsga2 breeds them."""
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed")
    """Seeds the sampler; training has the recipe's."""
    parallel: int = Field(1, ge=1, le=1024, title="Parallel trials")
    """Trials at once. Workers of dask on this machine share its cores."""
    runner: Runner = Field(Runner.THREADS, title="Runner")
    """threads of this process, of which one at a time is in a stage, or dask, whose workers are processes here or
    elsewhere; needs the extra 'dask'."""
    dask_address: str = Field("", title="Dask scheduler")
    """Address such as tcp://HOST:8786. Empty: workers on this machine."""
    space: dict[str, list[Any]] = Field({}, title="Space")
    """Values of a field instead of the usual ones, as pruning.keep_vocabulary: [0.5, 1]. One keeps it fixed."""


CONFIG = SearchConfig


@comparing.flow_of(KIND)
def search(recipe: Recipe = Recipe(), config: SearchConfig = SearchConfig()) -> Search | State[Search]:
    """Try variations of a recipe, keep the best at every moment, and let the test split judge the last few."""
    recipe, config = recipe_layers.checked(recipe), comparing.checked(KIND, CONFIG, config)
    base = preflight.inspected(recipe.base_model)
    preflight.require(preflight.objections(recipe, base))
    grid = space.of(recipe, base, config.space)
    home = _home(recipe, config)
    with parent_run(KIND, recipe, _identity(config), continues=tracking.run_named_in(home / "run")) as run_id:
        disk.write_atomically(home / "run", run_id)
        prepared, teacher = branch.taught(recipe, recipe.seed, run_id=run_id)
        splits = prepared.splits
        baseline = appraise(teacher.bundle, splits, branch.appraisal(recipe), teacher=teacher.bundle, run_id=run_id)
        course = Course(
            recipe=recipe, run_id=run_id, splits=splits, teacher=teacher.bundle, minimize=config.minimize,
            limits=_limits(recipe, config, baseline), workers=_workers(config),
        )  # fmt: skip
        with ledger.opened(_journal(home, course), grid, sampler=config.sampler, seed=config.seed) as book:
            trials = _explore(book, course, config, baseline)
            able = standing(trials, course.limits, config.minimize)[: config.finalists]
            tested = book.tested([trial.number for trial in able])
        finalists = finals.judged(
            [trial for trial in trials if trial.number in tested], course, before=(prepared, teacher)
        )
        outcome = Search(
            run_id=run_id,
            recipe=recipe.name,
            base_model=recipe.base_model,
            minimize=config.minimize,
            limits=course.limits,
            baseline=baseline.scorecard,
            space={path: list(values) for path, values in grid.values.items()},
            trials=tuple(trials),
            finalists=finalists,
            confidence=recipe.budget.confidence,
        )
        if outcome.winner is not None:
            _ship(outcome, recipe)
        comparing.publish(sections, outcome, kind=KIND)
    if outcome.winner is None:
        return Failed(name="Rejected", message=sections.headline(outcome), data=outcome)
    return outcome


def _identity(config: SearchConfig) -> dict[str, Any]:
    """What makes two searches the same, so that the second goes on with what the first has tried."""
    return config.model_dump(mode="json", include={"minimize", "target_ms", "target_mb", "sampler", "seed", "space"})


def _home(recipe: Recipe, config: SearchConfig) -> Path:
    """Where a search keeps what it is: its MLflow run, and its ledger."""
    return disk.home() / "searches" / digests.of_value([recipe.model_dump(mode="json"), _identity(config)])[:24]


def _journal(home: Path, course: Course) -> Path:
    """The ledger, by all else that what it holds rests on: data, teacher, other models, code, libraries and machine."""
    code = {name: code_digest(f"tasks.{name}") for name in ("distill", "prune", "quantize", "export", "appraise")}
    recipe = course.recipe
    others = [outside(config) for config in (recipe.teaching, recipe.distillation, recipe.pruning, recipe.quantization)]
    about = (course.splits.digest, course.teacher.digest, others, code, numerics_versions(), machine.identity())
    return home / f"{digests.of_value(about)[:24]}.journal"


def _limits(recipe: Recipe, config: SearchConfig, baseline: StageResult) -> Limits:
    """What the budget allows, in the units of what is measured; the teacher was timed eagerly, as judge has it."""
    card, budget = baseline.scorecard, recipe.budget
    assert card.quality is not None
    assert card.size_mb is not None
    assert card.latency_p50_ms is not None
    assert card.num_examples is not None
    return Limits(
        max_drop=budget.max_quality_drop,
        max_mb=min(config.target_mb or math.inf, card.size_mb / budget.min_shrink),
        max_ms=min(config.target_ms or math.inf, card.latency_p50_ms / budget.min_speedup),
        teacher_quality=card.quality,
        rows=card.num_examples,
    )


def _workers(config: SearchConfig) -> int:
    """Processes that share this machine's cores."""
    return config.parallel if config.runner is Runner.DASK and not config.dask_address else 1


def _explore(book: Ledger, course: Course, config: SearchConfig, baseline: StageResult) -> list[Trial]:
    """Has trials run until there are enough, time is up or nothing is left to try; returns all that ever ended."""
    first, deadline = book.space.nearest(course.recipe), time.monotonic() + 60 * (config.minutes or math.inf)
    trials = [Trial.model_validate(record) for record in book.records()]
    waiting, live = list(book.interrupted()), progress.Live(KIND)
    if trials or waiting:
        logger.info("search: %d trials are in the ledger, %d go on", len(trials), len(waiting))
    running: dict[PrefectFuture[Trial], Asked] = {}
    kept = 0

    def next_one() -> Asked | None:
        if waiting:
            return waiting.pop(0)
        enough = len(trials) + len(running) >= config.trials or time.monotonic() >= deadline
        return None if enough else book.ask(first)

    with pool(config.runner, parallel=config.parallel, address=config.dask_address) as runner:
        while True:
            while len(running) < config.parallel and (asked := next_one()):
                running[runner.submit(attempt, _arguments(asked, course, trials))] = asked
            if (leading := best(trials, course.limits, config.minimize)) and leading.number != kept:
                kept, found = leading.number, leading.stages[-1]
                keep(course.recipe.name, course.splits, found, baseline, alias=BEST, run_id=leading.run_id)
            if not running:
                return sorted(trials, key=lambda trial: trial.number)
            future = next(as_completed(list(running)))
            trial, asked = future.result(), running.pop(future)
            trials.append(trial)
            _note(asked, trial, course)
            line = sections.progress(trials, course.limits, config.minimize)
            logger.info("search: %d of %d: %s", len(trials), config.trials, line)
            live.update(min(len(trials) / config.trials, 1), line)


def _arguments(asked: Asked, course: Course, trials: Sequence[Trial]) -> dict[str, Any]:
    """The parameters of ``attempt``; a trial that was interrupted goes on in the MLflow run that it had."""
    if not asked.run_id:
        name = trial_name(asked.number, asked.point)
        asked.belongs_to(tracking.start_below(course.run_id, name).run_id)
    rivals = [
        Rival(trial.number, drop, cost)
        for trial in trials
        if (drop := trial.drop(course.limits)) is not None and (cost := trial.cost(course.minimize)) is not None
    ]
    return {
        "number": asked.number, "changes": asked.point, "course": course, "rivals": rivals, "run_id": asked.run_id
    }  # fmt: skip


def _note(asked: Asked, trial: Trial, course: Course) -> None:
    """Writes into the ledger what a trial came to."""
    record = trial.model_dump(mode="json")
    if trial.state is TrialState.COMPLETE:
        asked.finished(record, trial.objectives(course.limits, course.minimize), trial.excess(course.limits))
    elif trial.state is TrialState.GIVEN_UP:
        asked.given_up(record)
    else:
        asked.failed(record)


def _ship(outcome: Search, recipe: Recipe) -> None:
    """Registers and deploys the winner, as ``compress`` does with what passed."""
    winner = outcome.winner
    assert winner is not None
    release = register(recipe.name, winner.outcome, run_id=winner.outcome.run_id)
    deploy(release, recipe.deployment, run_id=winner.outcome.run_id)


def print_tables(outcome: Search) -> None:
    """Prints the finalists, and what was given up."""
    if outcome.finalists:
        console.print_table(sections.HEADER, [list(sections.cells(one, outcome)) for one in outcome.finalists])
    for reason, numbers in sections.given_up(outcome).items():
        print(f"given up: {len(numbers)} {reason}")
