"""The supervisor: real processes, which start again when they end, and of which none is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.servers.supervisor import Service, Supervisor, end_tree
from tasks.contracts.base import FeatherweightError

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-u", "-c", code, *arguments]


def test_lines_are_passed_on_with_the_name_of_who_said_them() -> None:
    lines: list[str] = []
    service = Service("speaker", python("print('hello'); import time; time.sleep(600)"), lambda: bool(lines))
    with Supervisor({}, say=lines.append) as supervisor:
        supervisor.start(service)
        supervisor.wait_until_ready(service)
    assert lines[0] == " speaker | hello"


def test_a_service_that_ends_before_it_answers_is_named() -> None:
    lines: list[str] = []
    service = Service("broken", python("raise SystemExit('no database')"), lambda: False)
    with Supervisor({}, say=lines.append) as supervisor:
        supervisor.start(service)
        with pytest.raises(FeatherweightError, match="broken ended with status 1 before it answered"):
            supervisor.wait_until_ready(service)
        assert eventually(lambda: "no database" in "".join(lines))


def test_what_a_service_started_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    service = Service("parent", python(PARENT, str(file)), lambda: file.is_file() and bool(file.read_text()))
    with Supervisor({}, say=lambda _: None) as supervisor:
        supervisor.start(service)
        supervisor.wait_until_ready(service)
        child = psutil.Process(int(file.read_text()))
        assert child.is_running()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert service.process is not None
    assert service.process.poll() is not None


def test_who_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(python(STUBBORN, str(tmp_path / "up")), text=True)
    assert eventually((tmp_path / "up").exists)
    end_tree(process, grace=0.5)
    assert not psutil.pid_exists(process.pid)


FAMILY = '''
import sys
from flows.servers.supervisor import Service, Supervisor, guarded, interruptible, say
life = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print('born', os.getpid(), child.pid)
time.sleep(600)
"""
mortal = Service("mortal", [sys.executable, "-u", "-c", life], lambda: True)
with guarded(), interruptible(), Supervisor({}, say=say) as supervisor:
    supervisor.start(mortal)
    supervisor.watch()
'''


@pytest.mark.skipif(sys.platform != "linux", reason="by prctl(2)")
@pytest.mark.parametrize("victim", ["command", "supervisor", "both", "service"])
def test_who_is_killed_outright_leaves_nothing(victim: str, tmp_path: Path) -> None:
    """Whichever: the process that a person started, the one below it that supervises, or a service."""
    log = tmp_path / "log"
    with log.open("w") as file:
        command = subprocess.Popen(
            python(FAMILY), cwd=Path(__file__).parents[3], stderr=file, start_new_session=True, text=True
        )

    def born() -> list[list[int]]:
        return [[int(pid) for pid in line.split()[-2:]] for line in log.read_text().splitlines() if "born" in line]

    try:
        assert eventually(lambda: len(born()) == 1)
        service, child = born()[0]
        (supervisor,) = psutil.Process(command.pid).children()
        family = [psutil.Process(pid) for pid in (service, child)]
        if victim in ("command", "both"):
            command.kill()
        if victim in ("supervisor", "both"):
            supervisor.kill()
        if victim == "service":
            psutil.Process(service).kill()
            assert eventually(lambda: len(born()) == 2), log.read_text()
            assert all(ended(one) for one in family), "it would answer for the new one"
            family = [psutil.Process(pid) for pid in born()[1]]
            command.send_signal(signal.SIGTERM)
        if victim == "both":
            family.pop()  # a service is told, and has to end what it started by itself
        assert eventually(lambda: all(ended(one) for one in [*family, supervisor]), 60), log.read_text()
    finally:
        for pid in {pid for line in born() for pid in line}:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()
        end_tree(command)


def test_a_service_that_dies_starts_again(tmp_path: Path) -> None:
    """In a process of its own: ``watch`` goes on until a signal."""
    code = """
import sys
from flows.servers.supervisor import Service, Supervisor, interruptible, say
life = "import os; print('born', os.getpid()); import time; time.sleep(600)"
mortal = Service("mortal", [sys.executable, "-u", "-c", life], lambda: True)
with interruptible(), Supervisor({}, say=say) as supervisor:
    supervisor.start(mortal)
    supervisor.watch()
"""
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            python(code), cwd=Path(__file__).parents[3], stderr=file, start_new_session=True, text=True
        )

    def born() -> list[int]:
        return [int(line.split()[-1]) for line in log.read_text().splitlines() if "born" in line]

    try:
        assert eventually(lambda: len(born()) == 1)
        psutil.Process(born()[0]).kill()
        assert eventually(lambda: len(born()) == 2)
        assert "mortal ended with status -9; it starts again in 1 s" in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) != 0
        assert eventually(lambda: not psutil.pid_exists(born()[1]))
    finally:
        end_tree(process)
