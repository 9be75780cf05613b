"""``featherweight up``: every part answers, and nothing is left afterwards."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests import servers

pytestmark = pytest.mark.timeout(600)


def up(home: Path, *options: str, ports: list[int]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        servers.command(*options, ports=ports), cwd=servers.ROOT, env=servers.environment(home),
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_check_sees_every_part_answer_and_leaves_nothing(home: Path) -> None:
    ports = servers.free_ports(2)
    done = up(home, "--check", "--json", ports=ports)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["prefect"] == f"http://127.0.0.1:{ports[0]}"
    assert told["mlflow"] == f"http://127.0.0.1:{ports[1]}"
    assert "compress/compress-demo" in told["deployments"]
    lines = [line.partition(" (")[0] for line in done.stderr.splitlines()]
    prefect, mlflow = told["pages"]["deployments"], told["pages"]["runs"]
    assert prefect == f"{told['prefect']}/deployments"
    assert mlflow == f"{told['mlflow']}/#/experiments?workflowType=machine_learning"
    registered = [
        i for i, line in enumerate(lines) if "compress/compress-demo" in line and "promote/make-champion" in line
    ]
    ready = [i for i, line in enumerate(lines) if line.startswith("worker: ")]
    offered = [lines.index(f"prefect: {prefect}"), lines.index(f"mlflow: {mlflow}")]
    assert max(*registered, *ready) < min(offered), "a page that is offered would be empty"
    left = [
        p.pid for p in psutil.process_iter(["cmdline"]) if any(str(port) in (p.info["cmdline"] or []) for port in ports)
    ]
    assert not left


@pytest.mark.slow
def test_both_servers_ask_for_a_password_and_none_outlives_up(home: Path, tmp_path: Path) -> None:
    """Worker and deployments get in, who has no password does not, and no password is in what is said.

    At the end it is killed outright, which leaves nothing either.
    """
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{tmp_path / 'users.db'}",
        "admin_username": "admin",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (tmp_path / "auth.ini").write_text("\n".join(["[mlflow]", *lines]), encoding="utf-8")
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "mlflow-of-the-test",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "key-of-the-test",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "mlflow-of-the-test",
        "PREFECT_SERVER_API_AUTH_STRING": "team:prefect-of-the-test",
    }
    with servers.up(home, tmp_path / "log", **variables) as running:
        searching = "/api/2.0/mlflow/experiments/search?max_results=1"
        for url in (f"{running.api}/admin/version", f"{running.tracking}{searching}"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url)
        assert "of-the-test" not in running.said()
        family = running.children()
        running.process.kill()
        assert not psutil.wait_procs(family, timeout=60)[1], "they would hold their ports"


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = up(home, "--check", ports=[port, *servers.free_ports(1)])
    assert done.returncode == 2
    assert done.stderr == (
        f"featherweight: port {port} on 127.0.0.1 cannot be used (Address already in use); "
        "end what uses it, or give --prefect-port\n"
    )
    assert not (home / "prefect").exists()


def test_two_servers_need_two_ports(home: Path) -> None:
    (port,) = servers.free_ports(1)
    done = up(home, ports=[port, port])
    assert done.returncode == 2
    assert "two are needed" in done.stderr
