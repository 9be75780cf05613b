"""Runs whose process was killed: closed at the next start, in MLflow and in Prefect, so that none runs for ever."""

from __future__ import annotations

import logging

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.runtime import deployment
from prefect.states import Crashed, StateType

from tasks import tracking
from tasks.ml import machine

logger = logging.getLogger("featherweight")

REASON = "its process was killed"


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
