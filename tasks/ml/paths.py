"""Paths as people write them, and files that are to survive."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.contracts.base import FeatherweightError


def written(path: str, *, field: str) -> Path:
    """The path that a person wrote, with ``~`` as the home it stands for; whether something is there is not asked.

    Args:
        field: what errors say was wrong.

    Raises:
        FeatherweightError: nothing can have this name.
    """
    try:
        found = Path(path).expanduser()
        found.stat()
    except (FileNotFoundError, NotADirectoryError):
        return found
    except RuntimeError:
        raise FeatherweightError(f"{field}: {path[:80]!r} begins with the home of a user that is not known") from None
    except (OSError, ValueError) as error:
        raise FeatherweightError(f"{field}: {path[:80]!r} cannot be looked for: {error.args[-1]}") from None
    return found


def fsync(path: Path) -> None:
    """Sees that a file or the entries of a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
