"""up: a Prefect server, an MLflow server and a worker on this machine, under one supervisor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from flows.servers import deployments, embedded, gate
from flows.servers.supervisor import Service, Supervisor, guarded, interruptible, say, search_path
from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, secret
from tasks.ml import machine

HOST = "127.0.0.1"
"""Loopback only: who wants more puts a proxy with authentication before it."""


@dataclass(frozen=True)
class Ports:
    """TCP ports of the two servers."""

    prefect: int
    mlflow: int

    def require_free(self) -> None:
        """Raises ``FeatherweightError`` if the ports are the same or one is taken."""
        if self.prefect == self.mlflow:
            raise FeatherweightError(f"--prefect-port and --mlflow-port are both {self.prefect}; two are needed")
        for option, port in (("--prefect-port", self.prefect), ("--mlflow-port", self.mlflow)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise FeatherweightError(
                        f"port {port} on {HOST} cannot be used ({error.strerror}); end what uses it, or give {option}"
                    ) from None

    @property
    def prefect_url(self) -> str:
        return f"http://{HOST}:{self.prefect}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.mlflow}"


def environment(ports: Ports) -> dict[str, str]:
    """What servers, worker and runs share: one home, the addresses of the servers, and the password of Prefect's."""
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or secret.of_home(embedded.PASSWORD, embedded.USER)
    return {
        **machine.environment(),
        "FEATHERWEIGHT_HOME": str(disk.home()),
        disk.SHARED: "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": ports.mlflow_url,
        "PATH": search_path(),
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_API_URL": f"{ports.prefect_url}/api",
        "PREFECT_HOME": str(disk.home() / "prefect"),
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_SERVER_UI_ENABLED": "true",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # the server is next door, and a person who pressed Run is waiting
        "PYTHONUNBUFFERED": "1",
    }


def migrate(shared: dict[str, str]) -> None:
    """Brings both databases up to date, once and before any server opens them."""
    local = f"sqlite:///{disk.home() / 'mlflow.db'}"
    commands = (
        [sys.executable, "-m", "flows.servers.embedded", "migrate"],
        [sys.executable, "-c", "from tasks.engine import tracking; tracking.client()"],
    )

    def run(command: list[str]) -> None:
        done = subprocess.run(
            command, env={**shared, "MLFLOW_TRACKING_URI": local}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:]
            raise FeatherweightError(f"a database under {disk.home()} could not be migrated: {' '.join(last)}")

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, commands))


def _answers(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)

    return answers


def services(ports: Ports, *, limit: int) -> tuple[Service, Service, Service]:
    """The Prefect server, the MLflow server and the worker."""
    python = [sys.executable, "-m"]
    prefect = Service(
        "prefect",
        [*python, "flows.servers.gate", "--host", HOST, "--port", str(ports.prefect)],
        _answers(f"{ports.prefect_url}/api/health"),
        ports.prefect_url,
    )
    mlflow = Service(
        "mlflow",
        [
            *python, "mlflow", "server", "--host", HOST, "--port", str(ports.mlflow), "--workers", "1",
            "--uvicorn-opts", "--log-level warning",
            "--backend-store-uri", f"sqlite:///{disk.home() / 'mlflow.db'}",
            "--artifacts-destination", (disk.home() / "mlartifacts").as_uri(),
            *(["--app-name", "basic-auth"] if os.environ.get("MLFLOW_AUTH_CONFIG_PATH") else []),
        ],
        _answers(f"{ports.mlflow_url}/health"),
        ports.mlflow_url,
    )  # fmt: skip
    worker = Service(
        "worker",
        [*python, "prefect", "worker", "start", "--pool", deployments.POOL, "--name", WORKER, "--limit", str(limit)],
        lambda: deployments.worker_is_online(WORKER),
    )
    return prefect, mlflow, worker


WORKER = f"featherweight-{socket.gethostname()}"


def up(
    ports: Ports, *, limit: int, check: bool = False, announce: Callable[[Mapping[str, Any]], None] | None = None
) -> None:
    """Runs everything until interrupted, or, to check, until each part has answered.

    Args:
        limit: runs that the worker executes at once.
        announce: told where everything is, once each part has answered.

    Raises:
        FeatherweightError: a port is taken, or a part does not answer.
    """
    ports.require_free()
    started = time.monotonic()
    shared = environment(ports)
    os.environ.update(shared)
    prefect, mlflow, worker = services(ports, limit=limit)

    def ready(service: Service, text: str) -> None:
        supervisor.wait_until_ready(service)
        say(f"{service.name}: {text} ({time.monotonic() - started:.0f} s)")

    with (
        guarded(),
        interruptible(),
        _heard_on_failure() if check else nullcontext(say) as hear,
        Supervisor(shared, say=hear) as supervisor,
    ):
        say(f"bringing the databases under {disk.home()} up to date")
        migrate(shared)
        for service in (prefect, mlflow):
            supervisor.start(service)
        for service in (prefect, mlflow):
            ready(service, "answers")
        from flows.servers import links, orphans  # import Prefect, which reads its settings from the environment

        orphans.close()
        names = deployments.register(limit=limit)
        say(f"deployments: {', '.join(names)}")
        supervisor.start(worker)
        ready(worker, f"{WORKER} takes runs from the pool {deployments.POOL}, {limit} at once")
        pages = {"deployments": f"{prefect.where}{gate.DEPLOYMENTS}", "runs": links.runs(mlflow.where)}
        say(f"prefect: {pages['deployments']}")  # not before a person who opens it sees them
        say(f"mlflow: {pages['runs']}")
        if announce:
            servers = {one.name: one.where for one in (prefect, mlflow)}
            announce({**servers, "worker": WORKER, "deployments": names, "pages": pages})
        if check:
            return
        _offer_sign_in(ports, shared["PREFECT_SERVER_API_AUTH_STRING"])
        say("Ctrl-C ends all of it")
        with orphans.closed_regularly():
            supervisor.watch()


def _offer_sign_in(ports: Ports, password: str) -> None:
    """Tells a person at the terminal how a browser signs in; a log is told where that is written."""
    link = gate.sign_in_link(ports.prefect_url, password)
    kept = secret.keep("sign-in", f"{link}\n")
    if sys.stderr.isatty():
        print(f"sign in to Prefect, and see the deployments: {link}", file=sys.stderr)
    else:
        say(f"sign in to Prefect: the link is in {kept}")


@contextmanager
def _heard_on_failure() -> Iterator[Callable[[str], None]]:
    """Keeps lines to itself unless the block fails."""
    lines: list[str] = []
    try:
        yield lines.append
    except FeatherweightError:
        for line in lines:
            say(line)
        raise
