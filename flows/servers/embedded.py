"""Embedded mode: where no server is configured, Prefect's API runs beside the command and all stays on this disk.

Imports neither Prefect nor MLflow, because both read their settings from the environment while they are imported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows.servers import gate
from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, redaction, secret
from tasks.ml import machine

STARTUP_TIMEOUT_S = 300.0
"""The first start also creates Prefect's database: 8 s on two idle cores."""

PRIVACY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Nothing calls home."""

MANNERS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "featherweight",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Pickles are refused; the libraries leave the terminal to us, and our log lines appear in Prefect's UI."""

NO_ONE_WATCHES = {
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""What a server with one client and no UI can do without, so that it starts sooner."""


USER, PASSWORD = "featherweight:", "prefect"
"""Who talks to a Prefect server of ours, and the name of the home's secret that is the password of ``up``."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def configure() -> None:
    """Sets the environment that Prefect, MLflow and the hub are to be imported in, except what the user has set.

    The password of this home's servers is part of it where Prefect is on this machine. Credentials leave the addresses.
    """
    redaction.take_out_of_addresses()
    for name, value in (PRIVACY | MANNERS).items():
        os.environ.setdefault(name, value)
    here = re.match(r"https?://(127\.0\.0\.1|localhost)[:/]", os.environ.get("PREFECT_API_URL", ""))
    if here and (password := secret.known(PASSWORD)):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    _spare_loopback()
    machine.keep_to_limits()


def _spare_loopback() -> None:
    """Lets no proxy be asked for this machine, whatever else one is set for."""
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    names = [name.strip() for name in said.split(",") if name.strip()]
    if "*" not in names:
        value = ",".join(dict.fromkeys([*names, *LOOPBACK]))
        os.environ.update(no_proxy=value, NO_PROXY=value)


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Imports in the block go without garbage collection: they free next to nothing, and looking takes a sixth of it.

    What they made is not looked through at the end of the process either, if ``gc.freeze`` is called there again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def is_embedded() -> bool:
    """Whether no Prefect server is configured."""
    return not os.environ.get("PREFECT_API_URL")


def require_server() -> str:
    """Returns the version of the configured Prefect server.

    Raises:
        FeatherweightError: it does not answer, or not to us.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    server = f"PREFECT_API_URL: {redaction.hide(os.environ['PREFECT_API_URL'])}"
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            raise FeatherweightError(
                f"{server} does not answer: {redaction.hide(str(error))}; "
                "mend it or start its server, or unset it to need none"
            )
        try:
            return str(client.api_version())
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (401, 403):  # a cloud need not tell its version
                return "unknown"
            raise FeatherweightError(
                f"{server} refuses requests that lack its password; set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY"
            ) from None


def log_file() -> Path:
    """Where the embedded API writes what it has to say."""
    return disk.home() / "logs" / "prefect-api.log"


class Api:
    """Prefect's API in a child process on a private loopback port.

    The socket listens from the start, so that a client may already connect while the server is still importing. The
    child stops when its standard input closes, and so dies with this process however that ends. Other processes of this
    machine, browsers among them, find the port but lack the password.

    Attributes:
        password: as ``PREFECT_API_AUTH_STRING`` wants it.
        is_first_start: whether it has to create its database, which takes some seconds more.
    """

    def __init__(self) -> None:
        home = disk.made("prefect")
        self.is_first_start = not (home / "prefect.db").exists()
        disk.made("logs")
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, log_file().open("ab") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self.password = f"{USER}{secrets.token_urlsafe(32)}"
            self.log_start = log.tell()
            self.answered = False
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.servers.embedded", str(listener.fileno())],
                env={
                    **machine.environment(),
                    **NO_ONE_WATCHES,
                    "PREFECT_HOME": str(home),
                    "PREFECT_SERVER_API_AUTH_STRING": self.password,
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C ends the flow, which still has to tell the API so
            )

    def wait(self) -> None:
        """Returns once the API answers.

        Raises:
            FeatherweightError: it ended or did not answer in time.
        """
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):  # URLError is one
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                self.answered = True
                return
            time.sleep(0.05)
        with log_file().open("rb") as log:
            log.seek(self.log_start)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
        raise FeatherweightError(
            f"the embedded Prefect API did not start ({' '.join(last) or 'no answer'}); its log is {log_file()}"
        )

    def stop(self) -> None:
        """Ends the API, after it has written what it was sent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if not self.answered:
            self.process.kill()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def api() -> Iterator[Api | None]:
    """Offers an embedded API under ``PREFECT_API_URL`` while the block runs, unless a server is configured.

    Call ``wait`` on what it yields before talking to the API, and import Prefect only inside the block.
    """
    configure()
    if not is_embedded():
        yield None
        return
    server = Api()
    before = os.environ.get("PREFECT_API_AUTH_STRING")
    os.environ.update(
        PREFECT_API_AUTH_STRING=server.password,
        PREFECT_API_URL=server.url,
        PREFECT_HOME=str(disk.home() / "prefect"),
        # On a busy machine the last events can be too late for an API that ends with the command: no news to a person.
        PREFECT_INTERNAL_LOGGING_LEVEL="CRITICAL",
        PREFECT_LOGGING_TO_API_ENABLED="false",
        PREFECT_SERVER_UI_ENABLED="false",  # so that no one links to it
    )
    try:
        yield server
    finally:
        server.stop()
        del os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]
        if before is not None:
            os.environ["PREFECT_API_AUTH_STRING"] = before


def _stay_on_one_core() -> None:
    """Prefect hands every SQL statement to a thread and back: across cores that takes twice as long as on one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _migrate() -> None:
    """Brings Prefect's database up to date; one process at a time, as two would alter the same tables."""
    import asyncio

    from prefect.server.database import provide_database_interface

    with disk.lock("prefect-migration"):
        asyncio.run(provide_database_interface().create_db())


def _hosts(listener: int) -> list[str]:
    """The names of the server on an inherited socket."""
    with socket.socket(fileno=os.dup(listener)) as own:
        return gate.of_loopback(own.getsockname()[1])


def _serve(listener: int) -> None:
    """Runs Prefect's API on an inherited socket until standard input closes."""
    import threading

    import uvicorn

    app = gate.application(_hosts(listener))
    server = uvicorn.Server(uvicorn.Config(app, fd=listener, log_level="error", lifespan="on"))

    def stop_with_parent() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=stop_with_parent, daemon=True).start()
    server.run()


if __name__ == "__main__":
    _stay_on_one_core()
    sockets = [int(argument) for argument in sys.argv[1:] if argument != "migrate"]
    for one in sockets:
        gate.configure(_hosts(one))
    with quick_imports():
        import prefect.server.database

        if sockets:
            import prefect.server.api.server  # noqa: F401
    _migrate()
    for one in sockets:
        _serve(one)
    gc.freeze()
