"""The home on this machine's disk: where it is, locks between processes, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.base import FeatherweightError
from tasks.ml import paths

logger = logging.getLogger("featherweight")

MIN_FREE_BYTES = 500_000_000
PROBE_BYTES = 65_536
UNFIT = "?"
"""What no path of a home may have: it becomes part of the addresses of two databases, and there a query begins."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors of a disk that is full, over a quota, read-only or broken."""
SQLITE_FULL = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN")
"""The same, as SQLite has it."""

SHARED = "FEATHERWEIGHT_SHARED_DISK"
"""``true`` where all workers have this home, as those of ``featherweight up`` have."""


class HomeError(FeatherweightError):
    """The home, or the disk under it, cannot be used."""


def home() -> Path:
    """Returns ``FEATHERWEIGHT_HOME`` as an absolute path (not created); of an empty one, the default.

    Raises:
        HomeError: no home can have this path.
    """
    said = os.environ.get("FEATHERWEIGHT_HOME") or "~/.featherweight"
    try:
        path = Path(said).expanduser().absolute()
    except RuntimeError:
        raise HomeError(f"FEATHERWEIGHT_HOME: {said!r}: there is no such user, or no HOME") from None
    if UNFIT in str(path):
        raise HomeError(f"FEATHERWEIGHT_HOME: {said!r}: may have no {UNFIT}, which ends a path in a database's address")
    return path


def made(*names: str) -> Path:
    """Returns a directory in the home, created if it is not there; a home is its user's alone."""
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    _close(home())
    path = home().joinpath(*names)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _close(path: Path) -> None:
    """Takes a home of this user from all others, as earlier versions did not; where that cannot be, it stays.

    A directory that is no home yet, or in which others may put files beside ours, such as ``/tmp``, is left alone.
    """
    about = path.stat()
    others, is_common = stat.S_IMODE(about.st_mode) & 0o077, about.st_mode & stat.S_ISVTX
    if others and not is_common and about.st_uid == os.geteuid() and (path / "store").is_dir():
        with contextlib.suppress(OSError):
            path.chmod(0o700)


def require_home() -> None:
    """Raises ``HomeError`` unless the home is there, or can be made, and takes a file."""
    try:
        with tempfile.TemporaryFile(dir=made()) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise HomeError(
            f"nothing can be written to {home()} ({error.strerror}); "
            "mend that, or set FEATHERWEIGHT_HOME to another directory"
        ) from error


def trouble(error: BaseException) -> str:
    """What is wrong with a disk, if that is why something failed; otherwise nothing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HomeError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in FULL:
            return f"{cause.filename or home()}: {cause.strerror}; free some space, or mend the disk"
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", "").startswith(SQLITE_FULL):
            return f"a database in {home()} cannot be written ({cause}); free some space, or mend the disk"
        cause = cause.__cause__ or cause.__context__
    return ""


def is_shared() -> bool:
    """Whether every worker has this home."""
    return os.environ.get(SHARED, "").lower() in ("1", "true")


def folder(name: str) -> Path:
    """Returns a directory under ``store``, created if it is not there."""
    return made("store", name)


def write_atomically(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Writes a text file so that a reader sees the old or the new content, never half of it.

    Args:
        mode: its permissions, less the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        temporary.touch(mode)
        temporary.write_text(text, encoding="utf-8")
        paths.fsync(temporary)
        temporary.replace(path)
    paths.fsync(path.parent)


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
    """Raises ``HomeError`` if the disk under the home has less than ``num_bytes`` free."""
    free = shutil.disk_usage(made()).free
    if free < num_bytes:
        raise HomeError(
            f"not enough disk: {home()} has {free / 1e6:.0f} MB free and this run needs {num_bytes / 1e6:.0f} MB; "
            "free some space or set FEATHERWEIGHT_HOME to a larger disk"
        )


PARTS = {
    "results": ("store/objects", "store/records"),
    "teachers' answers": ("store/answers",),
    "resumable state": ("store/checkpoints",),
    "MLflow": ("mlflow.db", "mlartifacts"),
    "Prefect": ("prefect",),
}
"""What a home is made of; the rest is called other."""


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; what others remove meanwhile counts nothing."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(size(one) for one in path.iterdir())
    return 0


def usage() -> dict[str, int]:
    """Bytes of each part of the home."""
    parts = {part: sum(size(home() / name) for name in names) for part, names in PARTS.items()}
    return {**parts, "other": size(home()) - sum(parts.values())}


@contextlib.contextmanager
def held(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Holds a file or directory by ``flock``, between threads as between processes; the kernel lets go for the dead.

    Args:
        shared: whether others may hold it shared at the same time.

    Raises:
        BlockingIOError: somebody else holds it, and this is not to wait.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks nothing that is open to read only
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            logger.info("waiting for who holds %s", path.stem[:12])
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def lock(name: str, *, shared: bool = False, wait: bool = True) -> contextlib.AbstractContextManager[None]:
    """Holds a name in this home, as ``held`` does a file."""
    path = folder("locks") / f"{name}.lock"
    path.touch()
    return held(path, shared=shared, wait=wait)
