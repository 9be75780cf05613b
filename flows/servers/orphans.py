"""Runs whose process was killed: closed in MLflow and in Prefect, at the next start or while ``up`` runs."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, StateType

from tasks.engine import processes, tracking
from tasks.ml import machine

logger = logging.getLogger("featherweight")

REASON = "its process was killed"
LABEL = "featherweight.process"
"""Label of a flow run: the process that runs it."""
EVERY_S = 20.0
"""Between two looks for runs that were left open, while servers run."""


def sign(flow: Any, flow_run: Any, state: Any) -> None:
    """A hook of every flow, when it begins to run: says in Prefect which process runs it, and ends it with its worker.

    A run that a worker started ends when the worker is killed.
    """
    if flow_run.deployment_id:
        machine.end_with_parent()
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {LABEL: processes.this_process()})


def close() -> None:
    """Closes the runs that killed processes of this home left open."""
    closed = tracking.close_orphans()
    if closed:
        logger.warning("%d runs in MLflow were left open by killed processes and are now closed", len(closed))
    with get_client(sync_client=True) as client:
        _close_flow_runs(client)
        _close_task_runs(client)
    processes.sweep()


def _of(*types: StateType) -> dict[str, Any]:
    """What filters runs by their states."""
    return {"state": {"type": {"any_": types}}}


def _close_flow_runs(client: SyncPrefectClient) -> None:
    still = FlowRunFilter.model_validate(_of(StateType.RUNNING, StateType.CANCELLING))
    for flow_run in client.read_flow_runs(flow_run_filter=still):
        if processes.is_gone(str(flow_run.labels.get(LABEL, ""))):
            with contextlib.suppress(ObjectNotFound):  # deleted meanwhile
                client.set_flow_run_state(flow_run.id, Crashed(message=REASON), force=True)


def _close_task_runs(client: SyncPrefectClient) -> None:
    """Nobody else does: a task run is closed by the process that runs it, also where a worker closes the flow run."""
    ended = FlowRunFilter.model_validate(_of(StateType.CRASHED, StateType.CANCELLED))
    still = TaskRunFilter.model_validate(_of(StateType.PENDING, StateType.RUNNING, StateType.CANCELLING))
    for task_run in client.read_task_runs(flow_run_filter=ended, task_run_filter=still):
        with contextlib.suppress(ObjectNotFound):
            client.set_task_run_state(task_run.id, Crashed(message=REASON), force=True)


@contextlib.contextmanager
def closed_regularly() -> Iterator[None]:
    """Closes them again and again while the block runs.

    A run whose worker is killed is told to end, and says so to the server; if nobody hears it, it would run for ever.
    """
    left = threading.Event()

    def look() -> None:
        while not left.wait(EVERY_S):
            try:
                close()
            except Exception as error:  # a server that starts again: the next look finds the same
                logger.warning("runs that were left open could not be closed yet: %s", error)

    # Prefect keeps its settings in the context, of which a thread gets none by itself.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(look,), name="orphans", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
