"""The services of ``infra/compose.yaml`` as plain processes: each with its own command, environment and health check.

Names and ports of containers become sockets and ports of this machine. PostgreSQL is a real one; the object
store is moto's server, which speaks S3. Every worker has a disk of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg2
import yaml
from botocore.exceptions import EndpointConnectionError

from flows.servers.supervisor import search_path
from tests import needs, servers

COMPOSE = servers.ROOT / "infra" / "compose.yaml"
SECRETS = {
    "FEATHERWEIGHT_SECRET": "workers-of-the-test",
    "POSTGRES_PASSWORD": "postgres-of-the-test",
    "PREFECT_AUTH": "team:prefect-of-the-test",
    "S3_SECRET_KEY": "s3-of-the-test",
}
INSTALLED = ["infra/run", "python"]
"""How a health check says: the Python of this installation."""


@dataclass
class Team:
    """The running services, and workers that come and go."""

    folder: Path
    ports: dict[str, int]
    services: dict[str, Any] = field(init=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.services = yaml.safe_load(self.translated(COMPOSE.read_text(encoding="utf-8")))["services"]

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}/api"

    @property
    def tracking(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.ports['objects']}",
            aws_access_key_id="featherweight",
            aws_secret_access_key=SECRETS["S3_SECRET_KEY"],
            region_name="us-east-1",
        )

    def translated(self, text: str) -> str:
        """Fills in variables as compose does, and puts addresses of this machine for those of containers."""
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: SECRETS[found[1]], text)
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        for name, port in (("postgres", 5432), ("objects", 9000), ("prefect", 4200), ("mlflow", 5000)):
            text = re.sub(rf"\b({name}|localhost|127\.0\.0\.1):{port}\b", f"127.0.0.1:{self.ports[name]}", text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def environment(self, name: str, home: Path) -> dict[str, str]:
        return {
            **servers.environment(home),
            **self.services[name].get("environment", {}),
            "PATH": search_path(),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_SERVER_API_PORT": str(self.ports["prefect"]),
            "MLFLOW_PORT": str(self.ports["mlflow"]),
        }

    def log(self, label: str) -> str:
        return (self.folder / f"{label}.log").read_text(encoding="utf-8", errors="replace")

    def start(self, name: str, label: str = "", *options: str, **variables: str) -> Path:
        """Starts a service with its command of the compose file, and returns its home."""
        label = label or name
        home = self.folder / label
        home.mkdir(exist_ok=True)
        with (self.folder / f"{label}.log").open("ab") as log:
            self.processes[label] = subprocess.Popen(
                [*self.services[name]["command"], *options],
                cwd=servers.ROOT,
                env={**self.environment(name, home), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return home

    def wait_until_healthy(self, name: str) -> None:
        """Asks as the health check of the compose file does."""
        kind, *check = self.services[name]["healthcheck"]["test"]
        assert (kind, check[:2]) == ("CMD", INSTALLED)
        deadline = time.monotonic() + 180
        while subprocess.run([sys.executable, *check[2:]], capture_output=True, check=False).returncode != 0:
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.5)

    def finish(self, name: str) -> None:
        """Runs a service that does one thing and ends."""
        self.start(name)
        assert self.processes[name].wait(timeout=300) == 0, self.log(name)

    def worker(self, label: str) -> Path:
        """Starts a worker that takes one run at a time, and returns its home."""
        (port,) = servers.free_ports(1)
        polling = {"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
        return self.start("worker", label, "--name", label, "--limit", "1", **polling)

    def stop(self, label: str) -> None:
        """Ends a process and whatever it started, as a container is ended."""
        process = self.processes.pop(label)
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(timeout=30)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Team]:
    """Yields the servers of a team with their deployments registered, and no worker yet."""
    names = ("postgres", "objects", "prefect", "mlflow")
    team = Team(folder, dict(zip(names, servers.free_ports(len(names)), strict=True)))
    with _postgres(team):
        try:
            team.services["objects"]["command"] = ["moto_server", "--port", str(team.ports["objects"])]
            team.start("objects")
            bucket = team.services["bucket"]["command"][-1].partition("/")[2]
            _when_ready(lambda: team.s3.create_bucket(Bucket=bucket), EndpointConnectionError)
            for name in ("prefect", "mlflow"):
                team.start(name)
            for name in ("prefect", "mlflow"):
                team.wait_until_healthy(name)
            team.finish("deployments")
            yield team
        finally:
            for label in reversed(list(team.processes)):
                team.stop(label)


@contextlib.contextmanager
def _postgres(team: Team) -> Iterator[None]:
    """Debian's PostgreSQL on a port of its own, with a password; it refuses to be root."""
    programs = needs.debian("postgresql", max(Path("/usr/lib/postgresql").glob("*/bin"), default=None))
    account: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
    given = team.services["postgres"]["environment"]
    with tempfile.TemporaryDirectory() as folder:
        data, password = Path(folder) / "data", Path(folder) / "password"
        password.write_text(given["POSTGRES_PASSWORD"], encoding="utf-8")
        if account:
            for path in (Path(folder), password):
                shutil.chown(path, "postgres")
        subprocess.run(
            [
                programs / "initdb", "--pgdata", data, "--username", given["POSTGRES_USER"], "--pwfile", password,
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync",
            ],
            cwd=folder, check=True, capture_output=True, **account,
        )  # fmt: skip
        with (team.folder / "postgres.log").open("wb") as log:
            port = str(team.ports["postgres"])
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", folder],
                cwd=folder, stdout=log, stderr=log, **account,
            )  # fmt: skip
        try:
            _create_databases(team, given)
            yield
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            server.wait(timeout=60)


def _create_databases(team: Team, given: dict[str, str]) -> None:
    where = f"host=127.0.0.1 port={team.ports['postgres']} user={given['POSTGRES_USER']} dbname=postgres"
    connection = _when_ready(
        lambda: psycopg2.connect(where, password=given["POSTGRES_PASSWORD"]), psycopg2.OperationalError
    )
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {given['POSTGRES_DB']}")
        cursor.execute(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["configs"]["databases"]["content"])


def _when_ready(attempt: Callable[[], Any], refusal: type[Exception]) -> Any:
    """Tries until it is no longer refused."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return attempt()
        except refusal:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
