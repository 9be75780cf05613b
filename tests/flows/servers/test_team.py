"""A team's servers, as ``infra/compose.yaml`` has them: two workers on one pool that share no disk."""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import StateType

from tests.flows.servers import team as topology
from tests.flows.servers.team import Team
from tests.flows.servers.triggering import finished, recorded, trigger, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL_STAGES = ("train", "distill", "prune", "quantize", "export", "validate")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with topology.started(tmp_path_factory.mktemp("team")) as team:
        yield team


@pytest.fixture
def client(team: Team) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(team.api, auth_string=topology.SECRETS["PREFECT_AUTH"]) as client:
        yield client


def stages_of(team: Team, run: Any) -> dict[str, Any]:
    """MLflow runs of a flow run's stages, by stage."""
    (parent,) = [one for one in recorded(team.tracking) if one.data.tags["prefect.flow_run_id"] == str(run.id)]
    stages = recorded(team.tracking, "stage")
    children = [one for one in stages if one.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    return {one.data.tags["featherweight.stage"]: one for one in children}


def cached(stages: dict[str, Any]) -> set[str]:
    return {name for name, one in stages.items() if one.data.tags.get("featherweight.cached") == "true"}


def objects(home: Path) -> set[str]:
    return {path.name for path in (home / "store" / "objects").iterdir()}


def test_who_has_no_password_is_refused(team: Team) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{team.api}/admin/version")


def test_a_worker_with_an_empty_disk_goes_on_from_what_another_made(
    team: Team, client: SyncPrefectClient, tiny: dict[str, Any]
) -> None:
    first_home = team.worker("first")
    first = finished(client, trigger(client, tiny))
    assert first.state.type == StateType.COMPLETED, first.state.message
    computed = stages_of(team, first)
    assert not cached(computed)
    assert all(one.info.artifact_uri.startswith("mlflow-artifacts:/") for one in computed.values())
    keys = [one["Key"] for one in team.s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any("/objects/" in key for key in keys), keys
    team.stop("first")

    second_home = team.worker("second")
    assert not (second_home / "store").exists()
    second = finished(client, trigger(client, tiny))
    assert second.state.type == StateType.COMPLETED, second.state.message
    assert cached(stages_of(team, second)) >= {"prepare", *MODEL_STAGES}
    assert objects(second_home) == objects(first_home)
    versions = MlflowClient(team.tracking, team.tracking).search_model_versions("name = 'tiny'")
    assert len(versions) == 1, "the same bundle is the same version"

    changed = finished(client, trigger(client, tiny, quantization={"embeddings": "int4"}))
    assert changed.state.type == StateType.COMPLETED, changed.state.message
    assert cached(stages_of(team, changed)) == {"prepare", "train", "distill", "prune"}


def test_two_workers_share_the_work_and_nothing_is_lost(
    team: Team, client: SyncPrefectClient, tiny: dict[str, Any]
) -> None:
    team.worker("first")
    if "second" not in team.processes:
        team.worker("second")
    taken = lambda label: len(re.findall("submitting flow run", team.log(label)))  # noqa: E731
    before = {label: taken(label) for label in ("first", "second")}
    until(lambda: re.findall("started", team.log("first")), 60)
    runs = [finished(client, run, 600) for run in [trigger(client, tiny) for _ in range(6)]]
    assert [run.state.type for run in runs] == [StateType.COMPLETED] * 6
    assert all(taken(label) > before[label] for label in before), {label: team.log(label) for label in before}
    ids = [one.data.tags["prefect.flow_run_id"] for one in recorded(team.tracking)]
    assert {str(run.id) for run in runs} <= set(ids)
    assert len(set(ids)) == len(ids)
    assert not [one for one in recorded(team.tracking) if one.info.status == "RUNNING"]


def test_no_secret_reaches_a_log_or_a_run(team: Team) -> None:
    said = {label: team.log(label) for label in ("prefect", "mlflow", "deployments", "first", "second")}
    known = str([one.to_dictionary() for kind in ("pipeline", "stage") for one in recorded(team.tracking, kind)])
    commands = []
    for process in team.processes.values():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, or a child of it has since it was listed
            started = psutil.Process(process.pid)
            for one in [started, *started.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    commands.append(" ".join(one.cmdline()))
    assert len(commands) > 3, commands
    for name, secret in topology.SECRETS.items():
        assert secret not in known, name
        assert not [command for command in commands if secret in command], name
        assert not [label for label, text in said.items() if secret in text], name
