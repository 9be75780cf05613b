"""Content-addressed directories on disk: atomic publish, verified read, quarantine.

Layout under ``FEATHERWEIGHT_HOME`` (default ``~/.featherweight``)::

    store/objects/<digest>/      what was published, plus files.json (name → SHA-256) that the digest is taken of
    store/records/<key>.json     the StageResult that a cache key produced
    store/locks/<key>.lock       flock: two runs never compute the same key at once, and a killed holder lets go
    store/checkpoints/<key>/     state that an interrupted stage resumes from
    store/quarantine/            objects that failed verification, kept for a look
    store/tmp/                   unfinished work; whatever no living process owns is swept
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tasks.contracts import Digest, FeatherweightError, StageResult

logger = logging.getLogger("featherweight")

FILES = "files.json"
MIN_FREE_BYTES = 500_000_000


class CorruptObjectError(FeatherweightError):
    """A stored directory no longer holds what its digest says."""


def home() -> Path:
    """Returns ``FEATHERWEIGHT_HOME`` as an absolute path (not created)."""
    return Path(os.environ.get("FEATHERWEIGHT_HOME", "~/.featherweight")).expanduser().absolute()


def _folder(name: str) -> Path:
    folder = home() / "store" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
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
        _fsync(temporary)
        temporary.replace(path)
    _fsync(path.parent)


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
def lock(name: str) -> Iterator[None]:
    """Holds an exclusive ``flock`` on a name; the kernel releases it when the process dies."""
    with (_folder("locks") / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that holds %s", name[:12])
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Yields a scratch directory on the store's file system; removed at the end unless it was published."""
    with lock("tmp"):
        path = Path(tempfile.mkdtemp(dir=_folder("tmp")))
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)  # says that somebody is at work here
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep() -> None:
    """Removes scratch directories whose process is gone."""
    with lock("tmp"):
        for path in _folder("tmp").iterdir():
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            except BlockingIOError:
                continue
            finally:
                os.close(handle)


def publish(directory: Path) -> Digest:
    """Moves a finished directory into the store and returns its digest. Publishing the same content twice is harmless.

    The directory must be a ``workspace()``; it is gone afterwards.
    """
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    assert names, f"nothing to publish in {directory}"
    assert FILES not in names, f"{directory} already has a {FILES}"
    files = {name: _file_digest(directory / name) for name in names}
    listing = json.dumps(files, indent=1, sort_keys=True)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    target = _folder("objects") / digest
    if target.exists():
        with contextlib.suppress(CorruptObjectError):
            path(digest)
            return digest
    for name in names:
        _fsync(directory / name)
    for folder in (path for path in directory.rglob("*") if path.is_dir()):
        _fsync(folder)
    write_atomically(directory / FILES, listing)
    try:
        directory.rename(target)
    except OSError:
        if not target.exists():  # else another process published the same content in the meantime
            raise
    _fsync(target.parent)
    _verified.cache_clear()
    return digest


@cache
def _verified(directory: Path) -> None:
    digest = directory.name
    if not (directory / FILES).is_file():
        raise CorruptObjectError(f"stored object {digest[:12]} is not there or has lost its {FILES}")
    listing = (directory / FILES).read_bytes()
    if hashlib.sha256(listing).hexdigest() != digest:
        raise CorruptObjectError(f"stored object {digest[:12]}: {FILES} was changed")
    for name, expected in json.loads(listing).items():
        if not (directory / name).is_file():
            raise CorruptObjectError(f"stored object {digest[:12]}: {name} is missing")
        if _file_digest(directory / name) != expected:
            raise CorruptObjectError(f"stored object {digest[:12]}: {name} was changed")


def path(digest: Digest) -> Path:
    """Returns the directory of a digest after verifying every file (once per process).

    Raises:
        CorruptObjectError: a file is missing or differs; the directory has then been moved to ``quarantine``.
    """
    directory = _folder("objects") / digest
    try:
        _verified(directory)
    except CorruptObjectError:
        with lock(digest):  # another process may have moved it away, and even have published it anew
            _quarantine(directory)
    return directory


def _quarantine(directory: Path) -> None:
    """Moves a directory away if it is not whole, and raises ``CorruptObjectError`` with what is wrong."""
    try:
        _verified(directory)
    except CorruptObjectError as error:
        if directory.exists():
            target = Path(tempfile.mkdtemp(dir=_folder("quarantine"), prefix=f"{directory.name[:12]}-"))
            directory.rename(target / directory.name)
            logger.warning("%s; moved to %s, and it will be computed again", error, target)
        raise


def read_record(key: str) -> StageResult | None:
    """Returns the result recorded under a cache key if every object it names is still whole, else ``None``."""
    record = _folder("records") / f"{key}.json"
    if not record.is_file():
        return None
    try:
        result = StageResult.model_validate_json(record.read_bytes())
        for digest in (result.bundle and result.bundle.digest, result.splits and result.splits.digest, result.evidence):
            if digest:
                path(digest)
    except ValueError as error:
        logger.warning("cannot reuse record %s: %s", key[:12], error)
        return None
    return result


def write_record(key: str, result: StageResult) -> None:
    """Records what a cache key produced."""
    write_atomically(_folder("records") / f"{key}.json", result.model_dump_json(indent=1))
