"""What a killed process left open is closed; what another one is still doing is left alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Running

from flows import orphans
from flows.compress import compress
from tasks import tracking

ROOT = Path(__file__).parent.parent.parent
WORK = """
import sys, time
from tasks import tracking
with tracking.pipeline_run("films", {}, run_name="r", tags={"prefect.flow_run_id": sys.argv[1]}) as run_id:
    with tracking.stage_run("train", run_id, {}) as stage:
        print(run_id, stage.run_id, flush=True)
        time.sleep(600)
"""


def worker(flow_run_id: str = "") -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen([sys.executable, "-c", WORK, flow_run_id], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def status(run_id: str) -> str:
    return str(tracking.client().get_run(run_id).info.status)


def test_killed_runs_are_closed_in_both_and_running_ones_are_not() -> None:
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(compress, state=Running())
        killed, killed_runs = worker(str(flow_run.id))
        working, working_runs = worker()
        try:
            killed.kill()
            killed.wait()
            assert [status(run) for run in killed_runs] == ["RUNNING", "RUNNING"]
            orphans.close()
            assert [status(run) for run in killed_runs] == ["KILLED", "KILLED"]
            assert [status(run) for run in working_runs] == ["RUNNING", "RUNNING"]
            state = client.read_flow_run(flow_run.id).state
            assert state is not None
            assert state.is_crashed()
            assert state.message == orphans.REASON
        finally:
            for process in (killed, working):
                process.kill()
                process.wait()


def test_while_servers_run_they_are_closed_without_a_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "EVERY_S", 0.2)
    with get_client(sync_client=True) as client:

        def is_crashed() -> bool:
            state = client.read_flow_run(flow_run.id).state
            return state is not None and state.is_crashed()

        flow_run = client.create_flow_run(compress, state=Running())
        with orphans.closed_regularly():
            killed, (run, _) = worker(str(flow_run.id))
            time.sleep(1)
            assert status(run) == "RUNNING"
            killed.kill()
            killed.wait()
            deadline = time.monotonic() + 60
            while not (is_crashed() and status(run) == "KILLED"):
                assert time.monotonic() < deadline, "nobody closed it"
                time.sleep(0.2)


@pytest.mark.parametrize("process", ["elsewhere 1 0", f"{'x' * 300} 99999999 0"])
def test_a_process_of_another_host_is_never_taken_for_dead(process: str) -> None:
    assert not tracking.is_gone(process)


def test_this_process_is_not_gone() -> None:
    assert not tracking.is_gone(tracking.this_process())
