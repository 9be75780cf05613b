"""Content-addressed directories on disk: atomic publish, verified read, quarantine.

Layout under ``FEATHERWEIGHT_HOME`` (default ``~/.featherweight``)::

    store/objects/<digest>/      what was published, plus files.json (name → SHA-256) that the digest is taken of
    store/records/<key>.json     the StageResult that a cache key produced, and the digest of both
    store/locks/<key>.lock       flock: two runs never compute the same key at once, and a killed holder lets go
    store/checkpoints/<key>/     state that an interrupted stage resumes from
    store/quarantine/            objects that failed verification, kept for a look
    store/tmp/                   unfinished work; whatever no living process owns is swept

An object or record that a process uses has been touched since that process was named: so ``garbage`` knows it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Digest, StageResult
from tasks.engine import disk, exchange, processes, tracking
from tasks.ml import digests, paths

logger = logging.getLogger("featherweight")

FILES = "files.json"
RUN_ID = "run_id"
"""File in the directory of resumable state: the MLflow run that goes on when the stage does."""
USE = "store"
"""Lock that is held shared while something is noted as in use, and alone while garbage is taken away."""


class CorruptObjectError(FeatherweightError):
    """A stored directory no longer holds what its digest says, or none can have such a digest."""


def _place(digest: Digest) -> Path:
    """Where the object of a digest is: always a directory of the store, whoever said the digest."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CorruptObjectError(f"{digest[:80]!r} is no digest of a stored object, which has 64 hexadecimal digits")
    return disk.folder("objects") / digest


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Yields a scratch directory on the store's file system; removed at the end unless it was published."""
    with contextlib.ExitStack() as stack:
        with disk.lock("tmp"):
            path = Path(tempfile.mkdtemp(dir=disk.folder("tmp")))
            stack.enter_context(disk.held(path))  # says that somebody is at work here
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def sweep() -> None:
    """Removes scratch directories whose process is gone; what cannot be removed is left, and ends no run."""
    with disk.lock("tmp"):
        for path in disk.folder("tmp").iterdir():
            try:
                _sweep(path)
            except FileNotFoundError:
                continue  # a workspace that ended, or was published, in the meantime
            except OSError as error:
                logger.warning("%s cannot be removed: %s", path, error)


