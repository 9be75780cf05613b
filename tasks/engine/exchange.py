"""Where workers share no disk: results and their objects travel through MLflow, found by cache key and by digest.

Nothing is believed: the store publishes only what has the digest that was asked for, and which result belongs to a
cache key is believed of who has the workers' secret only, by a seal over both (HMAC, RFC 2104).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Digest, StageResult
from tasks.engine import disk, secret, tracking

logger = logging.getLogger("featherweight")

SECRET = "FEATHERWEIGHT_SECRET"
"""What all workers that reuse each other's results are given; without it a worker believes its own home's only."""
MIN_SECRET = 16
KINDS = ("bundle", "splits", "evidence")
RESULT = "result.json"
OFFERED_TAG = "featherweight.offered"
"""Set on a run last of all, so that what is found is whole."""
SEAL_TAG = "featherweight.seal"
CANDIDATES = 10
"""Runs, newest first, that are looked at for a result: of these a stranger may have tagged some."""


def is_on() -> bool:
    """Whether other workers may need what this one makes: tracking is on a server, and the disk is not shared."""
    return tracking.is_remote() and not disk.is_shared()


def _seal(key: str, text: str) -> str:
    given = os.environ.get(SECRET, "")
    if given and len(given) < MIN_SECRET:
        raise FeatherweightError(
            f"{SECRET} has {len(given)} characters; give all workers the same {MIN_SECRET} or more"
        )
    shared = given or secret.of_home("exchange")
    return hmac.new(shared.encode(), f"{key}\n{text}".encode(), hashlib.sha256).hexdigest()


def offer(key: str, result: StageResult, path: Callable[[Digest], Path]) -> None:
    """Uploads the result for a cache key and its objects to the run that computed it: again if others hold them, who
    may be damaged."""
    if not is_on():
        return
    run = tracking.Run(result.run_id)
    named = digests(result)
    for digest in set(named.values()):
        run.artifact(path(digest), folder(digest))
    text = result.model_dump_json(indent=1)
    run.text(text, RESULT)
    kinds = {f"featherweight.{kind}": digest for kind, digest in named.items()}
    run.tags({OFFERED_TAG: "true", SEAL_TAG: _seal(key, text), **kinds})


def digests(result: StageResult) -> dict[str, Digest]:
    """The objects that a result names, by kind."""
    found = {
        "bundle": result.bundle and result.bundle.digest,
        "splits": result.splits and result.splits.digest,
        "evidence": result.evidence,
    }
    return {kind: digest for kind, digest in found.items() if digest}


def find_result(key: str) -> str | None:
    """Returns the JSON of a result that a worker with our secret computed for a cache key, the newest first."""
    if not is_on():
        return None
    query = f"{_OFFERED} and tags.`{tracking.CACHE_KEY_TAG}` = '{key}'"
    for run in tracking.find_runs(query, max_results=CANDIDATES):
        try:
            text = tracking.read_text(run.info.run_id, RESULT)
        except ValueError:  # gone in the meantime, or no text at all
            continue
        if text and hmac.compare_digest(_seal(key, text).encode(), run.data.tags.get(SEAL_TAG, "").encode()):
            return text
        logger.warning(
            "run %s offers a result for cache key %s without the seal of our secret, which is not used: workers that "
            "reuse each other's results need the same %s", run.info.run_id, key[:12], SECRET,
        )  # fmt: skip
    return None


def holders(digest: Digest) -> list[str]:
    """Returns the ids of the runs that hold an object, newest first."""
    if not is_on():
        return []
    queries = (f"{_OFFERED} and tags.`featherweight.{kind}` = '{digest}'" for kind in KINDS)
    return [run.info.run_id for query in queries for run in tracking.find_runs(query, max_results=3)]


def folder(digest: Digest) -> str:
    """Where a run that holds an object has it."""
    return f"objects/{digest}"


_OFFERED = f"tags.`{OFFERED_TAG}` = 'true'"
