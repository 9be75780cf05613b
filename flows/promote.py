"""promote and rollback: a person, or a schedule, moves the champion forward or back."""

from __future__ import annotations

from flows.flow import flow
from tasks import promote as steps
from tasks.contracts.values import Release


@flow(name="promote", flow_run_name="promote-{name}")
def promote(name: str, version: int = 0, reason: str = "") -> Release:
    """Make a version the champion, which is the one that is served.

    Args:
        name: Registered model, for example movie-sentiment.
        version: Version to promote; 0 takes the candidate, the newest version that passed.
        reason: Why; needed for a version whose verdict is not passed, and kept with it.
    """
    return steps.promote(name, version or "candidate", reason=reason)


@flow(name="rollback", flow_run_name="rollback-{name}")
def rollback(name: str, reason: str = "") -> Release:
    """Make the champion before the present one the champion again.

    Args:
        name: Registered model, for example movie-sentiment.
        reason: Why; kept with the version if its verdict is not passed.
    """
    return steps.rollback(name, reason=reason)
