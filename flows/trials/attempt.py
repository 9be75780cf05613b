"""attempt: one trial of a search as a Prefect task, and the task runners that trials go to."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.recipe import Recipe
from flows.trials import branch, prospects
from flows.trials.prospects import Rival
from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.engine import tracking
from tasks.engine.step import step
from tasks.ml import machine
from tasks.reporting.trials import Limits, Minimize, State, Trial

logger = logging.getLogger("featherweight")


class Runner(StrEnum):
    THREADS = "threads"
    DASK = "dask"


class Course(Contract):
    """What all trials of a search have in common."""

    recipe: Recipe
    run_id: str
    """MLflow parent run."""
    splits: Splits
    teacher: Bundle
    limits: Limits
    minimize: Minimize
    workers: int
    """Processes on a machine: each leaves the others their share of the cores."""


def pool(runner: Runner, *, parallel: int, address: str) -> TaskRunner[Any]:
    """Where trials run: threads of this process, or the workers of a Dask cluster.

    Raises:
        FeatherweightError: Dask was asked for and is not installed.
    """
    if runner is Runner.THREADS:
        return ThreadPoolTaskRunner(max_workers=parallel)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        raise FeatherweightError(
            "search: runner: dask needs the extra 'dask': pip install 'featherweight[dask]'"
        ) from None
    if address:
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(
        cluster_kwargs={"n_workers": parallel, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    )


def name(number: int, changes: Mapping[str, Any]) -> str:
    """A trial's name for people."""
    values = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in changes.items())
    return f"trial {number}: {values}"


@step(name="trial", task_run_name="trial {number}")
def attempt(number: int, changes: dict[str, Any], course: Course, rivals: Sequence[Rival], *, run_id: str) -> Trial:
    """Makes one variation of the recipe and measures it, unless what is known meanwhile says that it is hopeless.

    Whatever goes wrong in it is a finding about the variation, and not the end of the search.

    Args:
        rivals: what was measured to the end before this trial began.
        run_id: the trial's own MLflow run.
    """
    started = time.monotonic()
    if course.workers > 1:
        machine.share_cores(course.workers)
    stages: tuple[StageResult, ...] = ()

    def trial(state: State, reason: str = "", **found: Any) -> Trial:
        seconds = round(time.monotonic() - started, 3)
        return Trial(
            number=number, changes=changes, state=state, reason=reason, run_id=run_id, seconds=seconds, stages=stages,
            **found,
        )  # fmt: skip

    unfit = ""
    try:
        recipe = branch.variation(course.recipe, changes)
    except FeatherweightError as error:  # values that are right alone do not go together
        recipe, unfit = course.recipe, "; ".join(error.args)
    tags = {"featherweight.trial": str(number)}
    with tracking.trial_run(run_id, recipe.model_dump(mode="json"), tags) as run:
        try:
            if unfit:
                raise FeatherweightError(unfit)
            with branch.turn:
                foretold = prospects.forecast(recipe, course.teacher)
            look = prospects.Prospects(course.limits, foretold, rivals, course.minimize)
            reason = look.before()
            if not reason:
                grown = branch.grow(recipe, course.splits, course.teacher, run_id=run_id, look=look.after)
                reason, stages = grown.given_up, grown.stages
            found = trial(State.GIVEN_UP if reason else State.COMPLETE, reason, forecast_mb=foretold.size_mb)
        except Exception as error:
            logger.warning("trial %d failed: %s: %s", number, type(error).__name__, error, exc_info=True)
            found = trial(State.FAILED, f"{type(error).__name__}: {error}"[:1000])
        run.metrics(found.metrics(course.limits))
        run.tags({"featherweight.state": found.state.value, "featherweight.reason": found.reason})
    return found
