"""``promote``, ``serve`` and ``deploy`` as people run them, on a registered model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.command import serving
from tasks.contracts.base import FeatherweightError
from tasks.engine import registry
from tests import servers
from tests.tasks.shippable import register_two

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def registered() -> None:
    """Version 1 is the champion, version 2 the candidate."""
    register_two()


def featherweight(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.command.cli", *arguments],
        cwd=servers.ROOT, env=servers.environment(home), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_promote_and_rollback_say_what_is_champion(home: Path) -> None:
    done = featherweight(home, "promote", "polarity", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 2
    done = featherweight(home, "rollback", "polarity")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "polarity@champion is version 1"
    assert registry.aliases("polarity") == {"candidate": 2, "champion": 1, "previous": 2}


def test_what_cannot_be_promoted_is_one_line(home: Path) -> None:
    done = featherweight(home, "promote", "poldarity")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == ("featherweight: no model 'poldarity' is registered; there are polarity")


def test_written_for_triton(home: Path, tmp_path: Path) -> None:
    done = featherweight(home, "deploy", "polarity@candidate", "--to", "triton", str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "polarity" / "2" / "model.onnx").is_file()
    done = featherweight(home, "deploy", "polarity", "--to", "torchserve", str(tmp_path / "models"))
    assert done.returncode == 2
    assert "--to torchserve: no such server; known are triton" in done.stderr


@pytest.mark.parametrize("directory", ["/dev/null", "/dev/null/models", "a\0b"])
def test_what_can_be_no_repository_is_refused(directory: str) -> None:
    with pytest.raises(FeatherweightError, match=r"^--to"):
        serving.write("polarity", "triton", directory)


def ask(port: int, text: str) -> Any:
    body = json.dumps({"dataframe_records": [{"text": text}]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())["predictions"][0]


@pytest.mark.parametrize("ending", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_champion_answers_over_http_and_leaves_nothing(ending: int, home: Path, tmp_path: Path) -> None:
    """And executes none of the code that lies beside the bundle in the registry, which no digest speaks for."""
    for code in (home / "mlartifacts").rglob("pyfunc.py"):
        code.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n", encoding="utf-8")
    (port,) = servers.free_ports(1)
    log, said = tmp_path / "log", tmp_path / "said"
    with log.open("wb") as file, said.open("wb") as document:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.command.cli", "serve", "polarity@champion", "--port", str(port), "--json"],
            cwd=servers.ROOT, env=servers.environment(home), stdout=document, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                answer = ask(port, "a great film")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
        assert "answered 18 golden rows" in log.read_text()
        assert not (tmp_path / "executed").exists()
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
    finally:
        process.send_signal(ending)
        status = process.wait(timeout=60)
    assert status == (130 if ending == signal.SIGTERM else -ending)
    assert "stages" not in log.read_text(), "a service keeps none"
    assert not psutil.wait_procs(family, timeout=30)[1]
    address = f"http://127.0.0.1:{port}/invocations"
    assert json.loads(said.read_text(encoding="utf-8")) == {"name": "polarity", "version": 1, "url": address}


def test_a_damaged_model_gets_no_traffic(home: Path) -> None:
    release = registry.release(registry.find("polarity", "champion"))
    (path,) = (home / "mlartifacts").rglob(f"{release.digest}/model.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = featherweight(home, "serve", "polarity", "--port", str(servers.free_ports(1)[0]))
    assert done.returncode == 3
    assert "model.onnx was changed" in done.stderr
