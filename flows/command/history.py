"""Past runs, as MLflow remembers them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Outcome
from tasks.engine import tracking

PIPELINES = "tags.`featherweight.kind` = 'pipeline'"
OUTCOME = "outcome.json"


def runs(*, limit: int) -> list[dict[str, Any]]:
    """Returns the newest runs: id, recipe, start (UTC), wall time, status, and the verdict or error if there is one."""
    return [_row(run) for run in tracking.find_runs(PIPELINES, max_results=limit)]


def _row(run: Any) -> dict[str, Any]:
    info, tags = run.info, run.data.tags
    seconds = None if info.end_time is None else round((info.end_time - info.start_time) / 1000, 1)
    return {
        "run": info.run_id,
        "recipe": run.data.params.get("name", ""),
        "started": datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "status": info.status,
        "verdict": tags.get("featherweight.verdict", ""),
        "error": tags.get("featherweight.error", ""),
    }


def find(run: str) -> dict[str, Any]:
    """Finds a run by its id or the beginning of it; the newest for an empty one.

    Raises:
        FeatherweightError: there is none, or several.
    """
    found = runs(limit=1) if not run else [row for row in runs(limit=10_000) if row["run"].startswith(run)]
    if not found:
        what = f"no run's id begins with {run!r}" if run else "no recipe was run yet"
        raise FeatherweightError(f"{what}; 'featherweight runs' lists them all")
    if len(found) > 1:
        raise FeatherweightError(f"{len(found)} runs begin with {run!r}: {', '.join(row['run'] for row in found[:5])}")
    return found[0]


def outcome(run: str = "") -> Outcome:
    """Reads what a run came to.

    Raises:
        FeatherweightError: there is no such run, it ended without a verdict, or what MLflow has of it is not one.
    """
    row = find(run)
    text = tracking.read_text(row["run"], OUTCOME)
    if text is None:
        why = f": {row['error']}" if row["error"] else ""
        raise FeatherweightError(f"run {row['run']} is {row['status']} and has no verdict{why}")
    try:
        return Outcome.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, wrong["loc"])) or "the document"
        raise FeatherweightError(f"{OUTCOME} of run {row['run']} cannot be read: {where}: {wrong['msg']}") from None
