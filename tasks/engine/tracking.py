"""MLflow, always by explicit run id: one experiment per recipe, one parent run per flow run, one child per stage."""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, processes, redaction

ERROR_TAG = "featherweight.error"
CACHE_KEY_TAG = "featherweight.cache_key"
FLOW_RUN_URL_TAG = "prefect.flow_run_url"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
PARAM_LIMIT = 6000
"""Characters of a value that MLflow stores."""


def tracking_uri() -> str:
    """Returns ``MLFLOW_TRACKING_URI``, or an SQLite file under the home; the address of a server has no password."""
    redaction.take_out_of_addresses()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{disk.home() / 'mlflow.db'}"


def is_remote() -> bool:
    """Whether runs are recorded by a server, and not in a database on this disk."""
    return urlsplit(tracking_uri()).scheme in ("http", "https")


@contextlib.contextmanager
def _first_contact() -> Iterator[None]:
    """Asks a server for 30 s: one that restarts is waited for, and of a wrong address a person hears soon.

    MLflow's own seven retries take four minutes, in which nothing is said.
    """
    if os.environ.get(RETRIES):
        yield
        return
    os.environ[RETRIES] = "4"
    try:
        yield
    finally:
        del os.environ[RETRIES]


@contextlib.contextmanager
def _named(uri: str) -> Iterator[None]:
    """Whatever keeps MLflow from an address that a person gave is told with the address.

    Raises:
        FeatherweightError: the block failed.
    """
    try:
        yield
    except Exception as error:  # of MLflow, of a database's driver, or of an address that is none
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        reason = " ".join(redaction.hide(said).split())[:300]
        raise FeatherweightError(
            f"MLFLOW_TRACKING_URI: {redaction.hide(uri)} cannot be used: {reason}; "
            "mend it or start its server, or unset it to keep runs in the home"
        ) from error


