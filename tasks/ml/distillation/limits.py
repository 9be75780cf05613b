"""How much of what teachers said is kept on disk. Imports nothing heavy."""

from __future__ import annotations

import os

from tasks.contracts.base import FeatherweightError

VARIABLE = "FEATHERWEIGHT_ANSWERS_MB"
"""Another limit, for who has many students taught by the same teacher and the disk for it."""
DEFAULT_MB = 500


def answers_on_disk() -> float:
    """Bytes of all teachers' answers that a home keeps.

    Raises:
        FeatherweightError: the variable is no number of megabytes.
    """
    said = os.environ.get(VARIABLE) or str(DEFAULT_MB)
    if not said.isdecimal():
        raise FeatherweightError(f"{VARIABLE}: {said[:20]!r} is no number of megabytes; {DEFAULT_MB} is the default")
    return int(said) * 1e6
