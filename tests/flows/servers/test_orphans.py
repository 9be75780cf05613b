"""What a killed process left open is closed; what another one is still doing is left alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Crashed, Running

from flows import ablation, compress, promote, search, study
from flows.flow import flow
from flows.servers import orphans
from tasks.engine import processes, redaction, tracking
from tests.tasks import tiny_stages

ROOT = Path(__file__).parents[3]
WORK = """
import sys, time
from tasks.engine import processes, tracking
with tracking.pipeline_run("films", {}, run_name="r") as run_id:
    with tracking.stage_run("train", run_id, {}) as stage:
        print(run_id, stage.run_id, processes.this_process(), sep=";", flush=True)
        time.sleep(600)
"""
PROMOTE = """
import time
from tasks.engine import processes
print(processes.this_process(), flush=True)
time.sleep(600)
"""


def start(code: str) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip().split(";")


def status(run_id: str) -> str:
    return str(tracking.client().get_run(run_id).info.status)


def open_in_prefect(client: SyncPrefectClient, process: str) -> tuple[str, str]:
    """A flow run that a process signed, with a task run in it."""
    flow_run = client.create_flow_run(promote.promote, parameters={"name": "n"}, state=Running())
    client.update_flow_run_labels(flow_run.id, {orphans.LABEL: process})
    task_run = client.create_task_run(tiny_stages.one_task, flow_run.id, dynamic_key="0", state=Running())
    return flow_run.id, task_run.id


def test_killed_runs_are_closed_in_both_and_running_ones_are_not() -> None:
    killed, (*killed_runs, killed_process) = start(WORK)
    working, (*working_runs, working_process) = start(WORK)
    try:
        with get_client(sync_client=True) as client:
            gone, left = open_in_prefect(client, killed_process), open_in_prefect(client, working_process)
            killed.kill()
            killed.wait()
            assert [status(run) for run in killed_runs] == ["RUNNING", "RUNNING"]
            orphans.close()
            assert [status(run) for run in killed_runs] == ["KILLED", "KILLED"]
            assert [status(run) for run in working_runs] == ["RUNNING", "RUNNING"]
            states = [client.read_flow_run(gone[0]).state, client.read_task_run(gone[1]).state]
            assert all(state is not None and state.is_crashed() for state in states)
            assert [state.message for state in states if state] == [orphans.REASON] * 2
            states = [client.read_flow_run(left[0]).state, client.read_task_run(left[1]).state]
            assert all(state is not None and state.is_running() for state in states)
    finally:
        for process in (killed, working):
            process.kill()
            process.wait()


def test_task_runs_are_closed_also_where_a_worker_closed_the_flow_run() -> None:
    with get_client(sync_client=True) as client:
        flow_run, task_run = open_in_prefect(client, processes.this_process())
        client.set_flow_run_state(flow_run, Crashed(message="the worker saw it"), force=True)
        orphans.close()
        state = client.read_task_run(task_run).state
        assert state is not None
        assert state.is_crashed()
        assert client.read_flow_run(flow_run).state.message == "the worker saw it"  # type: ignore[union-attr]


def test_while_servers_run_they_are_closed_without_a_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "EVERY_S", 0.2)
    killed, (process,) = start(PROMOTE)
    with get_client(sync_client=True) as client:

        def is_crashed() -> bool:
            state = client.read_flow_run(flow_run).state
            return state is not None and state.is_crashed()

        flow_run, _ = open_in_prefect(client, process)
        with orphans.closed_regularly():
            time.sleep(1)
            assert not is_crashed()
            killed.kill()
            killed.wait()
            deadline = time.monotonic() + 60
            while not is_crashed():
                assert time.monotonic() < deadline, "nobody closed it"
                time.sleep(0.2)


@pytest.mark.parametrize("module", [ablation, compress, promote, search, study])
def test_every_flow_is_signed_by_its_process(module: object) -> None:
    flows = [value for value in vars(module).values() if isinstance(value, Flow)]
    assert flows
    assert all(orphans.sign in one.on_running_hooks for one in flows)
    assert all(one.fn.__code__ is redaction.cleansing(len).__code__ for one in flows), "errors leave clean"


def test_a_signed_flow_run_names_its_process() -> None:
    @flow(name="signed")
    def signed() -> str:
        from prefect.runtime import flow_run

        return str(flow_run.id)

    with get_client(sync_client=True) as client:
        assert client.read_flow_run(signed()).labels[orphans.LABEL] == processes.this_process()
