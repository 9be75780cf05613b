"""``@stage``: a Prefect task with a content cache key, an MLflow child run and a published bundle. Written once.

The cache is ours and not Prefect's: Prefect only logs failures to write results, writes them in place, and executes
code on reading a poisoned result file (``infra/decisions/0001-own-stage-cache.md``). A reused stage still ends as
``Cached`` in the Prefect UI.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect.context import TaskRunContext
from prefect.states import Completed, State

from tasks.contracts.values import StageOutput, StageResult
from tasks.engine import disk, keys, store, tracking
from tasks.engine.step import step
from tasks.ml import machine
from tasks.ml.data import held_out

logger = logging.getLogger("featherweight")

_checkpoint_directory: contextvars.ContextVar[Path] = contextvars.ContextVar("featherweight_checkpoint_directory")


def checkpoint_directory() -> Path:
    """Returns where the stage that is executing may keep resumable state; it goes once the result is recorded."""
    return _checkpoint_directory.get()


def _run_to_continue(checkpoints: Path) -> str | None:
    """The MLflow run of an execution that was interrupted after it had kept some state in this directory."""
    said = checkpoints / store.RUN_ID
    kept = said.is_file() and any(path != said for path in checkpoints.iterdir())
    return tracking.run_named_in(said) if kept else None


def _prefect_tags() -> dict[str, str]:
    context = TaskRunContext.get()
    return {"prefect.task_run_id": str(context.task_run.id)} if context else {}


def stage(
    function: Callable[..., StageOutput] | None = None,
    *,
    reuse: bool = True,
    salt: Callable[..., str] = lambda **_: "",
) -> Any:
    """Makes a function from bundles and configs to a ``StageOutput`` into a stage.

    The decorated function takes one more keyword, ``run_id`` (the MLflow parent run), and returns a ``StageResult``.

    Args:
        reuse: whether a recorded result may stand in for a new execution. Off for stages with effects elsewhere.
        salt: called with the same arguments; what it returns becomes part of the cache key. For what a result depends
            on beside them, such as the machine that a time is taken on.

    Raises:
        TypeError: it is not said of some text in the arguments whether it names something outside the store.
    """
    if function is None:
        return functools.partial(stage, reuse=reuse, salt=salt)
    signature = inspect.signature(function)
    name = function.__name__
    keys.require_marks(function)

    def compute(key: str, run: tracking.Run, checkpoints: Path, arguments: Mapping[str, Any]) -> StageResult:
        started = time.monotonic()
        disk.made("store", "checkpoints", key)
        (checkpoints / store.RUN_ID).write_text(run.run_id, encoding="utf-8")
        machine.keep_to_limits()
        token = _checkpoint_directory.set(checkpoints)
        try:
            with held_out.asking(name):
                output = function(**arguments)
        finally:
            _checkpoint_directory.reset(token)
            machine.give_back_memory()
        result = StageResult(
            **dict(output), stage=name, run_id=run.run_id, seconds=round(time.monotonic() - started, 3)
        )
        if reuse:
            store.write_record(key, result)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return result

    @functools.wraps(function)
    def execute(*args: Any, run_id: str, **kwargs: Any) -> StageResult | State:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        key = keys.cache_key(function, arguments, salt=salt(**arguments))
        tags = {tracking.CACHE_KEY_TAG: key, **_prefect_tags()}
        checkpoints = disk.home() / "store" / "checkpoints" / key
        with ExitStack() as stack:
            stack.enter_context(disk.lock(key))
            recorded = store.read_record(key) if reuse else None
            continues = _run_to_continue(checkpoints) if reuse and recorded is None else None
            run = stack.enter_context(tracking.stage_run(name, run_id, tags, continues=continues))
            run.params(keys.as_json(arguments))
            if recorded is None:
                logger.info("%s: computing", name)
                result = compute(key, run, checkpoints, arguments)
            else:
                run.tags({"featherweight.cached": "true", "featherweight.computed_by": recorded.run_id})
                result = recorded.model_copy(update={"run_id": run.run_id, "cached": True})
            run.metrics({**result.scorecard.metrics(), "seconds": result.seconds})
        if result.cached:
            logger.info("%s: Cached", name)
            return Completed(name="Cached", message=f"computed by run {recorded.run_id}", data=result)  # type: ignore[union-attr]
        logger.info("%s: done in %.1f s", name, result.seconds)
        return result

    # Prefect inspects the signature: the stage's own parameters, then run_id.
    parameters = [
        *signature.parameters.values(),
        inspect.Parameter("run_id", inspect.Parameter.KEYWORD_ONLY, annotation=str),
    ]
    execute.__signature__ = signature.replace(parameters=parameters, return_annotation=StageResult)  # type: ignore[attr-defined]
    run_as_task = step(name=name)(execute)

    @functools.wraps(function)
    def call(*args: Any, run_id: str, **kwargs: Any) -> StageResult:
        # A task that returns a state (Cached) would hand that state to its caller: ask for the state, unwrap it here.
        return run_as_task(*args, run_id=run_id, return_state=True, **kwargs).result()

    return call
