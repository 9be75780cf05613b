"""``@step``: a Prefect task that always runs; no credentials leave it with an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from tasks.engine import redaction

P = ParamSpec("P")
R = TypeVar("R")


def step(*, name: str, task_run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Makes a function a task of this name, as Prefect shows it.

    Prefect writes how a task failed into its database, so an error has to be clean when it gets there.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        options = task(name=name, task_run_name=task_run_name, persist_result=False, cache_policy=NO_CACHE)
        made: Task[P, R] = options(redaction.cleansing(function))
        return made

    return decorate