@cache
def _client(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    redaction.watch_logs()
    given = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    with (
        _named(uri) if given else contextlib.nullcontext(),
        # Several processes that migrate a fresh SQLite file at once corrupt each other's schema.
        disk.lock("mlflow-migration") if uri.startswith("sqlite:///") else _first_contact(),
    ):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return client


def client() -> MlflowClient:
    """Returns the client of the configured tracking server; a local database is migrated first, under a lock."""
    return _client(tracking_uri())


def clients() -> list[MlflowClient]:
    """That client, and before it one of the home's own database where another server is configured."""
    own = disk.home() / "mlflow.db"
    uris = [f"sqlite:///{own}"] if own.is_file() else []
    return [_client(uri) for uri in dict.fromkeys([*uris, tracking_uri()])]


def every(search: Callable[..., Any], **asked: Any) -> Iterator[Any]:
    """All that a search of a client finds, page by page."""
    token = None
    while token != "":
        page = search(**asked, max_results=1000, page_token=token)
        yield from page
        token = page.token or ""


def every_run(client: MlflowClient, *, deleted: bool = False) -> Iterator[Any]:
    """All runs of all experiments: those that are there, or those that were deleted and can be restored."""
    ids = [one.experiment_id for one in every(client.search_experiments, view_type=ViewType.ALL)]
    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    return every(client.search_runs, experiment_ids=ids, run_view_type=view) if ids else iter(())


def experiment(name: str) -> str:
    """Returns the id of the experiment, creating it if it is new."""
    found = client().get_experiment_by_name(name)
    if found is None:
        location = (disk.home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite:///") else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on metrics, and not on traces
        try:
            return str(client().create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException:
            found = client().get_experiment_by_name(name)
            if found is None:  # else created by another run in the meantime
                raise
    if found.lifecycle_stage == "deleted":
        raise FeatherweightError(
            f"MLflow experiment {name!r} was deleted; restore it in MLflow or give the recipe another name"
        )
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
        params = [Param(key, redaction.hide(value)[:PARAM_LIMIT]) for key, value in flatten(values).items()]
        client().log_batch(self.run_id, params=params)

    def last_step(self, metric: str) -> int:
        """Returns the last step that a metric was logged for, or -1 where it never was."""
        return max((point.step for point in client().get_metric_history(self.run_id, metric)), default=-1)

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Logs metrics; what is not finite is left out, because MLflow would store it as 1.8e308."""
        now = int(time.time() * 1000)
        points = [Metric(key, float(v), now, step) for key, v in values.items() if math.isfinite(v)]
        client().log_batch(self.run_id, metrics=points)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        client().log_batch(self.run_id, tags=[RunTag(key, redaction.hide(value)) for key, value in values.items()])

    def rename(self, name: str) -> None:
        """Gives the run a name for people."""
        client().update_run(self.run_id, name=name)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file or the contents of a directory."""
        if path.is_dir():
            client().log_artifacts(self.run_id, str(path), folder)
        else:
            client().log_artifact(self.run_id, str(path), folder)

    def text(self, content: str, name: str) -> None:
        """Stores a text artifact, for example ``history.json`` or ``report.html``."""
        client().log_text(self.run_id, content, name)

    def describe(self, markdown: str) -> None:
        """Sets what the page of the run says first, with the way back to Prefect where there is one."""
        url = client().get_run(self.run_id).data.tags.get(FLOW_RUN_URL_TAG)
        back = f"\n[The run in Prefect]({url})\n" if url else ""
        self.tags({MLFLOW_RUN_NOTE: (markdown + back)[:8000]})

    def dataset(self, name: str, digest: str, *, rows: int | None = None) -> None:
        """Names the dataset that the run rests on; MLflow keeps 36 characters of a digest."""
        used = Dataset(
            name,
            digest[:36],
            "featherweight",
            json.dumps({"source": name, "digest": digest}),
            schema=json.dumps({"mlflow_colspec": [{"name": n, "type": "string"} for n in ("text", "label")]}),
            profile=json.dumps({"num_rows": rows}),
        )
        client().log_inputs(self.run_id, [DatasetInput(used, [InputTag("mlflow.data.context", "training")])])

    @contextlib.contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Logs processor, memory, disk, network and GPU use as ``system/…`` while the block runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=tracking_uri())
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def url(self) -> str:
        """Returns the address of the run in the MLflow UI without credentials, or nothing where no server shows it."""
        if not is_remote():
            return ""
        experiment_id = client().get_run(self.run_id).info.experiment_id
        return f"{tracking_uri().rstrip('/')}/#/experiments/{experiment_id}/runs/{self.run_id}"

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        client().set_terminated(self.run_id, status)


_current: contextvars.ContextVar[Run] = contextvars.ContextVar("featherweight_run")


def current() -> Run:
    """Returns the child run of the stage that is executing in this thread."""
    return _current.get()


PROCESS_TAG = "featherweight.process"


def close_orphans() -> list[Any]:
    """Closes as ``KILLED`` what a process of this home left running when it was killed; returns the runs closed."""
    query = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{processes.home_id()} %'"
    found = find_runs(query, max_results=1000)
    closed = [run for run in found if processes.is_gone(run.data.tags[PROCESS_TAG])]
    for run in closed:
        orphan = Run(run.info.run_id)
        with contextlib.suppress(MlflowException):  # another process closes the same, or a person deletes it
            orphan.tags({ERROR_TAG: "the process was killed before it could close this run"})
            orphan.finish("KILLED")
    return closed


def start(name: str, *, experiment_id: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> Run:
    """Creates a run; as a child if ``parent`` is given."""
    all_tags = {MLFLOW_RUN_NAME: name, PROCESS_TAG: processes.this_process(), **(tags or {})}
    if parent:
        all_tags[MLFLOW_PARENT_RUN_ID] = parent
    return Run(client().create_run(experiment_id, run_name=name, tags=all_tags).info.run_id)


def _taken_up(run_id: str, tags: Mapping[str, str]) -> Run:
    """Opens a run that has ended, or that another process created, once more: from here on it is this process's."""
    client().update_run(run_id, status="RUNNING")
    run = Run(run_id)
    run.tags({PROCESS_TAG: processes.this_process(), ERROR_TAG: "", **tags})
    return run


def _opened(
    name: str, *, experiment_id: str, parent: str | None, tags: Mapping[str, str], continues: str | None
) -> Run:
    """Takes a run up again, below its new parent, if it is there; else starts one."""
    info = None
    if continues:
        with contextlib.suppress(MlflowException):  # there is none of this id
            info = client().get_run(continues).info
    if info and info.lifecycle_stage != "deleted" and info.experiment_id == experiment_id:
        return _taken_up(info.run_id, {**({MLFLOW_PARENT_RUN_ID: parent} if parent else {}), **tags})
    return start(name, experiment_id=experiment_id, parent=parent, tags=tags)


@contextlib.contextmanager
def _closing(run: Run) -> Iterator[Run]:
    """Ends the run by how the block ended: ``KILLED`` when interrupted, ``FAILED`` with the reason as a tag."""
    try:
        yield run
    except Exception as error:
        redaction.cleanse(error)
        run.tags({ERROR_TAG: f"{type(error).__name__}: {error}"[:4000]})
        run.finish("FAILED")
        raise
    except BaseException:
        run.finish("KILLED")
        raise
    run.finish()


@contextlib.contextmanager
def pipeline_run(
    name: str,
    params: Mapping[str, Any],
    *,
    run_name: str,
    tags: Mapping[str, str] | None = None,
    continues: str | None = None,
) -> Iterator[str]:
    """Opens the parent run of one flow run in the experiment ``name`` and yields its id.

    Args:
        continues: the run of a flow run that was interrupted and goes on now: it is taken up again, if it is there.
    """
    tags = {"featherweight.kind": "pipeline", **(tags or {})}
    run = _opened(run_name, experiment_id=experiment(name), parent=None, tags=tags, continues=continues)
    with _closing(run):
        run.params(params)
        yield run.run_id


@contextlib.contextmanager
def stage_run(stage: str, parent: str, tags: Mapping[str, str], *, continues: str | None = None) -> Iterator[Run]:
    """Opens the child run of one stage and makes it ``current()``.

    Args:
        continues: the run of an execution that was interrupted and goes on now: it is taken up again, if it is there.
    """
    experiment_id = client().get_run(parent).info.experiment_id
    tags = {"featherweight.kind": "stage", "featherweight.stage": stage, **tags}
    run = _opened(stage, experiment_id=experiment_id, parent=parent, tags=tags, continues=continues)
    token = _current.set(run)
    try:
        with _closing(run):
            yield run
    finally:
        _current.reset(token)


def start_below(parent: str, name: str) -> Run:
    """Creates a run below another, in the same experiment."""
    return start(name, experiment_id=client().get_run(parent).info.experiment_id, parent=parent)


@contextlib.contextmanager
def trial_run(run_id: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Run]:
    """Takes up the run of one trial, below which its stages have theirs, also if the trial was interrupted before.

    It may have been created by another process.
    """
    run = _taken_up(run_id, {"featherweight.kind": "trial", **tags})
    with _closing(run):
        run.params(params)
        yield run


def read_text(run_id: str, name: str) -> str | None:
    """Reads a text artifact of a run, or returns ``None`` if the run has none of that name."""
    folder = name.rpartition("/")[0] or None
    if name not in {artifact.path for artifact in client().list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return download(run_id, name, Path(scratch)).read_text(encoding="utf-8")


def download(run_id: str, name: str, directory: Path) -> Path:
    """Downloads an artifact, or a folder of them, and returns where below ``directory`` it is now.

    Raises:
        FeatherweightError: the server or its artifact store does not give it.
    """
    try:
        return Path(client().download_artifacts(run_id, name, str(directory)))
    except (MlflowException, OSError) as error:
        raise FeatherweightError(f"artifact {name} of run {run_id} cannot be read: {error}") from error


def run_named_in(path: Path) -> str | None:
    """The run id that a file holds, and nothing else; ``None`` where there is no such file, or it was damaged."""
    text = path.read_bytes() if path.is_file() else b""
    return text.decode() if re.fullmatch(rb"[0-9a-f]{32}", text) else None


def find_runs(filter_string: str, *, names: Sequence[str] = (), max_results: int = 50) -> list[Any]:
    """Searches runs, newest first, over the named experiments or all of them."""
    experiments = [e.experiment_id for e in client().search_experiments() if not names or e.name in names]
    if not experiments:
        return []
    newest_first = ["attributes.start_time DESC"]
    return list(client().search_runs(experiments, filter_string, max_results=max_results, order_by=newest_first))
