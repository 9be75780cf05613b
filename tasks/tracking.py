"""MLflow, always by explicit run id: one experiment per recipe, one parent run per flow run, one child per stage."""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from tasks import store
from tasks.contracts import FeatherweightError

PARAM_LIMIT = 6000
"""Characters of a value that MLflow stores."""
PARAMS_PER_BATCH = 100
"""Parameters that MLflow takes in one call."""


def tracking_uri() -> str:
    """Returns ``MLFLOW_TRACKING_URI``, or an SQLite file under the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.home() / 'mlflow.db'}"


@cache
def _client(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if uri.startswith("sqlite:///"):
        store.home().mkdir(parents=True, exist_ok=True)
        # Several processes that migrate a fresh SQLite file at once corrupt each other's schema.
        with store.lock("mlflow-migration"):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    else:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return client


def client() -> MlflowClient:
    """Returns the client of the configured tracking server; a local database is migrated first, under a lock."""
    return _client(tracking_uri())


def experiment(name: str) -> str:
    """Returns the id of the experiment, creating it if it is new."""
    found = client().get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise FeatherweightError(
                f"MLflow experiment {name!r} was deleted; restore it in MLflow or give the recipe another name"
            )
        return str(found.experiment_id)
    location = None
    if tracking_uri().startswith("sqlite:///"):
        location = (store.home() / "mlartifacts").as_uri()
    try:
        return str(client().create_experiment(name, artifact_location=location))
    except MlflowException:
        found = client().get_experiment_by_name(name)
        if found is None:  # else created by another run in the meantime
            raise
        return str(found.experiment_id)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens nested mappings to ``a.b.c`` keys, for parameters that compare across runs."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


class Run:
    """One MLflow run, addressed by id; safe to use from any thread."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs nested parameters under flattened names."""
        params = [Param(key, value[:PARAM_LIMIT]) for key, value in flatten(values).items()]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            client().log_batch(self.run_id, params=params[start : start + PARAMS_PER_BATCH])

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Logs metrics; what is not finite is left out, because MLflow would store it as 1.8e308."""
        now = int(time.time() * 1000)
        client().log_batch(
            self.run_id,
            metrics=[Metric(key, float(v), now, step) for key, v in values.items() if math.isfinite(v)],
        )

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        client().log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file or the contents of a directory."""
        if path.is_dir():
            client().log_artifacts(self.run_id, str(path), folder)
        else:
            client().log_artifact(self.run_id, str(path), folder)

    def text(self, content: str, name: str) -> None:
        """Stores a text artifact, for example ``history.json`` or ``report.html``."""
        client().log_text(self.run_id, content, name)

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        client().set_terminated(self.run_id, status)


_current: contextvars.ContextVar[Run] = contextvars.ContextVar("featherweight_run")


def current() -> Run:
    """Returns the child run of the stage that is executing in this thread."""
    return _current.get()


def start(name: str, *, experiment_id: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
    """Creates a run; as a child if ``parent`` is given."""
    all_tags = {MLFLOW_RUN_NAME: name, **(tags or {})}
    if parent:
        all_tags[MLFLOW_PARENT_RUN_ID] = parent
    return Run(client().create_run(experiment_id, run_name=name, tags=all_tags).info.run_id)


@contextlib.contextmanager
def _closing(run: Run) -> Iterator[Run]:
    """Ends the run by how the block ended: ``KILLED`` when interrupted, ``FAILED`` with the reason as a tag."""
    try:
        yield run
    except Exception as error:
        run.tags({"featherweight.error": f"{type(error).__name__}: {error}"[:4000]})
        run.finish("FAILED")
        raise
    except BaseException:
        run.finish("KILLED")
        raise
    run.finish()


@contextlib.contextmanager
def pipeline_run(
    name: str, params: Mapping[str, Any], *, run_name: str, tags: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Opens the parent run of one flow run in the experiment ``name`` and yields its id."""
    run = start(run_name, experiment_id=experiment(name), tags={"featherweight.kind": "pipeline", **(tags or {})})
    with _closing(run):
        run.params(params)
        yield run.run_id


@contextlib.contextmanager
def stage_run(stage: str, parent: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Opens the child run of one stage and makes it ``current()``."""
    experiment_id = client().get_run(parent).info.experiment_id
    run = start(
        stage,
        experiment_id=experiment_id,
        parent=parent,
        tags={"featherweight.kind": "stage", "featherweight.stage": stage, **tags},
    )
    token = _current.set(run)
    try:
        with _closing(run):
            yield run
    finally:
        _current.reset(token)


def read_text(run_id: str, name: str) -> str | None:
    """Reads a text artifact of a run, or returns ``None`` if the run has none of that name."""
    folder = name.rpartition("/")[0] or None
    if name not in {artifact.path for artifact in client().list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return Path(client().download_artifacts(run_id, name, scratch)).read_text(encoding="utf-8")


def find_runs(filter_string: str, *, names: Sequence[str] = (), max_results: int = 50) -> list[Any]:
    """Searches runs, newest first, over the named experiments or all of them."""
    experiments = [e.experiment_id for e in client().search_experiments() if not names or e.name in names]
    if not experiments:
        return []
    return list(
        client().search_runs(
            experiments, filter_string, max_results=max_results, order_by=["attributes.start_time DESC"]
        )
    )
