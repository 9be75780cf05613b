"""A day with the servers: runs are triggered over the API, recorded in MLflow, many at once, on time, and killed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import StateType

from flows.servers import deployments
from tests import servers
from tests.flows.servers.triggering import finished, recorded, trigger, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Running]:
    folder = tmp_path_factory.mktemp("day")
    with servers.up(folder / "home", folder / "log", "--limit", "2") as running:
        yield running


@pytest.fixture
def client(day: servers.Running) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(day.api, auth_string=day.password) as client:
        yield client


def test_a_run_from_the_api_is_recorded_and_linked_both_ways(
    day: servers.Running, client: SyncPrefectClient, tiny: dict[str, Any]
) -> None:
    run = finished(client, trigger(client, tiny))
    assert run.state.type == StateType.COMPLETED, run.state.message
    (pipeline,) = [one for one in recorded(day.tracking) if one.data.tags["prefect.flow_run_id"] == str(run.id)]
    assert pipeline.info.status == "FINISHED"
    url = pipeline.data.tags["prefect.flow_run_url"]
    assert url.startswith(f"http://127.0.0.1:{day.prefect}/")
    assert url.endswith(str(run.id))
    assert pipeline.inputs.dataset_inputs[0].dataset.name == tiny["data"]["source"]
    artifacts = {one.key: one for one in client.read_artifacts() if one.flow_run_id == run.id}
    assert {"mlflow-run", "tiny-verdict", "tiny-stages", "train-progress", "distill-progress"} <= artifacts.keys()
    assert pipeline.info.run_id in str(artifacts["mlflow-run"].data)
    assert artifacts["train-progress"].data == 100


def test_again_every_model_stage_is_cached_and_says_so(client: SyncPrefectClient, tiny: dict[str, Any]) -> None:
    run = finished(client, trigger(client, tiny))
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    states = {task.name.rpartition("-")[0]: task.state_name for task in tasks}
    assert all(states[name] == "Cached" for name in ("train", "distill", "prune", "quantize", "export", "validate"))


def test_fields_that_contradict_each_other_fail_before_any_compute(
    client: SyncPrefectClient, tiny: dict[str, Any]
) -> None:
    run = finished(client, trigger(client, tiny, data={"label": "text"}))
    assert run.state.type == StateType.FAILED
    assert "recipe tiny: data: text and label are both column 'text'; name two columns" in run.state.message


def test_twenty_at_once_all_end_and_none_is_lost(
    day: servers.Running, client: SyncPrefectClient, tiny: dict[str, Any]
) -> None:
    versions = lambda: len(MlflowClient(day.tracking, day.tracking).search_model_versions("name = 'tiny'"))  # noqa: E731
    before, versions_before = len(recorded(day.tracking)), versions()
    triggered = [trigger(client, tiny) for _ in range(20)]
    states = [finished(client, run, 900).state.type for run in triggered]
    assert states == [StateType.COMPLETED] * 20
    ids = [one.data.tags["prefect.flow_run_id"] for one in recorded(day.tracking)]
    assert sorted(set(ids)) == sorted(ids)
    assert len(ids) == before + 20
    assert versions() == versions_before


def test_a_schedule_fires_on_time(client: SyncPrefectClient, tiny: dict[str, Any]) -> None:
    deployment = client.read_deployment_by_name("compress/compress-smoke")
    (created,) = client.create_deployment_schedules(
        deployment.id, [(IntervalSchedule(interval=timedelta(seconds=30)), True)], parameters={"recipe": tiny}
    )
    try:

        def fired() -> list[Any]:
            completed = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED]))
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=completed))
            started = [run for run in found if run.auto_scheduled and run.start_time]
            return [run for run in started if (run.start_time - run.expected_start_time).total_seconds() < 15]

        until(fired, 180)
    finally:
        client.delete_deployment_schedule(deployment.id, created.id)


def test_what_people_scheduled_outlives_a_new_registration(
    day: servers.Running, client: SyncPrefectClient, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = client.read_deployment_by_name("everyday/compress-my-data")
    (ready,) = deployment.schedules
    client.update_deployment_schedule(deployment.id, ready.id, active=True, parameters={"name": "mine"})
    client.create_deployment_schedules(
        deployment.id, [(CronSchedule(cron="0 3 * * *"), True)], parameters={"name": "theirs"}
    )
    monkeypatch.setenv("PREFECT_API_URL", day.api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", day.password)
    settings = {PREFECT_API_URL: day.api, PREFECT_API_AUTH_STRING: day.password}
    with temporary_settings(settings):
        for _ in range(2):
            deployments.register(limit=2)
    found = client.read_deployment_by_name("everyday/compress-my-data").schedules
    told = sorted((one.schedule.cron, one.active, one.parameters["name"]) for one in found)
    assert told == [("0 2 * * *", True, "mine"), ("0 3 * * *", True, "theirs")]
    for one in found:
        client.update_deployment_schedule(deployment.id, one.id, active=False)


def test_a_killed_worker_leaves_no_run_open_and_no_process(
    day: servers.Running, client: SyncPrefectClient, tiny: dict[str, Any]
) -> None:
    run = trigger(client, tiny, seed=7)
    until(lambda: [one for one in recorded(day.tracking, "stage") if one.info.status == "RUNNING"], 120)
    (worker,) = [p for p in day.children() if "worker" in p.cmdline() and p.ppid() == day.supervisor.pid]
    working = worker.children(recursive=True)
    assert working
    worker.kill()
    _, left = psutil.wait_procs(working, timeout=30)
    assert not left, "the run outlived its worker"
    until(lambda: "worker ended with status -9" in day.said(), 30)
    ended = finished(client, run, 300)
    assert ended.state.type in (StateType.CRASHED, StateType.FAILED), ended.state
    finished(client, trigger(client, tiny), 300)
    assert not [one for one in recorded(day.tracking) if one.info.status == "RUNNING"]


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_server_that_is_restarted_costs_nothing(
    day: servers.Running, client: SyncPrefectClient, tiny: dict[str, Any], name: str
) -> None:
    run = trigger(client, tiny, seed=len(name))
    until(lambda: [one for one in recorded(day.tracking, "stage") if one.info.status == "RUNNING"], 120)
    marks = {"prefect": "flows.servers.gate", "mlflow": "mlflow"}
    (server,) = [p for p in day.supervisor.children() if marks[name] in p.cmdline()]
    left = server.children(recursive=True)
    server.kill()
    run = finished(client, run, 400)
    assert run.state.type == StateType.COMPLETED, run.state.message
    assert not psutil.wait_procs(left, timeout=30)[1], "what it had started answered in place of the new one"


def test_the_home_is_one_that_the_command_line_shows(day: servers.Running) -> None:
    assert (day.home / "mlflow.db").is_file()
    assert Path(day.home / "prefect" / "prefect.db").is_file()
