"""Which processes live: by a lock that each holds, and not by what they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.engine import disk, processes

ROOT = Path(__file__).parents[3]
WORK = "import time; from tasks.engine import processes; print(processes.this_process(), flush=True); time.sleep(600)"
NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def start(*prefix: str) -> tuple[subprocess.Popen[str], str]:
    command = [*prefix, sys.executable, "-c", WORK]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def can_have_a_namespace() -> bool:
    return (
        shutil.which("unshare") is not None and not subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode
    )


@pytest.mark.parametrize(
    "prefix",
    [
        (),
        pytest.param(NAMESPACE, marks=pytest.mark.skipif(not can_have_a_namespace(), reason="no user namespaces here")),
    ],
    ids=["here", "in a PID namespace"],
)
def test_a_process_lives_until_it_ends_wherever_it_is(prefix: tuple[str, ...]) -> None:
    process, name = start(*prefix)
    try:
        assert name
        assert not processes.is_gone(name)
        processes.sweep()
        assert not processes.is_gone(name), "a sweep takes nothing from the living"
    finally:
        end(process)
    deadline = time.monotonic() + 10  # a namespace ends a moment after its first process
    while not processes.is_gone(name):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes.sweep()
    assert processes.is_gone(name)
    assert not list((disk.home() / "store" / "processes").iterdir())


def test_this_process_is_not_gone_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    name = processes.this_process()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert processes.this_process() == name
    assert not processes.is_gone(name)


def test_processes_of_another_home_are_never_taken_for_dead(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = processes.this_process()
    monkeypatch.setenv("FEATHERWEIGHT_HOME", str(tmp_path / "elsewhere"))
    assert not processes.is_gone(name)
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.setenv("FEATHERWEIGHT_HOME", str(tmp_path / "copy"))
    assert not processes.is_gone(name), "a copy of a home is another one"


@pytest.mark.parametrize("name", ["", "elsewhere 1 0", f"{'x' * 300} 99999999 0", "a", "a ../../records"])
def test_what_is_no_name_of_ours_is_not_gone(name: str) -> None:
    assert not processes.is_gone(name)
    assert not processes.is_gone(name.replace("a ", f"{processes.home_id()} "))


def test_a_forked_child_is_a_process_of_its_own() -> None:
    name = processes.this_process()
    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, processes.this_process().encode())
        os._exit(0)
    os.wait()
    child = os.read(reader, 1000).decode()
    assert child != name
    assert processes.is_gone(child)
    assert not processes.is_gone(name)


def test_a_damaged_home_id_is_only_another_one(home: Path) -> None:
    name = processes.this_process()
    (home / "id").write_bytes(b"\xff' or 1=1")
    assert not processes.is_gone(name)
    assert "'" not in processes.home_id()
