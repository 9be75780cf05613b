"""``featherweight up`` as a process, for tests that need the servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent


@dataclass
class Running:
    """Servers and worker of one home."""

    prefect: int
    mlflow: int
    home: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.prefect}/api"

    @property
    def password(self) -> str:
        """As Prefect's clients take it for ``auth_string``."""
        return (self.home / "secrets" / "prefect").read_text(encoding="utf-8")

    @property
    def sign_in(self) -> str:
        """The link that signs a browser in."""
        return (self.home / "secrets" / "sign-in").read_text(encoding="utf-8").strip()

    @property
    def tracking(self) -> str:
        return f"http://127.0.0.1:{self.mlflow}"

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def supervisor(self) -> psutil.Process:
        """Starts and restarts the parts, below the process that a person started and sees."""
        (only,) = psutil.Process(self.process.pid).children()
        return only

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of the tests, without the servers that they themselves run under, and what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    return {**kept, "FEATHERWEIGHT_HOME": str(home), "PYTHONUNBUFFERED": "1", **variables}


def command(*options: str, ports: list[int]) -> list[str]:
    return [
        sys.executable, "-m", "flows.command.cli", "up",
        "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]), *options,
    ]  # fmt: skip


@contextlib.contextmanager
def up(home: Path, log: Path, *options: str, **variables: str) -> Iterator[Running]:
    """Yields the servers once all parts answered; ends them as Ctrl-C does and sees that nothing is left."""
    ports = free_ports(2)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(*options, ports=ports), cwd=ROOT, env=environment(home, **variables), stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    running = Running(ports[0], ports[1], home, process, log)
    try:
        deadline = time.monotonic() + 420
        while "Ctrl-C ends all of it" not in running.said():
            assert process.poll() is None, running.said()
            assert time.monotonic() < deadline, running.said()
            time.sleep(0.2)
        yield running
    finally:
        family = running.children() if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=90)
        finally:
            _, left = psutil.wait_procs(family, timeout=5)
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
    assert not left, left
