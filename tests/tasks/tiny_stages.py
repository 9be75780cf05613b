"""Stages of a few lines, which count how often they really ran. In a module of their own, as real stages are."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated
from uuid import UUID

from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import ObjectNotFound

from tasks.contracts.base import FeatherweightError, PlainText, StageConfig
from tasks.contracts.values import Bundle, Scorecard, StageOutput, StageResult
from tasks.engine import progress, store, tracking
from tasks.engine.keys import Outside
from tasks.engine.stage import checkpoint_directory, stage

executions: list[str] = []


class TinyConfig(StageConfig):
    width: int = 1


def content(source: str) -> str:
    return source.partition("@")[2]


@stage
def make(source: Annotated[str, Outside(content)], config: TinyConfig, *, seed: int = 0) -> StageOutput:
    """Publishes a bundle that depends on the arguments."""
    executions.append("make")
    with store.workspace() as directory:
        (directory / "model").write_text(f"{source} {config.width} {seed}", encoding="utf-8")
        digest = store.publish(directory)
    tracking.current().metrics({"loss": 0.5}, step=1)
    return StageOutput(bundle=Bundle(digest=digest, format="torch", problem="tiny"), scorecard=Scorecard(quality=0.75))


@stage
def shrink(source: Bundle, config: TinyConfig) -> StageOutput:
    executions.append("shrink")
    store.path(source.digest)
    if config.width < 0:
        raise FeatherweightError("config.width: must not be negative")
    return StageOutput(bundle=source)


@stage(reuse=False)
def effect(source: Bundle) -> StageOutput:
    executions.append("effect")
    return StageOutput(bundle=source)


STEPS, SAVED_AT, INTERRUPTED_AT = 6, 3, 5


@stage
def patient(source: PlainText) -> StageOutput:
    """Takes steps, keeps what it needs to resume after some of them, and is interrupted later, the first time."""
    saved = checkpoint_directory() / "step"
    first = int(saved.read_text(encoding="utf-8")) if saved.is_file() else 0
    with progress.training("patient", "accuracy") as observer:
        observer.start(total_steps=STEPS, first_step=first)
        for step in range(first + 1, STEPS + 1):
            observer.step(step, {"loss": 1 / step, "samples_per_s": 1.0})
            observer.evaluation(step, {"quality": 0.5, "loss": 1 / step})
            if not first and step == SAVED_AT:
                saved.write_text(str(step), encoding="utf-8")
            if not first and step == INTERRUPTED_AT:
                raise FeatherweightError("interrupted")
    with store.workspace() as directory:
        (directory / "model").write_text(source, encoding="utf-8")
        digest = store.publish(directory)
    return StageOutput(bundle=Bundle(digest=digest, format="torch", problem="tiny"))


@flow(name="patiently", persist_result=False)
def patiently(source: str) -> StageResult:
    """One stage that resumes."""
    with tracking.pipeline_run("tiny", {"source": source}, run_name="patiently") as run_id:
        return patient(source, run_id=run_id)


@flow(name="tiny", persist_result=False)
def tiny(source: str = "a", width: int = 1, shrink_width: int = 1) -> list[StageResult]:
    """Two stages and one with effects elsewhere."""
    with tracking.pipeline_run("tiny", {"source": source}, run_name="tiny") as run_id:
        made = make(source, TinyConfig(width=width), run_id=run_id)
        assert made.bundle is not None
        shrunk = shrink(made.bundle, TinyConfig(width=shrink_width), run_id=run_id)
        done = effect(made.bundle, run_id=run_id)
    return [made, shrunk, done]


@task
def one_task() -> None:
    """Not a stage: a task run without any of ours around it."""


def recorded(task_run_id: UUID) -> TaskRun:
    """A task run as its end was recorded: Prefect does so from events, some time after the call."""
    until = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            with contextlib.suppress(ObjectNotFound):
                told = client.read_task_run(task_run_id)
                if (told.state and told.state.is_final()) or time.monotonic() > until:
                    return told
            assert time.monotonic() < until, "no such task run was recorded"
            time.sleep(0.1)