def _sweep(path: Path) -> None:
    """Removes a scratch directory unless a living process holds it, and a file, which nobody works in."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    with contextlib.suppress(BlockingIOError), disk.held(path, wait=False):
        shutil.rmtree(path)


def _use(path: Path) -> None:
    """Notes that a living process uses a stored directory or file; from here on nobody takes it away as garbage."""
    processes.this_process()
    with disk.lock(USE, shared=True), contextlib.suppress(FileNotFoundError):
        os.utime(path)


def publish(directory: Path, *, expected: Digest = "") -> Digest:
    """Moves a finished directory into the store and returns its digest. Publishing the same content twice is harmless.

    The directory must be a ``workspace()`` or lie in one; it is gone afterwards.

    Raises:
        CorruptObjectError: its digest is not the one expected.
    """
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    assert names, f"nothing to publish in {directory}"
    assert FILES not in names, f"{directory} already has a {FILES}"
    files = {name: digests.of_file(directory / name) for name in names}
    content = json.dumps(files, indent=1, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    if expected not in ("", digest):
        raise CorruptObjectError(f"its digest is {digest[:12]}")
    target = _place(digest)
    processes.this_process()  # lives from before the object does
    if target.exists():
        with contextlib.suppress(CorruptObjectError):
            path(digest)
            return digest
    for name in names:
        paths.fsync(directory / name)
    for folder in (path for path in directory.rglob("*") if path.is_dir()):
        paths.fsync(folder)
    disk.write_atomically(directory / FILES, content)
    try:
        directory.rename(target)
    except OSError:
        if not target.exists():  # else another process published the same content in the meantime
            raise
    paths.fsync(target.parent)
    return digest


def verify(directory: Path) -> None:
    """Reads all files of a directory whose name is its digest, unless this process did so and none was written since.

    Raises:
        CorruptObjectError: a file is missing or differs.
    """
    files = (path for path in directory.rglob("*") if path.is_file())
    written = ((str(path), path.stat()) for path in files)
    _verified(directory, tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in written)))


@cache
def _verified(directory: Path, written: tuple[tuple[str, int, int], ...]) -> None:
    digest = directory.name
    if not (directory / FILES).is_file():
        raise CorruptObjectError(f"stored object {digest[:12]} is not there or has lost its {FILES}")
    content = (directory / FILES).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptObjectError(f"stored object {digest[:12]}: {FILES} was changed")
    for name, expected in json.loads(content).items():
        if not (directory / name).is_file():
            raise CorruptObjectError(f"stored object {digest[:12]}: {name} is missing")
        if digests.of_file(directory / name) != expected:
            raise CorruptObjectError(f"stored object {digest[:12]}: {name} was changed")


def listing(directory: Path) -> list[str]:
    """Names of the files that a verified directory was published with, its listing included."""
    return [FILES, *json.loads((directory / FILES).read_bytes())]


def path(digest: Digest) -> Path:
    """Returns the directory of a digest after verifying every file (once per process and version of it).

    Raises:
        CorruptObjectError: a file is missing or differs; the directory has then been moved to ``quarantine``, and no
            other worker offers a whole one. Or this is no digest.
    """
    directory = _place(digest)
    _use(directory)
    try:
        verify(directory)
    except CorruptObjectError:
        try:
            with disk.lock(digest):  # another process may have moved it away, and even have published it anew
                _quarantine(directory)
        except CorruptObjectError:
            if not _fetch(digest):
                raise
    return directory


def _fetch(digest: Digest) -> bool:
    """Publishes here what a run in MLflow holds; whether one held it whole."""
    for run_id in exchange.holders(digest):
        with workspace() as scratch:
            try:
                directory = tracking.download(run_id, exchange.folder(digest), scratch)
                (directory / FILES).unlink(missing_ok=True)  # publish writes it anew, of what really is there
                publish(directory, expected=digest)
            except FeatherweightError as error:
                logger.warning("object %s cannot be had from run %s: %s", digest[:12], run_id, error)
            else:
                logger.info("object %s came from run %s", digest[:12], run_id)
                return True
    return False


def _quarantine(directory: Path) -> None:
    """Moves a directory away if it is not whole, and raises ``CorruptObjectError`` with what is wrong."""
    try:
        verify(directory)
    except CorruptObjectError as error:
        if directory.exists():
            target = Path(tempfile.mkdtemp(dir=disk.folder("quarantine"), prefix=f"{directory.name[:12]}-"))
            directory.rename(target / directory.name)
            logger.warning("%s; moved to %s, and it will be computed again", error, target)
        raise


def read_record(key: str) -> StageResult | None:
    """Returns the result recorded under a cache key, here or by another worker, if every object it names can be had."""
    record = disk.folder("records") / f"{key}.json"
    _use(record)
    try:
        text = _unsealed(key, record.read_bytes()) if record.is_file() else exchange.find_result(key)
        if text is None:
            return None
        result = StageResult.model_validate_json(text)
        for digest in exchange.digests(result).values():
            path(digest)
    except ValueError as error:
        logger.warning("cannot reuse record %s: %s", key[:12], error)
        return None
    if not record.is_file():
        _keep_record(key, result)
    return result


def write_record(key: str, result: StageResult) -> None:
    """Records what a cache key produced, and offers it to workers on other machines."""
    _keep_record(key, result)
    exchange.offer(key, result, path)


def _seal(key: str, result: Any) -> str:
    """Digest of a cache key together with the result that it produced."""
    return digests.of_value([key, result])


def _keep_record(key: str, result: StageResult) -> None:
    values = result.model_dump(mode="json")
    record = {"sha256": _seal(key, values), "result": values}
    disk.write_atomically(disk.folder("records") / f"{key}.json", json.dumps(record, indent=1))


def _unsealed(key: str, text: bytes) -> str:
    """The result in a record.

    Raises:
        ValueError: it is damaged, was changed, or belongs to another key.
    """
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("sha256") != _seal(key, record.get("result")):
        raise ValueError("it is not what was written")
    return json.dumps(record["result"])
