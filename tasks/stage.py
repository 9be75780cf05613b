"""``@stage``: a Prefect task with a content cache key, an MLflow child run and a published bundle. Written once.

The cache is ours and not Prefect's: Prefect only logs failures to write results, writes them in place, and executes
code on reading a poisoned result file (``infra/decisions/0001-own-stage-cache.md``). A reused stage still ends as
``Cached`` in the Prefect UI.
"""

from __future__ import annotations

import ast
import contextvars
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.states import Completed, State
from pydantic import BaseModel

from tasks import disk, store, tracking
from tasks.contracts import StageOutput, StageResult
from tasks.ml import held_out

logger = logging.getLogger("featherweight")

NUMERICS = (
    "torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy",
    "torchao", "peft", "pytorch-optimizer",
)  # fmt: skip
"""Libraries whose version changes numbers, and so changes every cache key."""

ROOT = Path(__file__).parent.parent
"""The directory that holds the package ``tasks``."""

MOVERS = {
    f"tasks.{name}" for name in ("contracts", "disk", "exchange", "progress", "publish", "stage", "store", "tracking")
}
"""Modules that move bytes and show progress: they do not change what a stage computes."""


RUN_ID = "run_id"
"""File in the directory of resumable state: the MLflow run that goes on when the stage does."""

_checkpoint_directory: contextvars.ContextVar[Path] = contextvars.ContextVar("featherweight_checkpoint_directory")


def checkpoint_directory() -> Path:
    """Returns where the stage that is executing may keep resumable state; it goes once the result is recorded."""
    return _checkpoint_directory.get()


def _sources(module: str) -> dict[str, Path]:
    """Files of a module of ours, by module name; of a package also all its modules, which it may import by name.

    Found by path, because asking the import system would import the parents, and torch with them.
    """
    base = ROOT.joinpath(*module.split("."))
    if base.with_suffix(".py").is_file():
        return {module: base.with_suffix(".py")}
    if (base / "__init__.py").is_file() and module not in ("tasks", "tasks.ml"):
        return {f"{module}.{path.stem}": path for path in sorted(base.glob("*.py"))}
    return {}


def _imports(tree: ast.AST) -> set[str]:
    """Names below ``tasks`` that a module imports anywhere, also inside functions; some may be no modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("tasks.")} - MOVERS


def _is_bare_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_bare_string(statement)]  # type: ignore[attr-defined]
    return tree


@functools.cache
def _read(path: Path) -> tuple[str, frozenset[str]]:
    """Digest of a file's syntax tree without docstrings, and the names that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = frozenset(_imports(tree))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imports


@functools.cache
def code_digest(module: str) -> str:
    """Digest of a stage's module and of everything of ours that it imports, directly or not, but for ``MOVERS``.

    Taken over syntax trees without docstrings, so that a comment or a reformatting keeps the cache.
    """
    seen: dict[str, str] = {}
    queue = {module: Path(str(sys.modules[module].__file__))}
    while queue:
        name, path = queue.popitem()
        if name in seen:
            continue
        seen[name], imports = _read(path)
        for imported in imports:
            queue.update(_sources(imported))
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


@functools.cache
def numerics_versions() -> dict[str, str]:
    """Installed versions of the numerics libraries."""
    versions: dict[str, str] = {}
    for name in NUMERICS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {"type": type(value).__name__, **value.model_dump(mode="json")}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def cache_key(function: Callable[..., Any], arguments: Mapping[str, Any], *, salt: str = "") -> str:
    """Digest of a stage's name, its inputs and config, its code, and the versions of the numerics libraries."""
    parts = {
        "stage": function.__name__,
        "arguments": _jsonable(arguments),
        "code": code_digest(function.__module__),
        "versions": numerics_versions(),
        "salt": salt,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _run_to_continue(checkpoints: Path) -> str | None:
    """The MLflow run of an execution that was interrupted after it had kept some state in this directory."""
    said = checkpoints / RUN_ID
    kept = said.is_file() and any(path != said for path in checkpoints.iterdir())
    return said.read_text(encoding="utf-8") if kept else None


def _prefect_tags() -> dict[str, str]:
    context = TaskRunContext.get()
    return {"prefect.task_run_id": str(context.task_run.id)} if context else {}


class Stage(Protocol):
    """A decorated stage: the body's arguments plus ``run_id``, the MLflow parent run."""

    def __call__(self, *args: Any, run_id: str, **kwargs: Any) -> StageResult: ...


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
        salt: called with the same arguments; what it returns becomes part of the cache key. For inputs whose content
            lies outside the store, such as the digest of a source file.
    """
    if function is None:
        return functools.partial(stage, reuse=reuse, salt=salt)
    signature = inspect.signature(function)
    name = function.__name__

    def compute(key: str, run: tracking.Run, checkpoints: Path, arguments: Mapping[str, Any]) -> StageResult:
        started = time.monotonic()
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / RUN_ID).write_text(run.run_id, encoding="utf-8")
        token = _checkpoint_directory.set(checkpoints)
        try:
            with held_out.asking(name):
                output = function(**arguments)
        finally:
            _checkpoint_directory.reset(token)
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
        key = cache_key(function, arguments, salt=salt(**arguments))
        tags = {tracking.CACHE_KEY_TAG: key, **_prefect_tags()}
        checkpoints = disk.home() / "store" / "checkpoints" / key
        with ExitStack() as stack:
            stack.enter_context(disk.lock(key))
            recorded = store.read_record(key) if reuse else None
            continues = _run_to_continue(checkpoints) if reuse and recorded is None else None
            run = stack.enter_context(tracking.stage_run(name, run_id, tags, continues=continues))
            run.params(_jsonable(arguments))
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
    run_as_task = task(name=name, persist_result=False, cache_policy=NO_CACHE)(execute)

    @functools.wraps(function)
    def call(*args: Any, run_id: str, **kwargs: Any) -> StageResult:
        # A task that returns a state (Cached) would hand that state to its caller: ask for the state, unwrap it here.
        return run_as_task(*args, run_id=run_id, return_state=True, **kwargs).result()

    return call
