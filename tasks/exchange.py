"""Where workers share no disk: results and their objects travel through MLflow, found by cache key and by digest.

Nothing is believed: the store publishes only what has the digest that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks import disk, tracking
from tasks.contracts import Digest, StageResult

KINDS = ("bundle", "splits", "evidence")
RESULT = "result.json"
OFFERED_TAG = "featherweight.offered"
"""Set on a run last of all, so that what is found is whole."""


def is_on() -> bool:
    """Whether other workers may need what this one makes: tracking is on a server, and the disk is not shared."""
    return tracking.is_remote() and not disk.is_shared()


def offer(result: StageResult, path: Callable[[Digest], Path]) -> None:
    """Uploads a result and its objects to the run that computed it: again if others hold them, who may be damaged."""
    if not is_on():
        return
    run = tracking.Run(result.run_id)
    named = digests(result)
    for digest in set(named.values()):
        run.artifact(path(digest), _folder(digest))
    run.text(result.model_dump_json(indent=1), RESULT)
    run.tags({OFFERED_TAG: "true", **{f"featherweight.{kind}": digest for kind, digest in named.items()}})


def digests(result: StageResult) -> dict[str, Digest]:
    """The objects that a result names, by kind."""
    found = {
        "bundle": result.bundle and result.bundle.digest,
        "splits": result.splits and result.splits.digest,
        "evidence": result.evidence,
    }
    return {kind: digest for kind, digest in found.items() if digest}


def find_result(key: str) -> str | None:
    """Returns the JSON of a result that another worker computed for a cache key, the newest first."""
    if not is_on():
        return None
    for run in tracking.find_runs(f"{_OFFERED} and tags.`{tracking.CACHE_KEY_TAG}` = '{key}'", max_results=3):
        text = tracking.read_text(run.info.run_id, RESULT)
        if text:
            return text
    return None


def holders(digest: Digest) -> list[str]:
    """Returns the ids of the runs that hold an object, newest first."""
    if not is_on():
        return []
    queries = (f"{_OFFERED} and tags.`featherweight.{kind}` = '{digest}'" for kind in KINDS)
    return [run.info.run_id for query in queries for run in tracking.find_runs(query, max_results=3)]


def download(digest: Digest, run_id: str, directory: Path) -> Path:
    """Downloads an object from a run that holds it to somewhere below ``directory``, and returns where.

    Raises:
        FeatherweightError: it cannot be had from there.
    """
    return tracking.download(run_id, _folder(digest), directory)


def _folder(digest: Digest) -> str:
    return f"objects/{digest}"


_OFFERED = f"tags.`{OFFERED_TAG}` = 'true'"
