"""Which processes that have this home still live: each holds a lock there, which the kernel takes back when it ends.

A process id says nothing in another PID namespace, a host name is shared by containers, and a start time moves with the
clock. A lock does none of that, and it is seen by whoever sees the home.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import uuid
from functools import cache
from pathlib import Path

from tasks.engine import disk

_ALIVE = contextlib.ExitStack()
"""Locks that are held until this process ends."""


def home_id() -> str:
    """Names this home among all: random, and with the file's own number, so that a copy of a home is another one.

    What ``this_process`` says begins with it.
    """
    path = disk.home() / "id"
    if not path.is_file():
        with disk.lock("processes"):
            if not path.is_file():
                disk.write_atomically(path, uuid.uuid4().hex)
    text = re.sub(rb"[^0-9a-f]", b"", path.read_bytes()[:32]).decode()
    return f"{text}-{path.stat().st_ino:x}"


@cache
def _this_process(home: Path, pid: int) -> str:
    name = uuid.uuid4().hex
    with disk.lock("processes"):  # else a sweep may find the file before it is locked
        path = disk.folder("processes") / name
        path.touch(0o600)
        _ALIVE.enter_context(disk.held(path))
    return f"{home_id()} {name} {socket.gethostname()}:{pid}"


def this_process() -> str:
    """Names this process among all that ever ran: its home, a random name, and for people host and process id."""
    return _this_process(disk.home(), os.getpid())


def is_gone(process: str) -> bool:
    """Whether a process, as ``this_process`` named it, is known to have ended: one of another home never is."""
    home, _, rest = process.partition(" ")
    name = rest.partition(" ")[0]
    if home != home_id() or not name.isalnum():
        return False
    return not _is_held(disk.folder("processes") / name)


def _is_held(path: Path) -> bool:
    try:
        with disk.held(path, wait=False):
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def oldest() -> float:
    """When the process that lives longest of all that have this home was first named (seconds since the epoch, by the
    clock of the home's disk); infinity where none lives."""
    with disk.lock("processes"):
        alive = (path for path in disk.folder("processes").iterdir() if path.is_file() and _is_held(path))
        return min((path.stat().st_mtime for path in alive), default=math.inf)


def sweep() -> None:
    """Forgets processes that have ended: without its file, a process is as gone as without its lock."""
    with disk.lock("processes"):
        for path in disk.folder("processes").iterdir():
            if path.is_file() and not _is_held(path):
                path.unlink(missing_ok=True)
