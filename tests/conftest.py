"""What every test gets: a home of its own, no configured servers, and, outside ``tests/ml``, a real Prefect API."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.servers import embedded

if "PYTEST_XDIST_WORKER" in os.environ:  # threads that wait for each other's work spin, and keep other workers waiting
    os.environ.setdefault("OMP_NUM_THREADS", "1")
embedded.configure()  # before any test module imports Prefect or MLflow


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside the timeout: a test may have to wait
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets tests of several processes run side by side, but those that are marked ``alone``."""
    workerinput = getattr(item.config, "workerinput", None)
    if workerinput is None:
        return (yield)
    name = f"featherweight-tests-{workerinput['testrunuid']}"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


SERVERS = (
    "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "PREFECT_API_URL",
)  # fmt: skip


def _forget_servers(patch: pytest.MonkeyPatch) -> None:
    for name in SERVERS:
        patch.setenv(name, "")  # so that what MLflow itself sets is taken back afterwards, too
        patch.delenv(name)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``FEATHERWEIGHT_HOME`` for this test."""
    home = tmp_path / "home"
    monkeypatch.setenv("FEATHERWEIGHT_HOME", str(home))
    _forget_servers(monkeypatch)
    return home


@pytest.fixture(autouse=True)
def _servers(request: pytest.FixtureRequest) -> None:
    """Stages and flows run under a real Prefect API and a migrated MLflow database; ``tests/ml`` needs neither."""
    if "ml" not in request.path.relative_to(request.config.rootpath).parts:
        request.getfixturevalue("prefect_api")
        request.getfixturevalue("mlflow_database")


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one embedded Prefect API for the whole session."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    prefect_home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATHERWEIGHT_HOME", str(prefect_home))
        server = embedded.Api()
        try:
            server.wait()
            patch.setenv("PREFECT_API_AUTH_STRING", server.password)
            settings = {
                PREFECT_API_AUTH_STRING: server.password, PREFECT_API_URL: server.url, PREFECT_HOME: prefect_home
            }  # fmt: skip
            with temporary_settings(settings):
                yield server.url
                APILogHandler().flush()  # else it tries in the background, after the end
        finally:
            server.stop()


@pytest.fixture(scope="session")
def _migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tasks.engine import tracking

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATHERWEIGHT_HOME", str(folder))
        _forget_servers(patch)
        tracking.client()
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_database(home: Path, _migrated_database: Path) -> Path:
    """A fresh, migrated MLflow database in this test's home: a copy, because migrating takes seconds."""
    home.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_migrated_database, home / "mlflow.db"))
