"""Garbage: what lies in the home and nobody needs, found by what MLflow and living processes name, and taken away.

A result is needed while a run in MLflow names its cache key, an object while a needed result or a registered version
names it, answers while their teacher is needed, and resumable state while its run is there. Beside that, nothing is
taken that a living process may use: what was made or touched since the oldest of them began (``store``). While garbage
is taken away, which is a matter of renames, no process can begin to use anything. A process that is killed over it
leaves a scratch directory, which the next run sweeps.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tasks.contracts.values import StageResult
from tasks.engine import disk, exchange, processes, registry, store, tracking

RESULTS, ANSWERS, CHECKPOINTS, QUARANTINE, SCRATCH, REPORTS, SEARCHES, UPLOADS = (
    "results of stages", "answers of teachers", "resumable state", "damaged objects", "scratch of killed processes",
    "reports", "searches", "uploads to other workers",
)  # fmt: skip


@dataclass
class References:
    """What MLflow names: that of ``MLFLOW_TRACKING_URI``, and the home's own beside it."""

    keys: set[str] = field(default_factory=set)
    """Cache keys of the runs that are there."""
    runs: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    """Of the bundles of registered versions."""


@dataclass(frozen=True)
class Garbage:
    """What of one kind goes."""

    kind: str
    count: int
    num_bytes: int


def references() -> References:
    """Asks MLflow what it names.

    Raises:
        FeatherweightError: it does not answer.
    """
    found = References()
    for client in tracking.clients():
        for run in tracking.every_run(client):
            found.runs.add(run.info.run_id)
            found.keys.add(run.data.tags.get(tracking.CACHE_KEY_TAG, ""))
        found.deleted |= {run.info.run_id for run in tracking.every_run(client, deleted=True)}
        versions = tracking.every(client.search_model_versions)
        found.digests |= {version.tags.get(registry.DIGEST_TAG, "") for version in versions}
    return found


def collect(*, remove: bool, unknown: bool = False) -> list[Garbage]:
    """Finds what nobody needs, by kind, and takes it away if it is to.

    Args:
        unknown: whether what belongs to runs that MLflow does not know goes, too, though another MLflow may know them.

    Raises:
        FeatherweightError: MLflow does not answer; nothing is taken.
    """
    with store.workspace() as graveyard:
        began = graveyard.stat().st_mtime  # by the clock of the home's disk
        named = references()
        found: dict[str, list[int]] = {}
        with disk.lock(store.USE):
            for kind, path in _unneeded(named, since=min(began, processes.oldest()), unknown=unknown):
                found.setdefault(kind, []).append(disk.size(path))
                if remove:
                    _bury(path, graveyard)
    return [Garbage(kind, len(sizes), sum(sizes)) for kind, sizes in found.items()]


def _bury(path: Path, graveyard: Path) -> None:
    """Moves a file or directory out of everybody's sight in one step; to another file system nothing can be moved."""
    try:
        path.rename(Path(tempfile.mkdtemp(dir=graveyard)) / path.name)
    except FileNotFoundError:  # trimmed by another process
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _unneeded(named: References, *, since: float, unknown: bool) -> Iterator[tuple[str, Path]]:
    """What goes, by kind, records before the objects that they name; taken before the next is asked for."""

    def is_gone(run_id: str | None) -> bool:
        return run_id not in named.runs and (unknown or not run_id or run_id in named.deleted)

    needed = set(named.digests)
    for path in _inside("store/records"):
        digests, run_id = _named_by(path)
        with _at_rest(path.stem) as at_rest:
            if at_rest and path.stem not in named.keys and is_gone(run_id) and not _is_used(path, since):
                yield RESULTS, path
            else:
                needed |= digests
    for path in _inside("store/objects"):
        if _is_used(path, since):
            needed.add(path.name)
        elif path.name not in needed:
            yield RESULTS, path
    for path in _inside("store/answers"):
        if path.name.partition("-")[0] not in needed and not _is_used_within(path, since):
            yield ANSWERS, path
    for path in _inside("store/checkpoints"):
        with _at_rest(path.name) as at_rest:
            is_over = (disk.home() / "store" / "records" / f"{path.name}.json").is_file()
            if at_rest and (is_over or is_gone(tracking.run_named_in(path / store.RUN_ID))):
                yield CHECKPOINTS, path
    yield from ((QUARANTINE, path) for path in _inside("store/quarantine") if not _is_used(path, since))
    yield from ((REPORTS, path) for path in _inside("reports") if path.stem in named.deleted)
    for path in _inside("searches"):
        if tracking.run_named_in(path / "run") in named.deleted and not _is_used_within(path, since):
            yield SEARCHES, path
    for path in (disk.home() / "mlartifacts").glob(f"**/artifacts/{exchange.folder('')}"):
        if path.parents[1].name in named.deleted:
            yield UPLOADS, path
    yield from ((SCRATCH, path) for path in _scratch(since))


def _scratch(since: float) -> Iterator[Path]:
    """What killed processes had not finished: workspaces, and what they were about to write in one step."""
    with disk.lock("tmp"):
        for path in _inside("store/tmp"):
            with contextlib.suppress(BlockingIOError), disk.held(path, wait=False):
                yield path
    for name in ("store/records", "store/answers", "reports"):
        yield from (path for path in (disk.home() / name).glob("**/.*") if not _is_used(path, since))


def _inside(name: str) -> list[Path]:
    """What is in a directory of the home, if it is there."""
    folder = disk.home() / name
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _named_by(record: Path) -> tuple[set[str], str]:
    """The objects that a record names, and the run that it is of; none of a damaged one, which nobody can use."""
    try:
        result = StageResult.model_validate(json.loads(record.read_bytes())["result"])
    except (ValueError, KeyError, TypeError):
        return set(), ""
    return set(exchange.digests(result).values()), result.run_id


@contextlib.contextmanager
def _at_rest(key: str) -> Iterator[bool]:
    """Whether no stage is being executed under a cache key; if so, none is while the block runs."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disk.lock(key, wait=False))
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_used(path: Path, since: float) -> bool:
    """Whether it was made or touched since then; what is gone meanwhile is nobody's garbage."""
    try:
        return path.lstat().st_mtime >= since
    except FileNotFoundError:
        return True


def _is_used_within(path: Path, since: float) -> bool:
    return _is_used(path, since) or any(_is_used(one, since) for one in path.rglob("*"))
