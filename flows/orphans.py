"""Runs whose process was killed: closed in MLflow and in Prefect, at the next start or while ``up`` runs."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.runtime import deployment
from prefect.states import Crashed, StateType

from tasks import tracking
from tasks.ml import machine

logger = logging.getLogger("featherweight")

REASON = "its process was killed"
EVERY_S = 20.0
"""Between two looks for runs that were left open, while servers run."""


def end_with_worker() -> None:
    """Lets a run that a worker started be ended when the worker is killed."""
    if deployment.id:
        machine.end_with_parent()


def close() -> None:
    """Closes the runs that killed processes of this host left open."""
    closed = tracking.close_orphans()
    if closed:
        logger.warning("%d runs in MLflow were left open by killed processes and are now closed", len(closed))
    open_states = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
    with get_client(sync_client=True) as client:
        for flow_run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=open_states)):
            if tracking.was_left(f"tags.`prefect.flow_run_id` = '{flow_run.id}'"):
                client.set_flow_run_state(flow_run.id, Crashed(message=REASON), force=True)


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
