"""Keeps processes running: starts them, passes on what they say, restarts those that end, and leaves none behind.

Not even when the one who asked for them is killed outright (Linux): ``guarded`` runs the block in a child that is told
when its parent dies, and outlived by a parent that inherits what it leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from tasks.contracts.base import FeatherweightError
from tasks.engine import redaction
from tasks.ml import machine

PATIENCE_S = 120.0
"""How long a service may take until it answers."""
GRACE_S = 20.0
"""How long it may take to end by itself once asked to."""
ORPHAN_GRACE_S = 10.0
"""The same, of what nobody waits for any more."""
LONGEST_PAUSE_S = 30.0
"""Between two restarts of a service that keeps ending."""


@dataclass
class Service:
    """One process to keep running.

    Attributes:
        name: prefix of its lines.
        command: what to execute.
        answers: whether it does its work; may raise ``OSError`` while it does not.
        where: what a person opens, if anything.
    """

    name: str
    command: Sequence[str]
    answers: Callable[[], bool]
    where: str = ""
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    restarts: int = field(default=0, init=False)
    due: float = field(default=0.0, init=False)


class Supervisor:
    """Runs services under one environment. A context manager: leaving it ends all of them, and what they started."""

    def __init__(self, environment: Mapping[str, str], *, say: Callable[[str], None]) -> None:
        self.environment, self.say = dict(environment), say
        self.services: list[Service] = []

    def start(self, service: Service) -> None:
        """Starts a service, after those it needs: they are ended in the reverse order."""
        self.services.append(service)
        self._launch(service)

    def _launch(self, service: Service) -> None:
        service.process = subprocess.Popen(
            service.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, which ends them in order
            preexec_fn=machine.end_with_parent,
        )
        threading.Thread(target=self._pass_on, args=(service.name, service.process), daemon=True).start()

    def _pass_on(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                self.say(f"{name:>8} | {line.rstrip()}")

    def wait_until_ready(self, service: Service) -> None:
        """Returns once the service answers.

        Raises:
            FeatherweightError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert service.process is not None
            if (status := service.process.poll()) is not None:
                raise FeatherweightError(
                    f"{service.name} ended with status {status} before it answered; see its lines above"
                )
            with contextlib.suppress(OSError):
                if service.answers():
                    return
            time.sleep(0.1)
        raise FeatherweightError(f"{service.name} did not answer within {PATIENCE_S:.0f} s")

    def watch(self) -> None:
        """Restarts services that end, later each time, until interrupted."""
        while True:
            for service in self.services:
                assert service.process is not None
                status = service.process.poll()
                if status is None:
                    continue
                if not service.due:
                    self._end_orphans()
                    pause = min(2.0**service.restarts, LONGEST_PAUSE_S)
                    self.say(f"{service.name} ended with status {status}; it starts again in {pause:.0f} s")
                    service.due, service.restarts = time.monotonic() + pause, service.restarts + 1
                elif time.monotonic() >= service.due:
                    service.due = 0.0
                    self._launch(service)
            time.sleep(0.2)

    def _end_orphans(self) -> None:
        """Ends what ended services left: it would hold their ports, and answer in place of those that start again."""
        started = {service.process.pid for service in self.services if service.process is not None}

        def left() -> list[psutil.Process]:
            return [one for one in psutil.Process().children() if one.pid not in started and one not in self._others]

        for orphan in left():
            with contextlib.suppress(psutil.Error):
                self.say(f"ending what was left: {' '.join(orphan.cmdline())[:80]} ({orphan.pid})")
        _end_all(left, grace=ORPHAN_GRACE_S)

    def __enter__(self) -> Supervisor:
        machine.adopt_orphans()
        self._others = psutil.Process().children()
        return self

    def __exit__(self, *_: object) -> None:
        for service in reversed(self.services):
            if service.process is not None:
                end_tree(service.process)
        self._end_orphans()
        machine.adopt_orphans(False)


def end_tree(process: subprocess.Popen[str], *, grace: float = GRACE_S) -> None:
    """Asks a process and all that it started to end, waits, and kills what is left.

    What it started comes first, so that it can still report to it how it ended.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        _end(leader.children(recursive=True), grace=grace)
        late = leader.children(recursive=True)
        _end([leader], grace=grace)
        _end(late, grace=0)
    process.wait()


def _end(processes: Sequence[psutil.Process], *, grace: float) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    deadline = time.monotonic() + grace
    while (left := [one for one in processes if _works(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def _end_all(find: Callable[[], list[psutil.Process]], *, grace: float) -> None:
    """Ends children of this process, and takes notice of it, until none is found: what they started becomes its own."""
    deadline = time.monotonic() + 2 * grace
    while (roots := find()) and time.monotonic() < deadline:
        family = list(roots)
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                family += root.children(recursive=True)
        _end(family, grace=grace)
        psutil.wait_procs(roots, timeout=1)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Runs the block in a child process, so that nothing it starts is left even if either of the two is killed.

    This process passes signals on, waits, ends what is left, and exits as the child did. The child is told to end when
    this one dies, however it dies. Call it while there is one thread.
    """
    parent = os.getpid()
    machine.adopt_orphans()
    child = os.fork()
    if child == 0:
        machine.end_with_parent()
        if os.getppid() != parent:  # it died before it could be watched
            os.kill(os.getpid(), signal.SIGTERM)
        yield
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda given, _: _pass_on_signal(child, given))
    _, status = os.waitpid(child, 0)
    _end_all(psutil.Process().children, grace=GRACE_S)
    code = os.waitstatus_to_exitcode(status)
    raise SystemExit(128 - code if code < 0 else code)


def _pass_on_signal(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _works(process: psutil.Process) -> bool:
    """Whether it has not ended yet; one that its parent has not asked about is a zombie, and has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does, and neither disturb what is done on leaving it."""

    def interrupt(_: int, __: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def search_path() -> str:
    """``PATH`` with what is installed beside this interpreter first: MLflow starts uvicorn by its name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def say(line: str) -> None:
    """Prints a line without credentials on standard error in one write, so that those of several threads do not mix."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stderr.fileno(), f"{redaction.hide(line)}\n".encode())
