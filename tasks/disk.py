"""The home on this machine's disk: where it is, locks between processes, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts import FeatherweightError

logger = logging.getLogger("featherweight")

MIN_FREE_BYTES = 500_000_000

SHARED = "FEATHERWEIGHT_SHARED_DISK"
"""``true`` where all workers have this home, as those of ``featherweight up`` have."""


def home() -> Path:
    """Returns ``FEATHERWEIGHT_HOME`` as an absolute path (not created)."""
    return Path(os.environ.get("FEATHERWEIGHT_HOME", "~/.featherweight")).expanduser().absolute()


def is_shared() -> bool:
    """Whether every worker has this home."""
    return os.environ.get(SHARED, "").lower() in ("1", "true")


def folder(name: str) -> Path:
    """Returns a directory under ``store``, created if it is not there."""
    path = home() / "store" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def fsync(path: Path) -> None:
    """Sees that a file or the entries of a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        temporary.replace(path)
    fsync(path.parent)


AT_FDCWD, RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> None:
    """Swaps two directories of one file system: in one step by Linux's ``renameat2``, in three where it cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is not None:
        if swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(one), None, str(other))
    aside = one.with_name(f"{one.name}.old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def require_free_space(num_bytes: int = MIN_FREE_BYTES) -> None:
    """Raises ``FeatherweightError`` if the disk under the home has less than ``num_bytes`` free."""
    home().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home()).free
    if free < num_bytes:
        raise FeatherweightError(
            f"not enough disk: {home()} has {free / 1e6:.0f} MB free and this run needs {num_bytes / 1e6:.0f} MB; "
            "free some space or set FEATHERWEIGHT_HOME to a larger disk"
        )


@contextlib.contextmanager
def lock(name: str, *, shared: bool = False) -> Iterator[None]:
    """Holds a ``flock`` on a name, between threads as between processes; the kernel releases it when the process dies.

    Args:
        shared: whether others may hold it shared at the same time.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with (folder("locks") / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for who holds %s", name[:12])
            fcntl.flock(file, kind)
        yield
