"""What a run is surrounded by: no proxy for this machine, and a database that several first runs may find."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import requests

from flows.servers import embedded

DEAD = "http://127.0.0.1:9"


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("said", ["", "example.org,10.0.0.0/8"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_asked_for_this_machine(said: str, host: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", said)
    embedded.configure()
    url = f"http://{host}:{port}/"
    assert urllib.request.urlopen(url, timeout=5).status == 200
    assert httpx.get(url, timeout=5).status_code == 200
    assert requests.get(url, timeout=5).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://example.com", timeout=5)
    monkeypatch.setenv("no_proxy", "*")
    embedded.configure()
    assert urllib.request.getproxies()["no"] == "*"


@pytest.mark.slow
def test_first_runs_that_meet_in_an_empty_home_all_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_HOME", str(tmp_path / "new"))
    servers = [embedded.Api() for _ in range(3)]
    try:
        for server in servers:
            server.wait()
    finally:
        for server in servers:
            server.stop()
    with sqlite3.connect(tmp_path / "new" / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_events_that_come_too_late_are_not_the_last_thing_a_person_reads(tmp_path: Path) -> None:
    program = """
import logging
from flows.servers import embedded
with embedded.api():
    from prefect.logging.configuration import setup_logging
    setup_logging()
    logging.getLogger("prefect._internal.concurrency").error("Service 'EventsWorker' failed to process item")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FEATHERWEIGHT_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "EventsWorker" not in done.stdout + done.stderr
