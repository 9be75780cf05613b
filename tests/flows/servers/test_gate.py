"""The gate of Prefect's server: what a page of anybody sends from this machine's browser is refused."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

from flows.servers import deployments, gate
from tasks.engine import secret

STRANGE = [
    {"Origin": "https://anybody.example"},
    {"Origin": "null"},  # what a sandboxed frame says
    {"Host": "anybody.example"},  # a name that its owner lets point to loopback
    {"Host": "127.0.0.1"},
    {"Host": "127.0.0.1.anybody.example"},
]


@pytest.fixture(scope="module")
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def deployment(client: SyncPrefectClient) -> uuid.UUID:
    deployments._ensure_pool(1)
    flow = client.create_flow_from_name("a-flow-of-the-gate")
    return client.create_deployment(flow, "here", work_pool_name=deployments.POOL, entrypoint="nowhere.py:flow")


def runs(client: SyncPrefectClient, deployment: uuid.UUID) -> int:
    return len([run for run in client.read_flow_runs() if run.deployment_id == deployment])


def password() -> tuple[str, str]:
    user, _, word = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    return user, word


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded"])
def test_a_page_that_lacks_the_password_starts_nothing(
    client: SyncPrefectClient, prefect_api: str, deployment: uuid.UUID, kind: str
) -> None:
    """As a form or a script sends it across origins, which browsers do without asking the server first."""
    content = '{"state": {"type": "SCHEDULED"}, "job_variables": {"command": "touch /tmp/owned"}}'
    url = f"{prefect_api}/deployments/{deployment}/create_flow_run"
    for headers in ({}, *STRANGE):
        answer = httpx.post(url, content=content, headers={"Content-Type": kind, **headers})
        assert answer.status_code == (403 if headers else 401), headers
        assert "access-control-allow-origin" not in answer.headers
    assert runs(client, deployment) == 0


def test_not_even_with_the_password_or_where_none_is_needed(prefect_api: str) -> None:
    for method in ("GET", "OPTIONS"):
        for headers in STRANGE:
            answer = httpx.request(method, f"{prefect_api}/health", auth=password(), headers=headers)
            assert answer.status_code == 403, headers


def test_the_own_page_is_answered(prefect_api: str) -> None:
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(prefect_api))
    answer = httpx.get(f"{prefect_api}/admin/version", auth=password(), headers={"Origin": origin})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["x-frame-options"] == "DENY"


def test_the_own_page_talks_to_its_own_server_only(prefect_api: str) -> None:
    (host,) = [host for host in gate.of_loopback(urlsplit(prefect_api).port or 0) if host.startswith("127")]
    answer = httpx.get(prefect_api.removesuffix("/api"), auth=password(), follow_redirects=True)
    kind, *allowed = answer.headers["content-security-policy"].split()
    assert kind == "connect-src"
    assert {"'self'", f"http://{host}", f"ws://{host}"} <= set(allowed)
    assert all(urlsplit(one).hostname in ("127.0.0.1", "localhost") for one in allowed if one != "'self'")


def test_a_run_cannot_choose_what_executes_it(client: SyncPrefectClient, deployment: uuid.UUID) -> None:
    """Also of who has the password."""
    chosen: list[dict[str, Any]] = [
        {"command": "touch /tmp/owned"},
        {"env": {"LD_PRELOAD": "/tmp/owned.so"}},
        {"env.PYTHONPATH": "/tmp"},
        {"working_dir": "/tmp"},
    ]
    for variables in chosen:
        with pytest.raises(PrefectHTTPStatusError, match="Additional properties are not allowed"):
            client.create_flow_run_from_deployment(deployment, job_variables=variables)
    assert runs(client, deployment) == 0


def test_the_pool_of_an_older_home_gets_the_closed_template(client: SyncPrefectClient, deployment: uuid.UUID) -> None:
    open_template = ProcessWorker.get_default_base_job_template()
    client.update_work_pool(deployments.POOL, WorkPoolUpdate(base_job_template=open_template))
    deployments._ensure_pool(2)
    assert client.read_work_pool(deployments.POOL).base_job_template["job_configuration"] == {"stream_output": True}


def test_a_socket_of_a_strange_page_is_closed_before_it_opens() -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("it got through")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/api/events/in",
        "headers": [(b"host", b"localhost:4200"), (b"origin", b"https://anybody.example")],
    }
    asyncio.run(gate.Gate(app, hosts=gate.of_loopback(4200))(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_password_is_made_once_and_is_its_owners_alone() -> None:
    made = secret.of_home("prefect", "featherweight:")
    assert made == secret.of_home("prefect", "featherweight:") == secret.known("prefect")
    assert len(made) > 50
    assert secret.path("prefect").stat().st_mode & 0o777 == 0o600
    assert secret.path("prefect").parent.stat().st_mode & 0o777 == 0o700
